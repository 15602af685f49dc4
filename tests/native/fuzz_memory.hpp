// A ring in memory that ends where the ring ends, and the mutations of its words: for ring_fuzz.cpp.
//
// The segment is mapped as the library maps it: whole for brokers and publishers, and as its words and its slots (read
// only) for subscribers. Each mapping lies between guard pages; what is only padding inside is poisoned for
// AddressSanitizer, so that an index one too large is seen and not only one that is far off.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "ring.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace fuzz {

using namespace embar;

struct Random {
    u64 state;
    explicit Random(u64 seed) : state(seed * 0x9e3779b97f4a7c15ULL + 0x632be59bd9b4e019ULL) { (*this)(); }
    u64 operator()() noexcept {  // splitmix64: any seed, 0 included, is a good one
        u64 z = (state += 0x9e3779b97f4a7c15ULL);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        return z ^ (z >> 31);
    }
    u64 below(u64 n) noexcept { return (*this)() % n; }
    bool one_in(u64 n) noexcept { return below(n) == 0; }
};

// A piece of the segment that mutations are made in.
struct Region {
    const char* name;
    unsigned weight;
    std::vector<std::atomic<u64>*> words;
};

class Memory {
public:
    Memory(u32 slots, u64 slot_bytes, u32 publishers, u32 subscribers)
        : geometry_(Geometry::plan(slots, slot_bytes, publishers, subscribers)) {
        file_ = memfd_create("ring", MFD_CLOEXEC);
        if (file_ < 0 || ftruncate(file_, static_cast<off_t>(geometry_.total_bytes)) != 0) die("memfd");
        const u64 words = geometry_.slots_offset, behind = geometry_.total_bytes - words;
        whole_ = map(0, geometry_.total_bytes, PROT_READ | PROT_WRITE);
        words_ = map(0, words, PROT_READ | PROT_WRITE);
        slots_ = map(words, behind, PROT_READ);
        poison(whole_, whole_ + words);
        poison(words_, slots_);
        format(1);
        list_regions();
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    const Geometry& geometry() const noexcept { return geometry_; }
    Ring ring() const noexcept { return {whole_, geometry_}; }
    Ring subscribers_ring() const noexcept { return {words_, geometry_, slots_}; }
    char* base() const noexcept { return whole_; }
    const std::vector<Region>& regions() const noexcept { return regions_; }
    // Another open file description, for liveness locks.
    int open_again() const {
        const int fd = open(("/proc/self/fd/" + std::to_string(file_)).c_str(), O_RDWR | O_CLOEXEC);
        if (fd < 0) die("/proc/self/fd");
        return fd;
    }
    bool inside_slots(const char* at, u64 bytes) const noexcept {
        const char* const end = slots_ + (geometry_.total_bytes - geometry_.slots_offset);
        return at >= slots_ && at <= end && bytes <= static_cast<u64>(end - at);
    }

    // An empty ring, in which the tickets below `first` have come and gone. What is in the slots stays, and looks like
    // batches of others.
    void format(u64 first) {
        std::memset(whole_, 0, sizeof(SegmentHeader) + sizeof(Control));
        std::memset(whole_ + geometry_.publishers_offset, 0, geometry_.max_publishers * sizeof(PublisherEntry));
        std::memset(whole_ + geometry_.subscribers_offset, 0, geometry_.max_subscribers * sizeof(SubscriberEntry));
        std::memset(whole_ + geometry_.slot_words_offset, 0, geometry_.slots * sizeof(SlotWord));
        Ring::format(whole_, geometry_, "fuzz/0", "no boot", first);
        Ring::publish(whole_);
        const Ring r = ring();
        Control& c = r.control();
        for (auto* word : {&c.tail, &c.head, &c.released}) word->store(first);
        for (u64 i = 0; i < geometry_.tickets; ++i) r.entry(first + i).store(ticket::free(r.lap_of(first + i)));
    }

private:
    static constexpr std::size_t kGuard = 1U << 20;

    [[noreturn]] static void die(const char* what) {
        std::perror(what);
        std::exit(2);
    }
    char* map(u64 offset, u64 bytes, int protection) const {
        void* const room = mmap(nullptr, bytes + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) die("mmap");
        void* const at = mmap(static_cast<char*>(room) + kGuard, bytes, protection, MAP_SHARED | MAP_FIXED, file_,
                              static_cast<off_t>(offset));
        if (at == MAP_FAILED) die("mmap");
        return static_cast<char*>(at);
    }
    void poison(char* words, char* slots) const {
        const Geometry& g = geometry_;
        const auto between = [](char* begin, char* end) { ASAN_POISON_MEMORY_REGION(begin, end - begin); };
        between(words + sizeof(SegmentHeader) + sizeof(Control), words + g.publishers_offset);
        between(words + g.publishers_offset + g.max_publishers * sizeof(PublisherEntry), words + g.subscribers_offset);
        between(words + g.subscribers_offset + g.max_subscribers * sizeof(SubscriberEntry), words + g.tickets_offset);
        between(words + g.tickets_offset + g.tickets * 8, words + g.slot_words_offset);
        between(words + g.slot_words_offset + g.slots * sizeof(SlotWord), words + g.slots_offset);
        for (u32 s = 0; s < g.slots; ++s) {
            char* const slot = slots + s * g.slot_stride;
            between(slot + sizeof(BatchHeader), slot + kPage);
            between(slot + kPage + g.slot_bytes, slot + g.slot_stride);
        }
    }

    void list_regions() {
        const Geometry& g = geometry_;
        const auto add = [this](Region& region, const void* begin, u64 bytes) {
            auto* word = static_cast<std::atomic<u64>*>(const_cast<void*>(begin));
            for (u64 i = 0; i < bytes / 8; ++i) region.words.push_back(word + i);
        };
        const Ring r = ring();
        Region header{"header", 1, {}}, control{"control", 20, {}}, statistics{"statistics", 2, {}},
            publishers{"publishers", 16, {}}, subscribers{"subscribers", 12, {}}, tickets{"tickets", 20, {}},
            slot_words{"slot_words", 15, {}}, batches{"batch headers", 14, {}}, bodies{"batches", 2, {}};
        add(header, whole_, offsetof(SegmentHeader, reserved));
        add(control, &r.control(), offsetof(Control, batches));
        add(statistics, &r.control().batches, sizeof(Control) - offsetof(Control, batches));
        for (u32 i = 0; i < g.max_publishers; ++i) {
            add(publishers, &r.publisher(i), offsetof(PublisherEntry, messages));
            add(statistics, &r.publisher(i).messages, sizeof(PublisherEntry) - offsetof(PublisherEntry, messages));
        }
        for (u32 i = 0; i < g.max_subscribers; ++i) add(subscribers, &r.subscriber(i), sizeof(SubscriberEntry));
        add(tickets, whole_ + g.tickets_offset, g.tickets * 8);
        for (u32 s = 0; s < g.slots; ++s) {
            add(slot_words, &r.slot(s), 16);
            add(batches, r.header_of(s), sizeof(BatchHeader));
            add(bodies, r.payload_of(s), g.slot_bytes / 8 * 8);
        }
        regions_ = {header, control, statistics, publishers, subscribers, tickets, slot_words, batches, bodies};
    }

    Geometry geometry_;
    int file_ = -1;
    char *whole_ = nullptr, *words_ = nullptr, *slots_ = nullptr;
    std::vector<Region> regions_;
};

// Writes into a ring what no honest process writes.
class Mutator {
public:
    Mutator(const Memory& memory, Random& random) : memory_(memory), ring_(memory.ring()), random_(random) {
        for (const Region& region : memory.regions()) weights_ += region.weight;
    }

    u64 done() const noexcept { return done_; }

    // Remembers a few words as they are, to be replayed later.
    void observe() noexcept {
        for (int i = 0; i < 4; ++i) {
            std::atomic<u64>* const word = pick(any_region());
            seen_[next_seen_++ % kSeen] = {word, word->load(std::memory_order_relaxed)};
        }
    }
    void forget() noexcept { next_seen_ = 0; }

    // One mutation.
    void mutate() noexcept {
        ++done_;
        if (random_.one_in(8)) return plausible();
        if (next_seen_ && random_.one_in(10)) {
            const Seen& seen = seen_[random_.below(std::min<u64>(next_seen_, kSeen))];
            return seen.word->store(seen.value, std::memory_order_relaxed);
        }
        const Region& region = any_region();
        std::atomic<u64>& word = *pick(region);
        u64 w = word.load(std::memory_order_relaxed);
        switch (random_.below(7)) {
            case 0: w ^= 1ULL << random_.below(64); break;
            case 1: w = random_(); break;
            case 2: w = boundary(); break;
            case 3: w += neighbour(); break;
            case 4: {  // half a word: many are 32 bits
                const unsigned shift = random_.one_in(2) ? 32 : 0;
                const u64 half = random_.one_in(2) ? boundary() : random_.below(8);
                w = (w & ~(0xffffffffULL << shift)) | ((half & 0xffffffff) << shift);
                break;
            }
            case 5: {
                std::atomic<u64>& other = *pick(region);
                w = other.exchange(w, std::memory_order_relaxed);
                break;
            }
            default: w = pick(region)->load(std::memory_order_relaxed); break;
        }
        word.store(w, std::memory_order_relaxed);
    }

private:
    static constexpr std::size_t kSeen = 128;
    struct Seen {
        std::atomic<u64>* word;
        u64 value;
    };

    const Region& any_region() noexcept {
        u64 at = random_.below(weights_);
        for (const Region& region : memory_.regions()) {
            if (at < region.weight) return region;
            at -= region.weight;
        }
        return memory_.regions().front();
    }
    std::atomic<u64>* pick(const Region& region) noexcept { return region.words[random_.below(region.words.size())]; }

    u64 boundary() noexcept {
        const Geometry& g = memory_.geometry();
        const u64 values[] = {0,          1,           2,          ~0ULL,       1ULL << 31, (1ULL << 31) - 1,
                              1ULL << 32, ~0U,         1ULL << 50, 1ULL << 63,  ~0ULL >> 1, g.slots,
                              g.tickets,  g.slots - 1, kLogOwner,  g.slot_bytes};
        return values[random_.below(std::size(values))];
    }
    // To add: the next ticket, lap, generation, owner, slot, or the one before.
    u64 neighbour() noexcept {
        const u64 steps[] = {1, memory_.geometry().tickets, 1ULL << 16, 1ULL << 32, 2, 1ULL << 51};
        const u64 step = steps[random_.below(std::size(steps))];
        return random_.one_in(2) ? step : ~step + 1;
    }

    // What looks right in itself.
    void plausible() noexcept {
        const Geometry& g = memory_.geometry();
        const auto s = static_cast<u32>(random_.below(g.slots));
        const Control& c = ring_.control();
        switch (random_.below(4)) {
            case 0: {  // a batch header whose check is right
                BatchHeader h;
                std::memcpy(&h, ring_.header_of(s), sizeof h);
                const u64 v = random_.one_in(2) ? boundary() : random_.below(300);
                switch (random_.below(8)) {
                    case 0: h.messages = static_cast<u32>(v); break;
                    case 1: h.message_size = static_cast<u32>(v); break;
                    case 2: h.body_bytes = v; break;
                    case 3: h.payload_bytes = v; break;
                    case 4: h.format = static_cast<u16>(v); break;
                    case 5: h.committed_ns = v; break;
                    case 6:
                        h.body_bytes = h.payload_bytes = u64{h.messages = static_cast<u32>(v)} * h.message_size;
                        break;
                    default: h.seq -= h.seq ? random_.below(3) : 0; break;  // one that was there: none is made up
                }
                h.check = header_check(h);
                std::memcpy(ring_.header_of(s), &h, sizeof h);
                return;
            }
            case 1: {  // a ticket near the head that refers to some slot as it is
                const u64 t = c.head.load(std::memory_order_relaxed) + random_.below(5) - 2;
                const u64 w = ring_.slot(s).word.load(std::memory_order_relaxed);
                const u64 e = random_.one_in(4) ? ticket::free(ring_.lap_of(t))
                                                : ticket::used(ring_.lap_of(t), s, slot_word::generation(w));
                return ring_.entry(t).store(e, std::memory_order_relaxed);
            }
            case 2: {  // a slot that is somebody else's, or free
                const u64 w = ring_.slot(s).word.load(std::memory_order_relaxed);
                const u64 g_ = slot_word::generation(w);
                const u64 changed = random_.one_in(3)
                                        ? slot_word::free(g_)
                                        : slot_word::owned(g_, static_cast<u32>(random_.below(g.max_publishers + 2)));
                return ring_.slot(s).word.store(changed, std::memory_order_relaxed);
            }
            default: {  // the log is a little longer or shorter, a journal is open, the broker is in another state
                Control& w = ring_.control();
                switch (random_.below(5)) {
                    case 0: w.head += random_.below(3) - 1; break;
                    case 1: w.tail += random_.below(3) - 1; break;
                    case 2: w.released += random_.below(3) - 1; break;
                    case 3: w.releasing = ring_.entry(w.released).load(std::memory_order_relaxed); break;
                    default: w.state = static_cast<u32>(random_.below(6)); break;
                }
                return;
            }
        }
    }

    const Memory& memory_;
    Ring ring_;
    Random& random_;
    u64 weights_ = 0, done_ = 0, next_seen_ = 0;
    Seen seen_[kSeen];
};

}  // namespace fuzz

// Threads on a ring so small that every word is contended, built with sanitizers by test_native.py.
//
//   publishers   four publishers, one verifying broker: nothing lost, doubled, reordered or damaged
//   linger       the same; batches that stay open must be committed by the linger threads
//   serve        the same publishers against Broker::serve(), which is then stopped
//   readers      with reliable subscribers that come and go: each ticket exactly once and in order, its bytes unchanged
//                until it is passed; without ThreadSanitizer some die, too
//   lossy        the same beside lossy ones: what they read is whole, and what they miss is told
//   commit       litmus: two commits and a release race for a ring of one or two slots, step by step
//   waiting      a publisher that waits for its quota, and then for a slot, tells so
//   eventcount   ping-pong between sleepers: a wake-up that is lost is counted, and is a failure
//
// usage: ring_stress MODE SECONDS. Works for about so long; a hang ends at the deadline with the ring's state.
// Random numbers are xorshift: libc's random() takes a lock, which hides races.
#include <fcntl.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "broker.hpp"
#include "publisher.hpp"
#include "subscriber.hpp"

namespace {

using namespace embar;

constexpr u64 kSecond = 1'000'000'000;
constexpr u64 kPatience = 45 * kSecond;  // beyond the time to work: nothing that works is so slow
u64 give_up = ~0ULL;                     // CLOCK_MONOTONIC ns; set once, before there are threads
const Ring* watched = nullptr;           // whose state is dumped

[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "FORBIDDEN: ");
    std::vfprintf(stderr, format, arguments);
    std::fprintf(stderr, "\n");
    va_end(arguments);
    if (watched) {
        const Control& c = watched->control();
        std::fprintf(stderr, "tail %lu head %lu released %lu, broker sleeping %u, space_waiters %u\n", c.tail.load(),
                     c.head.load(), c.released.load(), c.sleeping.load(), c.space_waiters.load());
        for (u32 t = 0; t < watched->geometry().tickets; ++t)
            std::fprintf(stderr, "entry %u: %016lx\n", t, watched->entry(t).load());
        for (u32 s = 0; s < watched->geometry().slots; ++s)
            std::fprintf(stderr, "slot %u: %016lx\n", s, watched->slot(s).word.load());
        for (u32 p = 0; p < watched->geometry().max_publishers; ++p) {
            const PublisherEntry& row = watched->publisher(p);
            std::fprintf(stderr,
                         "publisher %u: committed %lu accepted %lu released %lu, sleeping %u, wants a slot %u\n", p,
                         row.committed_seq.load(), row.accepted_seq.load(), row.released_batches.load(),
                         row.sleeping.load(), row.wants_any_slot.load());
        }
        for (u32 i = 0; i < watched->geometry().max_subscribers; ++i) {
            const SubscriberEntry& row = watched->subscriber(i);
            std::fprintf(stderr, "subscriber %u: state %u mode %u cursor %lu next %lu\n", i, row.state.load(),
                         row.mode.load(), row.cursor.load(), row.next.load());
        }
    }
    std::fflush(stderr);
    std::_Exit(1);
}
void check_deadline(const char* where) {
    if (now_ns() > give_up) fail("no progress in %s", where);
}
// For polling loops: lets others run. A pause that is too short or too long costs time, never a result.
void pause_a_little() {
    const timespec t{0, 10'000};
    nanosleep(&t, nullptr);
}

struct Xorshift {
    u64 state;
    explicit Xorshift(u64 seed) : state(seed * 0x9e3779b97f4a7c15ULL | 1) {}
    u64 operator()() noexcept {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    }
    u64 below(u64 n) noexcept { return ((*this)() >> 11) % n; }
};

constexpr unsigned char kGuard = 0xa5;

// What a dead subscriber has read is ordered before its slot's next use by the kernel alone, through its lock:
// ThreadSanitizer does not know these, and would call it a race.
#if defined(__SANITIZE_THREAD__)
constexpr bool kDeaths = false;
#else
constexpr bool kDeaths = true;
#endif

// An empty ring in anonymous memory, its slots full of guard bytes.
class Arena {
public:
    Arena(u32 slots, u64 slot_bytes, u32 publishers, u32 subscribers = 1)
        : geometry_(Geometry::plan(slots, slot_bytes, publishers, subscribers)) {
        base_ = mmap(nullptr, geometry_.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) fail("mmap: %s", std::strerror(errno));
        Ring::format(base_, geometry_, "stress/0", "no boot", 0);
        Ring::publish(base_);
        Geometry found;
        if (const char* why = Ring::unusable(base_, geometry_.total_bytes, found)) fail("%s", why);
        ring_ = std::make_unique<Ring>(base_, found);
        for (u32 s = 0; s < slots; ++s) std::memset(ring_->payload_of(s), kGuard, geometry_.slot_stride - kPage);
        watched = ring_.get();
    }
    ~Arena() {
        watched = nullptr;
        munmap(base_, geometry_.total_bytes);
    }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    Ring& ring() { return *ring_; }

private:
    Geometry geometry_;
    void* base_;
    std::unique_ptr<Ring> ring_;
};

// --- messages that can be checked bit for bit --------------------------------------------------------

struct Message {
    u64 publisher;
    u64 number;  // 1, 2, 3, ... per publisher
    u64 size;    // of the whole message
    u64 checksum;
};
constexpr u64 kLargest = 96;

u64 checksum(const unsigned char* bytes, u64 n, u64 seed) noexcept {
    Xorshift mix(seed);
    for (u64 i = 0; i < n; ++i) mix.state = (mix() ^ bytes[i]) | 1;
    return mix();
}
void write_message(unsigned char* to, u64 publisher, u64 number, u64 size) noexcept {
    Xorshift random(publisher << 40 ^ number);
    for (u64 i = sizeof(Message); i < size; ++i) to[i] = static_cast<unsigned char>(random());
    const Message m{publisher, number, size, checksum(to + sizeof m, size - sizeof m, number)};
    std::memcpy(to, &m, sizeof m);
}
void verify_message(const unsigned char* from, u64 publisher, u64 number, u64 size) {
    Message m;
    std::memcpy(&m, from, sizeof m);
    if (m.publisher != publisher) fail("a message of %lu in a batch of %lu", m.publisher, publisher);
    if (m.number != number) fail("publisher %lu: message %lu instead of %lu", publisher, m.number, number);
    unsigned char expected[kLargest];
    write_message(expected, publisher, number, size);
    if (m.size != size || std::memcmp(expected, from, size) != 0)
        fail("publisher %lu: message %lu is damaged", publisher, number);
}

// --- publishers and their broker ----------------------------------------------------------------------

constexpr u32 kPublishers = 4, kSlots = 3, kQuota = 2;
constexpr u64 kSlotBytes = 256;
constexpr u64 kBatchBytes = 200;  // less than a slot: the bytes beyond must stay as they were
constexpr u64 kFixedSize = 48;
constexpr u64 kLeastMessages = 300;

// Even publishers send messages of one size, odd ones of any.
PublisherOptions options_of(u32 index, u64 linger_ns) {
    PublisherOptions o;
    o.message_size = index % 2 ? 0 : kFixedSize;
    o.batch_bytes = kBatchBytes;
    o.row = {100 + index, 7, kQuota, 1, true};
    o.linger_ns = linger_ns;
    o.sample_every = 3;
    o.turns = index < 2;  // one thread publishes: the lock may be biased
    o.copy = index < 2 ? CopyMode::Plain : CopyMode::NonTemporal;
    return o;
}
SpinOptions spin_of(u32 index) {
    return index == 0 ? SpinOptions{WaitMode::Spin, 20'000, 2} : SpinOptions{WaitMode::Block, 0, 1};
}

class Lock {
public:
    explicit Lock(Publisher& p) : p_(p) {
        while (!p_.lock.try_lock()) {
            check_deadline("the publisher's lock");
            pause_a_little();
        }
    }
    ~Lock() { p_.lock.unlock(); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

private:
    Publisher& p_;
};

// Publishes until `until`, leaves in order. => how many messages.
u64 publish(Publisher& p, u64 until, bool leave_to_linger) {
    const u64 id = p.options().row.publisher_id;
    Xorshift random(id);
    u64 number = 0;
    while (now_ns() < until || number < kLeastMessages) {
        const u64 size =
            p.options().message_size ? kFixedSize : sizeof(Message) + random.below(kLargest - sizeof(Message) + 1);
        unsigned char bytes[kLargest];
        write_message(bytes, id, number + 1, size);
        {
            Lock lock(p);
            Status s;
            while ((s = p.append(reinterpret_cast<const char*>(bytes), size)) == Status::NeedSlot) {
                p.wait_space(give_up);
                check_deadline("wait_space");
            }
            if (s != Status::Ok) fail("append: status %d", static_cast<int>(s));
            ++number;
            if (!leave_to_linger && random.below(8) == 0 && p.flush() != Status::Ok) fail("flush");
        }
        // The open batch must come to the broker without any further call.
        if (leave_to_linger && random.below(8) == 0)
            while (p.row().messages.load() != number) {
                check_deadline("lingering");
                pause_a_little();
            }
    }
    {
        Lock lock(p);
        if (p.flush() != Status::Ok) fail("the last flush");
    }
    while (p.accepted_seq() < p.committed_seq()) {
        p.wait_acked(p.committed_seq(), give_up);
        check_deadline("wait_acked");
    }
    Lock lock(p);
    p.close();
    return number;
}

// Accepts, verifies and releases on behalf of Broker::serve().
class Verifier {
public:
    Verifier(Broker& broker, std::atomic<bool>& all_left) : broker_(broker), all_left_(all_left) {}

    void run() {
        Xorshift random(1);
        Control& c = broker_.ring().control();
        for (;;) {
            Accepted a;
            if (broker_.accept(a)) {
                verify(a);
                ++next_;
                while (next_ - released_ > random.below(kSlots)) release();
                continue;
            }
            if (const Finding& f = broker_.corruption()) fail("corrupt: %s: %s", f.field, f.text);
            while (released_ != next_) release();
            const bool left = all_left_.load();
            if (broker_.ring().holds(next_)) continue;
            if (left) return;
            bool missed = false;
            sleep_unless([&] { return broker_.ring().holds(next_) || all_left_.load(); }, c.event, c.sleeping, give_up,
                         0, kMaxSleepNs, missed);
            check_deadline("the broker");
        }
    }
    u64 messages(u32 publisher) const { return numbers_[publisher]; }
    u64 batches() const { return next_; }

private:
    void release() {
        if (!broker_.release_next()) fail("nothing to release at %lu of %lu", released_, next_);
        ++released_;
    }
    void verify(const Accepted& a) {
        const u32 p = a.where.owner;
        if (a.verdict != Verdict::Accepted)
            fail("publisher %u, seq %lu: verdict %d", p, a.header.seq, static_cast<int>(a.verdict));
        if (a.ticket != next_) fail("ticket %lu instead of %lu", a.ticket, next_);
        if (a.header.seq != ++seqs_[p]) fail("publisher %u: batch %lu instead of %lu", p, a.header.seq, seqs_[p]);
        const auto* bytes = reinterpret_cast<const unsigned char*>(broker_.ring().payload_of(a.where.slot));
        u64 at = 0;
        for (u32 i = 0; i < a.header.messages; ++i) {
            u64 size = a.header.message_size;
            if (a.header.format == static_cast<u16>(Format::Variable)) {
                std::memcpy(&size, bytes + at, sizeof size);
                at += kFrameHeader;
            }
            if (size < sizeof(Message) || size > kLargest || at + size > a.header.body_bytes)
                fail("publisher %u: a message of %lu bytes at %lu", p, size, at);
            verify_message(bytes + at, a.header.publisher_id, ++numbers_[p], size);
            at += a.header.message_size ? size : framed_size(size) - kFrameHeader;
        }
        if (at != a.header.body_bytes)
            fail("publisher %u: %lu bytes of messages in a body of %lu", p, at, a.header.body_bytes);
        for (u64 i = kBatchBytes; i < kSlotBytes + 64; ++i)
            if (bytes[i] != kGuard)
                fail("publisher %u wrote byte %lu of slot %u, beyond its batch", p, i, a.where.slot);
    }

    Broker& broker_;
    std::atomic<bool>& all_left_;
    u64 next_ = 0, released_ = 0;
    u64 seqs_[kPublishers] = {}, numbers_[kPublishers] = {};
};

void stress(u64 seconds, u64 linger_ns, bool serve) {
    Arena arena(kSlots, kSlotBytes, kPublishers);
    const Ring& ring = arena.ring();
    const Control& c = ring.control();
    Broker broker(ring, -1, {WaitMode::Block, 0, 1});
    std::atomic<bool> all_left{false};
    Verifier verifier(broker, all_left);
    std::thread consumer([&] {
        if (!serve) return verifier.run();
        const Broker::Result r = broker.serve(give_up);
        if (r != Broker::Result::Stopped) fail("serve() ended with %d", static_cast<int>(r));
    });
    std::vector<std::unique_ptr<Publisher>> publishers;
    for (u32 i = 0; i < kPublishers; ++i)
        publishers.push_back(std::make_unique<Publisher>(ring, i, -1, options_of(i, linger_ns), spin_of(i)));
    const u64 until = now_ns() + seconds * kSecond;
    std::vector<u64> sent(kPublishers);
    std::vector<std::thread> threads;
    for (u32 i = 0; i < kPublishers; ++i)
        threads.emplace_back([&, i] { sent[i] = publish(*publishers[i], until, linger_ns != 0); });
    for (std::thread& t : threads) t.join();
    all_left.store(true);
    broker.stop();
    consumer.join();

    // Only shown: a waker that has no CPU for a while between its two steps looks like a lost wake-up.
    u64 late = c.missed_wakeups.load();
    u64 messages = 0, batches = 0;
    for (u32 i = 0; i < kPublishers; ++i) {
        const PublisherEntry& row = ring.publisher(i);
        if (!serve && verifier.messages(i) != sent[i])
            fail("publisher %u sent %lu messages, %lu came", i, sent[i], verifier.messages(i));
        if (row.accepted_messages.load() != sent[i]) fail("publisher %u: not all messages were counted", i);
        if (row.accepted_seq.load() != row.committed_seq.load())
            fail("publisher %u: not all batches were acknowledged", i);
        if (row.released_batches.load() != row.committed_seq.load())
            fail("publisher %u: not all batches were released", i);
        messages += sent[i];
        batches += row.committed_seq.load();
        late += row.missed_wakeups.load();
    }
    if (c.tail.load() != batches || c.head.load() != batches || c.released.load() != batches)
        fail("cursors differ from %lu batches", batches);
    if (c.messages.load() != messages || c.batches.load() != batches) fail("the broker's counters are wrong");
    if (c.duplicated.load() || c.out_of_order.load() || c.corrupt.load()) fail("a batch was refused");
    for (u32 s = 0; s < kSlots; ++s)
        if (slot_word::is_owned(ring.slot(s).word.load())) fail("slot %u was never given back", s);
    std::printf("%lu messages in %lu batches, %lu laps, %lu late wake-ups\n", messages, batches,
                batches / ring.geometry().tickets, late);
}

// --- subscribers that come, go and die -------------------------------------------------------------------

constexpr u32 kReaders = 4;  // rows of the table, and threads

// Open file descriptions of one file, for liveness locks.
class Locks {
public:
    Locks() : file_(memfd_create("locks", MFD_CLOEXEC)) {
        if (file_ < 0) fail("memfd_create: %s", std::strerror(errno));
    }
    ~Locks() { close(file_); }
    Locks(const Locks&) = delete;
    Locks& operator=(const Locks&) = delete;
    int another() const {
        char path[64];
        std::snprintf(path, sizeof path, "/proc/self/fd/%d", file_);
        const int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0) fail("open %s: %s", path, std::strerror(errno));
        return fd;
    }

private:
    int file_;
};

// What a subscriber knows of the log: each batch follows the one before.
class Witness {
public:
    explicit Witness(u64 begin) : next_(begin) {}

    void saw(const Subscriber::View& v, bool lossy) {
        if (v.ticket != next_ + v.gap) fail("ticket %lu with a gap of %lu after %lu", v.ticket, v.gap, next_);
        if (v.gap && !lossy) fail("a gap of %lu before ticket %lu", v.gap, v.ticket);
        next_ = v.ticket + 1;
        u64& last = seqs_[v.header.publisher_id - 100];
        if (lossy ? v.header.seq <= last : last && v.header.seq != last + 1)
            fail("publisher %lu: batch %lu after %lu", v.header.publisher_id, v.header.seq, last);
        last = v.header.seq;
    }
    u64 next() const noexcept { return next_; }

    // The messages of a batch follow each other, and each is whole.
    static void verify(const Subscriber::View& v) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(v.body);
        u64 at = 0, number = 0;
        for (u32 i = 0; i < v.header.messages; ++i) {
            u64 size = v.header.message_size;
            if (v.header.format == static_cast<u16>(Format::Variable)) {
                u32 length;
                std::memcpy(&length, bytes + at, sizeof length);
                size = length;
                at += kFrameHeader;
            }
            if (size < sizeof(Message) || size > kLargest || at + size > v.header.body_bytes)
                fail("ticket %lu: a message of %lu bytes at %lu", v.ticket, size, at);
            Message m;
            std::memcpy(&m, bytes + at, sizeof m);
            if (i && m.number != number + 1) fail("ticket %lu: message %lu after %lu", v.ticket, m.number, number);
            number = m.number;
            verify_message(bytes + at, v.header.publisher_id, number, size);
            at += v.header.message_size ? size : framed_size(size) - kFrameHeader;
        }
        if (at != v.header.body_bytes) fail("ticket %lu: %lu of %lu bytes", v.ticket, at, v.header.body_bytes);
    }

private:
    u64 next_;
    u64 seqs_[kPublishers] = {};
};

enum class Fate { Ended, Left, Died };

bool has_stopped(const Ring& ring) { return ring.control().state.load() == static_cast<u32>(BrokerState::Stopped); }
// As embar_shm.participants does it. => false: nobody frees rows any more.
bool take_row(const Ring& ring, int fd, u32& row) {
    for (;; pause_a_little()) {
        check_deadline("take_row");
        for (row = 0; row < kReaders; ++row) {
            const auto& state = ring.subscriber(row).state;
            if (state.load(std::memory_order_acquire) || !try_lock_byte(fd, subscriber_lock(row))) continue;
            if (!state.load(std::memory_order_acquire)) return true;
            unlock_byte(fd, subscriber_lock(row));
        }
        if (has_stopped(ring)) return false;
    }
}

// One subscriber from its joining to its end. Owns `fd`, with the lock of its row.
class Reader {
public:
    Reader(const Ring& ring, u32 row, int fd, Xorshift& random, SubscribeMode mode, Start start)
        : random_(random), lossy_(mode == SubscribeMode::Lossy), fd_(fd),
          subscriber_(ring, row, fd, "reader", {mode, start, 0, false}, {WaitMode::Block, 0, 1}) {}
    ~Reader() { close(fd_); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // Reads so many batches, or all there are; then leaves, or vanishes with what it holds.
    Fate run(u64 batches, bool dies) {
        if (!join()) return leave();
        Witness witness(subscriber_.position());
        for (u64 n = 0; n < batches;) {
            Subscriber::View v;
            switch (subscriber_.take(v, [this](const char* body, u64 bytes) { return copied(body, bytes); })) {
                case Subscriber::Take::Batch:
                    ++n;
                    witness.saw(v, lossy_);
                    held_.push_back(v);
                    while (held_.size() > (lossy_ ? 0 : random_.below(kSlots))) pass_one();
                    continue;
                case Subscriber::Take::Nothing: break;
                case Subscriber::Take::Damaged: fail("ticket %lu is damaged", v.ticket);
                case Subscriber::Take::Corrupt: fail("ticket %lu is corrupt", subscriber_.next());
                case Subscriber::Take::NoMemory: fail("no memory");
            }
            while (!held_.empty()) pass_one();  // who waits holding everything waits for himself
            const bool stopped = subscriber_.peer() == Subscriber::Peer::Stopped;
            if (subscriber_.available() > subscriber_.next()) continue;
            if (stopped) {
                end_ = witness.next();
                leave();
                return Fate::Ended;
            }
            subscriber_.wait(give_up);
            check_deadline("a subscriber");
        }
        if (dies) return Fate::Died;
        while (!held_.empty()) pass_one();
        return leave();
    }
    u64 end() const noexcept { return end_; }

private:
    bool join() {
        while (subscriber_.joined() == Subscriber::Joined::Waiting) {
            if (subscriber_.peer() == Subscriber::Peer::Stopped) return false;
            subscriber_.wait_joined(give_up);
            check_deadline("joining");
        }
        if (subscriber_.joined() != Subscriber::Joined::Yes) fail("a subscriber was refused");
        return true;
    }
    const char* copied(const char* body, u64 bytes) {
        std::memcpy(copy_, body, bytes);
        return copy_;
    }
    // Only now: until it is passed, nothing of it may have changed.
    void pass_one() {
        const u64 i = random_.below(held_.size());
        Witness::verify(held_[i]);
        subscriber_.pass(held_[i].place);
        held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    Fate leave() {
        subscriber_.leave();
        return Fate::Left;
    }

    Xorshift& random_;
    bool lossy_;
    int fd_;
    Subscriber subscriber_;
    std::vector<Subscriber::View> held_;
    u64 end_ = 0;
    char copy_[kSlotBytes];
};

void subscribers(u64 seconds, bool lossy) {
    Arena arena(kSlots, kSlotBytes, kPublishers, kReaders);
    const Ring& ring = arena.ring();
    const Control& c = ring.control();
    const Locks locks;
    const int alive = locks.another();  // of the publishers, none of which dies
    for (u32 i = 0; i < kPublishers; ++i)
        if (!try_lock_byte(alive, publisher_lock(i))) fail("the lock of publisher %u", i);
    const int lock_fd = locks.another();
    if (!try_lock_byte(lock_fd, kBrokerLock)) fail("the broker's lock");
    Broker broker(ring, lock_fd, {WaitMode::Block, 0, 1}, true, 1);
    std::thread serving([&] {
        const Broker::Result r = broker.serve(give_up);
        if (r != Broker::Result::Stopped) fail("serve() ended with %d", static_cast<int>(r));
        broker.retire();
    });

    // The first is there from the first ticket to the last; the others come, go and die.
    std::atomic<u64> left{0}, died{0}, last{0}, ready{0};
    std::vector<std::thread> readers;
    for (u32 i = 0; i < kReaders; ++i)
        readers.emplace_back([&, i] {
            Xorshift random(i + 77);
            const SubscribeMode mode = lossy && i >= 2 ? SubscribeMode::Lossy : SubscribeMode::Reliable;
            for (bool first = true;; first = false) {
                const int fd = locks.another();
                u32 row;
                if (!take_row(ring, fd, row)) {
                    close(fd);
                    return;
                }
                Reader reader(ring, row, fd, random, mode, i % 2 ? Start::Latest : Start::Earliest);
                if (first) ready.fetch_add(1);
                const bool dies = kDeaths && random.below(2) == 0;
                const Fate fate = reader.run(i == 0 ? ~0ULL : random.below(200), dies);
                if (i == 0) last.store(reader.end());
                if (fate == Fate::Ended || has_stopped(ring)) return;
                (fate == Fate::Died ? died : left).fetch_add(1);
            }
        });
    while (ready.load() < kReaders || c.subscribers.load() == 0) {
        check_deadline("the first subscribers");
        pause_a_little();
    }

    std::vector<std::unique_ptr<Publisher>> publishers;
    for (u32 i = 0; i < kPublishers; ++i)
        publishers.push_back(std::make_unique<Publisher>(ring, i, -1, options_of(i, 0), spin_of(i)));
    const u64 until = now_ns() + seconds * kSecond;
    std::vector<std::thread> threads;
    for (u32 i = 0; i < kPublishers; ++i) threads.emplace_back([&, i] { publish(*publishers[i], until, false); });
    for (std::thread& t : threads) t.join();
    broker.stop();
    serving.join();
    for (std::thread& t : readers) t.join();

    const u64 batches = c.head.load();
    if (last.load() != batches) fail("the first subscriber came to ticket %lu of %lu", last.load(), batches);
    if (c.duplicated.load() || c.out_of_order.load() || c.corrupt.load()) fail("a batch was refused");
    if (kDeaths && died.load() == 0) fail("nobody died");
    broker.reap();
    broker.release(false);
    while (broker.release_next()) {}
    if (c.released.load() != batches) fail("a subscriber that is gone holds ticket %lu", c.released.load());
    for (u32 i = 0; i < kReaders; ++i)
        if (ring.subscriber(i).state.load()) fail("row %u was never freed", i);
    for (u32 s = 0; s < kSlots; ++s)
        if (slot_word::is_owned(ring.slot(s).word.load())) fail("slot %u was never given back", s);
    close(lock_fd);
    close(alive);
    std::printf("%lu batches, %lu subscribers left, %lu died\n", batches, left.load(), died.load());
}

// --- litmus: commits against each other and against the release ---------------------------------------

// In each round two threads claim, write and commit kBurst times, as fast as they can, and a third accepts
// and releases. One commit in four stops right after its CAS, as if killed there: it does not move `tail`, so
// somebody else has to.
class Litmus {
public:
    explicit Litmus(u32 slots) : arena_(slots, 64, 2), ring_(arena_.ring()) {}

    void run(u64 until) {
        std::thread a([this] { committer(0); }), b([this] { committer(1); });
        u64 rounds = 0, lagging = 0, turns = 0;
        for (; now_ns() < until || rounds < kLeastRounds || lagging == 0; ++rounds) {
            const u64 first = 2 * kBurst * rounds, end = first + 2 * kBurst;
            start_.store(rounds + 1, std::memory_order_release);
            u64 seen[2][kBurst], count[2] = {0, 0};
            for (u64 t = first, last = 2; t < end; ++t) {
                const u32 owner = consume(t, rounds, count);
                seen[owner][count[owner]++] = t;
                turns += owner != last;
                last = owner;
            }
            while (done_.load(std::memory_order_acquire) != 2 * (rounds + 1)) relax("the end of a round");
            if (std::memcmp(seen, tickets_, sizeof seen) != 0)
                fail("round %lu: a commit returned another ticket than it got", rounds);
            const u64 tail = ring_.control().tail.load();
            if (tail != end && tail != end - 1) fail("round %lu: tail is %lu instead of %lu", rounds, tail, end);
            lagging += tail != end;
        }
        start_.store(~0ULL, std::memory_order_release);
        a.join();
        b.join();
        u64 freed = 0;
        for (u32 s = 0; s < ring_.geometry().slots; ++s) freed += slot_word::generation(ring_.slot(s).word.load());
        if (freed != 2 * kBurst * rounds) fail("%lu releases of %lu commits", freed, 2 * kBurst * rounds);
        std::printf("%u slots: %lu commits, the other thread's turn %lu times\n", ring_.geometry().slots, freed, turns);
    }

private:
    static constexpr u64 kBurst = 32;
    static constexpr u64 kLeastRounds = 20;

    static void relax(const char* where) {
        check_deadline(where);
        for (int i = 0; i < 200; ++i) cpu_relax();
        pause_a_little();  // not sched_yield(): on a busy machine that gives a whole time slice away
    }
    static u64 value_of(u64 round, u64 owner, u64 number) noexcept { return round << 16 | owner << 8 | number; }

    void committer(u32 me) {
        Xorshift random(me + 1);
        for (u64 round = 0;; ++round) {
            u64 started;
            while ((started = start_.load(std::memory_order_acquire)) < round + 1) relax("the start of a round");
            if (started == ~0ULL) return;
            for (u64 n = 0; n < kBurst; ++n) {
                u32 slot;
                u64 generation;
                while (!ring_.try_claim(me, slot, generation)) relax("claim");
                const u64 value = value_of(round, me, n);
                for (u64 i = 0; i < 8; ++i) std::memcpy(ring_.payload_of(slot) + 8 * i, &value, sizeof value);
                tickets_[me][n] =
                    random.below(4) == 0 ? commit_and_stop(slot, generation) : ring_.commit(slot, generation);
            }
            done_.fetch_add(1, std::memory_order_release);
        }
    }
    // Ring::commit() without its last step.
    u64 commit_and_stop(u32 slot, u64 generation) {
        for (;;) {
            const u64 t = ring_.control().tail.load(std::memory_order_acquire);
            u64 e = ticket::free(ring_.lap_of(t));
            if (ring_.entry(t).compare_exchange_strong(e, ticket::used(ring_.lap_of(t), slot, generation))) return t;
            ring_.help(t);
            check_deadline("commit_and_stop");
        }
    }
    // Checks ticket t against the number its committer has reached. => who that was.
    u32 consume(u64 t, u64 round, const u64 (&count)[2]) {
        Ring::Committed c;
        Ring::Look look;
        while ((look = ring_.look(t, c)) == Ring::Look::Empty) relax("look");
        if (look != Ring::Look::Committed) fail("ticket %lu is corrupt", t);
        if (count[c.owner] == kBurst) fail("ticket %lu: one commit too many of thread %u", t, c.owner);
        for (u64 i = 0; i < 8; ++i) {
            u64 value;
            std::memcpy(&value, ring_.payload_of(c.slot) + 8 * i, sizeof value);
            if (value != value_of(round, c.owner, count[c.owner])) fail("ticket %lu: %lx in its slot", t, value);
        }
        ring_.release(t, c);
        return c.owner;
    }

    Arena arena_;
    const Ring& ring_;
    u64 tickets_[2][kBurst] = {};
    std::atomic<u64> start_{0}, done_{0};
};

// --- waiting for the quota, then for a slot -------------------------------------------------------------

// A publisher waits for its quota. While it spins, its batch is released and another takes the slot at once.
// From then on it must wait for any slot: if it went to sleep without having said so, nobody would wake it.
void quota_then_slot() {
    Arena arena(1, kSlotBytes, 2);
    const Ring& ring = arena.ring();
    PublisherOptions o = options_of(0, 0);
    o.row.quota = 1;
    Publisher p(ring, 0, -1, o, {WaitMode::Spin, 10 * kSecond, 2});
    const char message[kFixedSize] = {};
    if (p.append(message, sizeof message) != Status::Ok || p.flush() != Status::Ok) fail("the first batch");
    if (p.append(message, sizeof message) != Status::NeedSlot) fail("the quota did not stop the second batch");

    PublisherEntry& row = ring.publisher(0);
    std::atomic<bool> returned{false};
    Wait waited{};
    std::thread waiter([&] {
        waited = p.wait_space(give_up);
        returned.store(true);
    });
    while (row.space_waits.load() == 0) {
        check_deadline("the begin of the wait");
        pause_a_little();
    }
    // Release by the broker and claim by publisher 1, in one step.
    ring.slot(0).word.store(slot_word::owned(1, 1));
    row.released_batches.store(1);
    wake_if_sleeping(row.event, row.sleeping);
    bool asked = false;
    while (!returned.load() && !asked) {
        asked = row.wants_any_slot.load() != 0;
        check_deadline("the wait for the quota");
        pause_a_little();
    }
    ring.slot(0).word.store(slot_word::free(2));
    wake_if_sleeping(row.event, row.sleeping);
    waiter.join();
    if (waited != Wait::Ready && !asked) fail("slept for a slot without asking for one");
    std::printf("%s\n", asked ? "asked for any slot" : "had its quota");
}

// --- eventcount --------------------------------------------------------------------------------------

struct Eventcount {
    std::atomic<u32> event{0}, sleeping{0};
};

// A sleep this long runs out only if its wake-up was lost, or the waker got no CPU for as long.
constexpr u64 kLost = 5 * kSecond;
constexpr u64 kLeastRounds = 100;

// Waits without spinning until ready(). => was a wake-up lost?
template <class Ready>
bool wait_for(Eventcount& e, Ready&& ready) {
    bool lost = false;
    while (sleep_unless(ready, e.event, e.sleeping, ~0ULL, 0, kLost, lost) != Wait::Ready)
        check_deadline("the eventcount");
    return lost;
}

// `sleepers` threads share one eventcount, as the threads of a publisher do; a waker raises a number and
// waits for all their answers on another one.
void ping_pong(u64 until, u32 sleepers) {
    Eventcount ping, pong;
    std::atomic<u64> round{0}, answers{0}, lost{0};
    std::vector<std::thread> threads;
    for (u32 i = 0; i < sleepers; ++i)
        threads.emplace_back([&] {
            for (u64 next = 1;; ++next) {
                if (wait_for(ping, [&] { return round.load() >= next; })) lost.fetch_add(1);
                if (round.load() == ~0ULL) return;
                answers.fetch_add(1);
                wake_if_sleeping(pong.event, pong.sleeping);
            }
        });
    u64 rounds = 0;
    while (now_ns() < until || rounds < kLeastRounds) {
        round.store(++rounds);
        wake_if_sleeping(ping.event, ping.sleeping);
        if (wait_for(pong, [&] { return answers.load() == rounds * sleepers; })) lost.fetch_add(1);
    }
    round.store(~0ULL);
    wake_if_sleeping(ping.event, ping.sleeping);
    for (std::thread& t : threads) t.join();
    if (lost.load()) fail("%lu wake-ups were lost in %lu rounds", lost.load(), rounds);
    std::printf("%u sleepers: %lu rounds, none lost\n", sleepers, rounds);
}

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    const u64 seconds = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 2;
    const u64 begin = now_ns(), until = begin + seconds * kSecond;
    give_up = until + kPatience;
    if (mode == "publishers") {
        stress(seconds, 0, false);
    } else if (mode == "linger") {
        stress(seconds, 300'000, false);
    } else if (mode == "serve") {
        stress(seconds, 0, true);
    } else if (mode == "readers" || mode == "lossy") {
        subscribers(seconds, mode == "lossy");
    } else if (mode == "commit") {
        Litmus(1).run(begin + seconds * kSecond / 2);
        Litmus(2).run(until);
    } else if (mode == "waiting") {
        quota_then_slot();
    } else if (mode == "eventcount") {
        ping_pong(begin + seconds * kSecond / 2, 1);
        ping_pong(until, 3);
    } else {
        std::fprintf(stderr,
                     "usage: ring_stress publishers|linger|serve|readers|lossy|commit|waiting|eventcount SECONDS\n");
        return 2;
    }
    return 0;
}

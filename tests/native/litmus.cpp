// Runs the pairs of litmus_pairs.hpp with real threads, round after round, built with sanitizers by test_litmus.py and
// for other machines by tools/aarch64.
//
// usage: litmus ROUNDS [NAME ...]     each pair about so often; a hang ends at a deadline
//
// In a batch of kBatch rounds each thread goes through its part of all of them without waiting for the others, so that
// they meet at different instructions; the batch is judged when all have ended.
#include <sys/mman.h>

#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "litmus_pairs.hpp"

namespace {

using namespace litmus;

constexpr u64 kBatch = 64;
constexpr u64 kSleepRounds = 20;  // of those whose threads sleep, one is played where others are played so often
// The copy of a lossy subscriber is a race, by design; ThreadSanitizer is right.
#if defined(__SANITIZE_THREAD__)
constexpr bool kRaces = false;
#else
constexpr bool kRaces = true;
#endif
constexpr u64 kPatience = 90'000'000'000;

[[noreturn]] void fail(const char* pair, const std::string& what) {
    std::fprintf(stderr, "FORBIDDEN: %s: %s\n", pair, what.c_str());
    std::fflush(stderr);
    std::_Exit(1);
}

class Real : public World {
public:
    explicit Real(const char* name) : name_(name) {}
    bool real() const noexcept override { return true; }
    [[noreturn]] void forbidden(const std::string& what) override { fail(name_, what); }
    bool asleep(int) const override { return false; }

private:
    const char* name_;
};

// The rings of a batch.
class Rings {
public:
    explicit Rings(u32 slots) : geometry_(Geometry::plan(slots, kSlotBytes, 2, 2)) {
        base_ = static_cast<char*>(
            mmap(nullptr, kBatch * geometry_.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED) fail("mmap", std::strerror(errno));
    }
    ~Rings() { munmap(base_, kBatch * geometry_.total_bytes); }
    Rings(const Rings&) = delete;
    Rings& operator=(const Rings&) = delete;

    // An empty ring again. The pages with the statistics stay as they are.
    Ring fresh(u64 i) {
        char* base = base_ + i * geometry_.total_bytes;
        const Ring ring(base, geometry_);
        clear(&ring.control(), offsetof(Control, batches));
        for (u32 p = 0; p < geometry_.max_publishers; ++p)
            clear(&ring.publisher(p), offsetof(PublisherEntry, buffer_write));
        for (u32 s = 0; s < geometry_.max_subscribers; ++s) clear(&ring.subscriber(s), sizeof(SubscriberEntry));
        for (u32 t = 0; t < geometry_.tickets; ++t) ring.entry(t).store(0);
        for (u32 s = 0; s < geometry_.slots; ++s) {
            ring.slot(s).word.store(0);
            clear(ring.header_of(s), sizeof(BatchHeader));
            clear(ring.payload_of(s), kSlotBytes);
        }
        return ring;
    }

private:
    static void clear(void* from, std::size_t bytes) { std::memset(from, 0, bytes); }

    Geometry geometry_;
    char* base_;
};

void play(const Named& named, u64 rounds) {
    const std::unique_ptr<Pair> probe = named.make();
    if (!probe->for_real_threads() || (probe->races_by_design() && !kRaces)) {
        std::printf("%-18s not here\n", named.name);
        return;
    }
    if (probe->sleeps()) rounds = std::max<u64>(rounds / kSleepRounds, kBatch);
    const int n = probe->threads();
    Real world(named.name);
    Rings rings(probe->slots());
    std::vector<std::unique_ptr<Pair>> batch(kBatch);
    std::atomic<bool> over{false};
    std::barrier meet(n + 1);
    std::vector<std::thread> threads;
    for (int i = 0; i < n; ++i)
        threads.emplace_back([&, i] {
            for (;;) {
                meet.arrive_and_wait();
                if (over.load()) return;
                for (auto& pair : batch) pair->thread(i);
                meet.arrive_and_wait();
            }
        });
    const u64 end = now_ns() + kPatience;
    u64 done = 0;
    for (; done < rounds; done += kBatch) {
        for (u64 r = 0; r < kBatch; ++r) {
            batch[r] = named.make();
            batch[r]->begin(world, rings.fresh(r));
        }
        meet.arrive_and_wait();
        meet.arrive_and_wait();
        for (auto& pair : batch) pair->judge();
        if (now_ns() > end) fail(named.name, "too slow: " + std::to_string(done) + " rounds");
    }
    over.store(true);
    meet.arrive_and_wait();
    for (std::thread& t : threads) t.join();
    std::printf("%-18s %" PRIu64 " rounds, nothing forbidden\n", named.name, done);
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: litmus ROUNDS [NAME ...]\n");
        return 2;
    }
    const u64 rounds = std::strtoull(argv[1], nullptr, 10);
    const std::vector<std::string> names(argv + 2, argv + argc);
    u64 played = 0;
    for (const Named& n : kPairs) {
        if (!names.empty() && std::find(names.begin(), names.end(), n.name) == names.end()) continue;
        play(n, rounds);
        ++played;
    }
    if (played) return 0;
    std::fprintf(stderr, "there is no such pair; there are:\n");
    for (const Named& n : kPairs) std::fprintf(stderr, "  %s\n", n.name);
    return 2;
}

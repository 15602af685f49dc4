// What a round trip between two processes costs at least: two words, one for each direction, and nothing else.
//
// Each word has a cache line of its own and one writer. Round i is over when both words are i.
#pragma once

#include "layout.hpp"
#include "waiting.hpp"

namespace embar {

struct PingPong {
    alignas(kLine) std::atomic<u32> ping;
    alignas(kLine) std::atomic<u32> pong;
};

// One side of a game. `check` is called now and then while it waits, and may throw.
class Player {
public:
    Player(PingPong& game, bool serves, bool blocks) noexcept
        : mine_(serves ? game.ping : game.pong), theirs_(serves ? game.pong : game.ping), serves_(serves),
          blocks_(blocks) {}

    // Rounds `first` to `last`. => ns they took.
    template <class Check>
    u64 play(u32 first, u32 last, Check&& check) {
        const u64 begin = now_ns();
        for (u32 round = first; round <= last; ++round) {
            if (serves_) move(round);
            await(round, check);
            if (!serves_) move(round);
        }
        return now_ns() - begin;
    }

private:
    void move(u32 round) noexcept {
        mine_.store(round, std::memory_order_seq_cst);  // pairs with the loads in await(), and the kernel's look
        if (blocks_) futex_wake_all(mine_);
    }
    template <class Check>
    void await(u32 round, Check& check) {
        for (u32 spins = 0; theirs_.load(std::memory_order_acquire) != round;) {
            if (blocks_) {
                if (futex_wait(theirs_, round - 1, kMaxSleepNs) != Sleep::Woken) check();
            } else {
                cpu_relax();
                if (++spins % (1U << 22) == 0) check();
            }
        }
    }

    std::atomic<u32>& mine_;
    std::atomic<u32>& theirs_;
    bool serves_;
    bool blocks_;
};

}  // namespace embar

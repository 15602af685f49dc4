// A lock that costs its usual holder two plain stores and two loads, and nobody else much.
//
// The publishing threads of a Python program take turns anyway: they hold the GIL when they lock. The only
// other party is the linger thread, which comes once in a while. So the lock is biased: publishing threads
// store and look, the linger thread pays for both with membarrier(2), which makes every running thread of
// the process pass a full barrier (asymmetric Dekker; liburcu and folly do the same).
//
//   publishing thread (GIL):   held = 1;  compiler barrier;  if wanted: held = 0, refused
//   linger thread:             wanted = 1;  membarrier();    if held: wanted = 0, refused
//
// Either the publishing thread's load of `wanted` comes after the membarrier and sees 1, or its store of
// `held` comes before it and the linger thread sees that. Both may be refused, never both granted.
//
// A publishing thread may drop the GIL while it holds the lock (to wait, to copy much); the others then find
// `held` set. Without a GIL, without membarrier, and under ThreadSanitizer (which does not know it), the
// lock is not biased: both sides exchange `held`.
#pragma once

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace embar {

class BiasedLock {
public:
    // `turns`: the callers of try_lock() never run it at the same time (they hold the GIL).
    explicit BiasedLock(bool turns) noexcept
        : biased_(turns && syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0) {}

    bool try_lock() noexcept {
        if (!biased_) return held_.exchange(1, std::memory_order_acquire) == 0;
        if (held_.load(std::memory_order_relaxed)) return false;  // ordered by the GIL
        held_.store(1, std::memory_order_relaxed);
        std::atomic_signal_fence(std::memory_order_seq_cst);  // the CPU's half is the membarrier below
        if (wanted_.load(std::memory_order_acquire)) {        // acquire: pairs with unlock_remote()
            held_.store(0, std::memory_order_release);        // carries the unlock() before it
            return false;
        }
        return true;
    }
    // Release: pairs with both try_lock*(). Not biased, an exchange: it also drains non-temporal stores of this CPU,
    // which another thread may be about to commit. (Biased, membarrier or the GIL's own hand-over does.)
    void unlock() noexcept {
        if (biased_)
            held_.store(0, std::memory_order_release);
        else
            held_.exchange(0, std::memory_order_seq_cst);
    }

    // For the one thread that does not take turns.
    bool try_lock_remote() noexcept {
        if (!biased_) return held_.exchange(1, std::memory_order_acquire) == 0;
        wanted_.store(1, std::memory_order_relaxed);
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0 &&
            held_.load(std::memory_order_acquire) == 0)
            return true;
        wanted_.store(0, std::memory_order_relaxed);
        return false;
    }
    void unlock_remote() noexcept {
        if (biased_)
            wanted_.store(0, std::memory_order_release);
        else
            unlock();
    }

    // In a forked child, which has neither the holder nor the linger thread.
    void reset() noexcept {
        held_.store(0, std::memory_order_relaxed);
        wanted_.store(0, std::memory_order_relaxed);
    }

private:
    std::atomic<std::uint32_t> held_{0};
    std::atomic<std::uint32_t> wanted_{0};
    const bool biased_;
};

}  // namespace embar

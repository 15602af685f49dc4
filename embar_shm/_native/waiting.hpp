// Sleeping and waking across processes: clock, futex, eventcount, spin policy.
//
// The eventcount is two words in shared memory, `event` and `sleeping`:
//
//   waiter:  seen = event; sleeping = 1; if the condition holds: done; futex_wait(event, seen)
//   waker:   make the condition true; if sleeping: sleeping = 0, event += 1, futex_wake
//
// Invariant: either the waiter sees the condition, or the waker sees `sleeping` (Dekker). It needs
// StoreLoad order on both sides; all four accesses, and the store that makes the condition true, are
// seq_cst, so one total order contains them (C++20 [atomics.order]). No fences: ThreadSanitizer does not
// know them. The waiter never clears `sleeping` (another thread of the process may rely on it): only the
// waker does, and a left-over 1 costs one superfluous wake. Because the waker takes the flag with an
// exchange, many wakers of one sleeper make one system call.
//
// Death of the waker between taking the flag and the futex call loses one wake-up. Every sleep is therefore
// bounded by kMaxSleepNs; callers count the sleeps that ran out although the condition held.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdio>

namespace embar {

inline constexpr std::uint64_t kMaxSleepNs = 100'000'000;  // 100 ms
// What a caller that looks at signals in between gives as deadline: longer than one sleep, which so is a whole one.
inline constexpr std::uint64_t kSliceNs = 2 * kMaxSleepNs;

inline std::uint64_t now_ns() noexcept {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000ULL + static_cast<std::uint64_t>(t.tv_nsec);
}

// The same clock to about 4 ms, in a fifth of the time: for what only diagnoses.
inline std::uint64_t coarse_now_ns() noexcept {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000ULL + static_cast<std::uint64_t>(t.tv_nsec);
}

inline void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield" ::: "memory");
#endif
}

enum class Sleep { Woken, TimedOut, Interrupted };

// Not FUTEX_PRIVATE: the word is mapped at different addresses in different processes.
inline Sleep futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen, std::uint64_t ns) noexcept {
    timespec t{static_cast<time_t>(ns / 1'000'000'000ULL), static_cast<long>(ns % 1'000'000'000ULL)};
    const long r = syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, seen, &t, nullptr, 0);
    if (r == 0 || errno == EAGAIN) return Sleep::Woken;
    return errno == EINTR ? Sleep::Interrupted : Sleep::TimedOut;
}

inline void futex_wake_all(std::atomic<std::uint32_t>& word) noexcept {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Waker side; true when somebody was (perhaps) asleep. Pairs with sleep_unless().
inline bool wake_if_sleeping(std::atomic<std::uint32_t>& event, std::atomic<std::uint32_t>& sleeping) noexcept {
    if (sleeping.load(std::memory_order_seq_cst) == 0) return false;
    if (sleeping.exchange(0, std::memory_order_seq_cst) == 0) return false;  // another waker has it
    event.fetch_add(1, std::memory_order_seq_cst);
    futex_wake_all(event);
    return true;
}

// The same without a look at the flag, which a dead waker may have taken back.
inline void wake_whoever_sleeps(std::atomic<std::uint32_t>& event, std::atomic<std::uint32_t>& sleeping) noexcept {
    sleeping.store(0, std::memory_order_seq_cst);
    event.fetch_add(1, std::memory_order_seq_cst);
    futex_wake_all(event);
}

enum class WaitMode : int { Adaptive = 0, Spin = 1, Block = 2 };

// Do more tasks want to run on this machine than it has CPUs? (Fourth field of /proc/loadavg: "runnable/all".)
// One read of about 1 us every 10 ms at most, per process; if it cannot be read, nothing is known: no.
inline bool crowded() noexcept {
    static std::atomic<std::uint64_t> look_again{0};
    static std::atomic<bool> known{false};
    static const int fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    static const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const std::uint64_t now = now_ns();
    if (now < look_again.load(std::memory_order_relaxed)) return known.load(std::memory_order_relaxed);
    look_again.store(now + 10'000'000, std::memory_order_relaxed);
    char text[64];
    const ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    long runnable = 0;
    if (n > 0) {
        text[n] = 0;
        sscanf(text, "%*s %*s %*s %ld/", &runnable);
    }
    known.store(runnable > cpus, std::memory_order_relaxed);
    return runnable > cpus;
}

// How long to spin before sleeping. Spinning while more processes than CPUs want to run halves the
// throughput or worse, so Adaptive spins only while everybody in this ring could have a CPU of his own and
// the machine has CPUs to spare, and stops trying for a while after spins that found nothing.
struct SpinOptions {
    WaitMode mode = WaitMode::Adaptive;
    std::uint64_t spin_ns = 50'000;
    unsigned cpus = 1;  // this process may use: affinity and cgroup quota
};

class SpinPolicy {
public:
    explicit SpinPolicy(const SpinOptions& options) noexcept : options_(options) {}

    // Was spinning asked for, whatever else runs?
    bool spins() const noexcept { return options_.mode == WaitMode::Spin; }
    unsigned cpus() const noexcept { return options_.cpus; }
    // How long to spin now; `participants` processes share this ring.
    std::uint64_t budget_ns(unsigned participants) noexcept {
        if (options_.mode == WaitMode::Block) return 0;
        if (options_.mode == WaitMode::Spin) return options_.spin_ns;
        if (participants > options_.cpus || crowded()) return 0;
        const unsigned pause = pause_.load(std::memory_order_relaxed);
        if (pause == 0) return options_.spin_ns;
        pause_.store(pause - 1, std::memory_order_relaxed);
        return 0;
    }
    void outcome(bool found) noexcept {
        const unsigned misses = found ? 0 : std::min(misses_.load(std::memory_order_relaxed) + 1, 6U);
        misses_.store(misses, std::memory_order_relaxed);
        pause_.store((1U << misses) - 1, std::memory_order_relaxed);
    }

private:
    SpinOptions options_;
    std::atomic<unsigned> misses_{0};  // a heuristic shared by the threads of one publisher: relaxed
    std::atomic<unsigned> pause_{0};
};

enum class Wait { Ready, TimedOut, Interrupted, Again };

// Spins, then sleeps once, until ready() or the deadline.
// => Ready        ready() returned true
// => TimedOut     the deadline has passed
// => Interrupted  a signal arrived; the caller lets Python look at it and calls again
// => Again        woken for something else, or max_sleep_ns is over: the caller looks around and calls again
// `ran_out_while_ready` is set when a whole kMaxSleepNs passed although ready() holds and no wake-up is on its
// way: one was lost. (Shorter sleeps prove nothing: their waker may be waiting for a CPU, just before its wake.)
// ready() must load its words seq_cst.
template <class Ready>
Wait sleep_unless(Ready&& ready, std::atomic<std::uint32_t>& event, std::atomic<std::uint32_t>& sleeping,
                  std::uint64_t deadline_ns, std::uint64_t spin_ns, std::uint64_t max_sleep_ns,
                  bool& ran_out_while_ready) {
    if (ready()) return Wait::Ready;
    std::uint64_t now = now_ns();
    if (spin_ns) {
        const std::uint64_t end = std::min(now + spin_ns, deadline_ns);
        do {
            for (int i = 0; i < 32; ++i) cpu_relax();
            if (ready()) return Wait::Ready;
            now = now_ns();
        } while (now < end);
    }
    if (now >= deadline_ns) return Wait::TimedOut;
    const std::uint32_t seen = event.load(std::memory_order_seq_cst);
    sleeping.store(1, std::memory_order_seq_cst);  // pairs with the load in wake_if_sleeping()
    if (ready()) return Wait::Ready;
    const std::uint64_t sleep_ns = std::min(deadline_ns - now, max_sleep_ns);
    const Sleep s = futex_wait(event, seen, sleep_ns);
    if (ready()) {
        // Nobody took the flag and the event did not move: whoever made this ready never saw us asleep.
        if (s == Sleep::TimedOut && sleep_ns >= kMaxSleepNs && sleeping.load(std::memory_order_seq_cst) == 1 &&
            event.load(std::memory_order_seq_cst) == seen)
            ran_out_while_ready = true;
        return Wait::Ready;
    }
    if (s == Sleep::Interrupted) return Wait::Interrupted;
    return now_ns() >= deadline_ns ? Wait::TimedOut : Wait::Again;
}

}  // namespace embar

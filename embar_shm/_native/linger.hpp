// A thread that commits a batch which has been open for too long, so that a partial batch never waits forever.
//
// The publishing threads say when a batch was opened and when it is closed; the thread sleeps until the batch
// that is open then is due, and asks for its commit. While no batch is open it sleeps until one is: only then
// does opening a batch cost a wake-up. It knows nothing of slots; `commit` does the work, under the publisher's lock.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <functional>
#include <thread>

#include "waiting.hpp"

namespace embar {

class Linger {
public:
    enum class Tried {
        Done,  // committed, or closed meanwhile
        Busy,  // somebody is writing to it: ask again soon
        Over,  // the publisher is closed or broken
    };

    // `commit(since)` commits the open batch if it is the one opened at `since`.
    Linger(std::uint64_t linger_ns, std::function<Tried(std::uint64_t)> commit)
        : linger_ns_(linger_ns), commit_(std::move(commit)), thread_([this] { run(); }) {}
    // Ends the thread and waits for it. Not under the lock that `commit` blocks on (it only tries to take one).
    ~Linger() {
        stopping_.store(true, std::memory_order_seq_cst);
        wake_if_sleeping(idle_event_, idle_sleeping_);
        wake_if_sleeping(stop_event_, stop_sleeping_);
        thread_.join();
    }
    Linger(const Linger&) = delete;
    Linger& operator=(const Linger&) = delete;

    // Under the publisher's lock.
    void opened(std::uint64_t at) noexcept {
        open_since_.store(at, std::memory_order_seq_cst);  // seq_cst: the condition of the idle eventcount
        wake_if_sleeping(idle_event_, idle_sleeping_);
    }
    void closed() noexcept { open_since_.store(0, std::memory_order_relaxed); }
    std::uint64_t open_since() const noexcept { return open_since_.load(std::memory_order_relaxed); }

private:
    void run() noexcept {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals belong to the program's own threads
        bool missed = false;
        const auto stopping = [this] { return stopping_.load(std::memory_order_seq_cst); };
        while (!stopping()) {
            const std::uint64_t since = open_since_.load(std::memory_order_seq_cst);
            if (since == 0) {
                sleep_unless([&] { return stopping() || open_since_.load(std::memory_order_seq_cst) != 0; },
                             idle_event_, idle_sleeping_, ~0ULL, 0, kIdleNs, missed);
                continue;
            }
            const std::uint64_t now = now_ns();
            if (now < since + linger_ns_) {
                sleep_unless(stopping, stop_event_, stop_sleeping_, since + linger_ns_, 0, kIdleNs, missed);
                continue;
            }
            const Tried tried = commit_(since);
            if (tried == Tried::Over) return;
            if (tried == Tried::Busy)
                sleep_unless(stopping, stop_event_, stop_sleeping_, now + kRetryNs, 0, kRetryNs, missed);
        }
    }

    static constexpr std::uint64_t kIdleNs = 10'000'000'000;
    static constexpr std::uint64_t kRetryNs = 1'000'000;

    const std::uint64_t linger_ns_;
    const std::function<Tried(std::uint64_t)> commit_;
    std::atomic<std::uint64_t> open_since_{0};  // when the open batch was claimed; 0: none
    std::atomic<bool> stopping_{false};
    std::atomic<std::uint32_t> idle_event_{0}, idle_sleeping_{0};
    std::atomic<std::uint32_t> stop_event_{0}, stop_sleeping_{0};
    std::thread thread_;  // last: it uses the others from its start
};

}  // namespace embar

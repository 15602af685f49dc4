// The relay: sends what one publisher commits to a ring of its own, somewhere else.
//
// A publisher without a broker on its machine fills batches in a private ring, with one row and as many slots as
// it may have in flight (transports/tcp.py). The relay stands in for the broker there: one thread takes committed
// batches in order and sends them; a batch is accepted and its slot released only when the distant broker has
// acknowledged it. Until then it can be sent again.
//
// With one publisher that counts from the beginning, batch `seq` is ticket `seq - 1`.
#pragma once

#include <mutex>

#include "broker.hpp"

namespace embar {

class Relay {
public:
    Relay(Ring ring, const SpinOptions& spin)
        : ring_(ring), broker_(ring, -1, spin, /*stage_times=*/false), spin_(spin) {}

    const Ring& ring() const noexcept { return ring_; }

    // Sleeps (one slice) until batch `seq` is committed, or wake().
    Wait wait_committed(u64 seq, u64 deadline_ns) noexcept {
        Control& c = ring_.control();
        bool missed = false;
        const Wait w = sleep_unless([&] { return ring_.holds(seq - 1) || woken_.load(std::memory_order_seq_cst); },
                                    c.event, c.sleeping, deadline_ns, spin_.budget_ns(2), kMaxSleepNs, missed);
        spin_.outcome(w == Wait::Ready);
        woken_.store(false, std::memory_order_seq_cst);
        if (missed) Histogram::add(c.missed_wakeups, 1);
        return w;
    }
    // Where a batch that is committed and not acknowledged lies. => false: it is neither.
    bool find(u64 seq, Ring::Committed& where) noexcept {
        const std::scoped_lock guard(mutex_);
        return seq > acknowledged_ && ring_.holds(seq - 1) && ring_.look(seq - 1, where) == Ring::Look::Committed;
    }
    // Releases everything up to `seq`. => false: some of it was never committed.
    bool acknowledge(u64 seq) noexcept {
        const std::scoped_lock guard(mutex_);
        for (; acknowledged_ < seq; ++acknowledged_) {
            Accepted a;
            if (!broker_.accept(a)) return false;
            broker_.release_next();  // wakes the publisher for both
        }
        return true;
    }
    u64 acknowledged() noexcept {
        const std::scoped_lock guard(mutex_);
        return acknowledged_;
    }
    // Ends the present or next wait_committed(). Any thread.
    void wake() noexcept {
        woken_.store(true, std::memory_order_seq_cst);
        wake_if_sleeping(ring_.control().event, ring_.control().sleeping);
    }
    // Nothing will be acknowledged any more: whoever waits learns it.
    void abandon() noexcept { broker_.abandon(); }

private:
    Ring ring_;
    std::mutex mutex_;  // the sender and the reader of acknowledgements
    Broker broker_;
    SpinPolicy spin_;  // of the sender
    u64 acknowledged_ = 0;
    std::atomic<bool> woken_{false};
};

}  // namespace embar

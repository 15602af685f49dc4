// The broker at work: accepts, releases and reaps (log.hpp), tells everybody, and sleeps in between.
#pragma once

#include "log.hpp"

namespace embar {

class Broker : public Log {
public:
    enum class Result { TimedOut, Stopped, Interrupted, Corrupt, Ready };

    // The log begins where the ring is, see there.
    Broker(Ring ring, int lock_fd, const SpinOptions& spin, bool stage_times = true, u32 retain = 0)
        : Log(ring, lock_fd, stage_times, retain), spin_(spin) {
        if (corruption_) return;
        Control& c = ring_.control();
        c.broker_pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
        c.epoch.store(c.epoch.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        c.look_around.store(1, std::memory_order_relaxed);  // somebody may have joined or left meanwhile
        c.state.store(static_cast<u32>(BrokerState::Serving), std::memory_order_seq_cst);
        peers_.rouse_all();
        gates_.rouse_all();
    }

    // Wakes who waits for an acknowledgement, where a release does not follow at once.
    void announce(u32 owner) noexcept { peers_.wake(owner); }

    // Releases and accepts what there is, tells everybody about it. => how many batches were accepted.
    // In this order, because who waits for a batch does not wait for the release of the one before.
    // `later`: the caller comes back for the release of these only when it has read them.
    int sweep(bool wanted, bool later = false) noexcept {
        if (released_ < head_) release(wanted);
        Accepted a;
        int n = 0;
        const u64 before = head_;
        while (n < kSweep && accept(a)) ++n;
        if (n == 0) return 0;
        // Again, seq_cst: the condition of the subscribers' eventcount. One wake-up for all of a sweep.
        ring_.control().head.store(head_, std::memory_order_seq_cst);
        if (later || !crowd() || now_ns() - told_ns_ >= kNewsEveryNs)
            tell();
        else
            untold_ = true;
        if (later || gates_.any_reliable())  // else the release that follows wakes them
            for (u64 t = before; t < head_; ++t) announce(accepted_[t % accepted_.size()].where.owner);
        return n;
    }

    // Answers subscribers that are joining.
    void admit() noexcept { gates_.admit(released_, head_); }

    // Looks for work for a few microseconds, in mode "spin"; else once. => `head` is beyond `until`.
    bool look_briefly(u64 until) noexcept {
        for (int i = 0; i < kBriefLooks; ++i) {
            sweep(false, true);
            if (head_ > until) return attend_in_passing();
            if (!spin_.spins()) return false;
            cpu_relax();
        }
        return false;
    }

    // Works and sleeps until the deadline, a stop() or a signal, or until `head` is beyond `until` (Ready). Comes
    // back in time under any load.
    Result serve(u64 deadline_ns, u64 until = kNoTicket) noexcept {
        Control& c = ring_.control();
        u64 last = kNoTicket;  // set by stop(): what is committed by then is less than a lap ahead
        for (;;) {
            const int n = sweep(c.space_waiters.load(std::memory_order_seq_cst) != 0, until != kNoTicket);
            if (head_ > until) {  // the caller is a subscriber: the release waits for its return
                attend_in_passing();
                return Result::Ready;
            }
            if (corruption_) {
                quarantine();  // nobody shall wait for what will not come
                return Result::Corrupt;
            }
            if (stop_.load(std::memory_order_seq_cst)) {
                if (last == kNoTicket) last = head_ + ring_.geometry().tickets;
                if (n == 0 || head_ >= last) {
                    if (untold_) tell();
                    release(false);
                    return Result::Stopped;
                }
            }
            const u64 now = now_ns();
            // In this order: who calls has given a slot back first, and who waits has asked before that or sees it.
            const bool called = c.look_around.load(std::memory_order_seq_cst) != 0;
            if (called) attend();
            if ((called || now >= next_reap_) && !audit()) continue;
            const bool wanted = c.space_waiters.load(std::memory_order_seq_cst) != 0;
            const bool due = now >= deadline_ns || now - told_ns_ >= kNewsEveryNs;
            if (untold_ && (due || wanted || c.quota_waiters.load(std::memory_order_seq_cst))) tell();
            if (now >= next_reap_ || (wanted && n == 0 && !called)) {
                reap();
                next_reap_ = now + kReapEveryNs;
            }
            if (now >= deadline_ns) {
                release(wanted);
                return Result::TimedOut;
            }
            if (n > 0) {
                idle_ = 0;
                continue;
            }
            if (gates_.reap_slowest()) continue;  // the dead hold nothing back
            const u64 gate = gates_.lowest(head_);
            if (passed_ < gate) continue;  // somebody passed it, or left, after the sweep: nobody will wake us for that
            const u32 slowest = gates_.watch();
            bool missed = false;
            Histogram::add(c.sleeps, 1);
            c.news_held_back.store(untold_, std::memory_order_seq_cst);  // pairs with PublisherRow::wait_space()
            // A subscriber that holds batches may die: soon to be seen while somebody waits or did a moment ago, and
            // seldom looked for where one just keeps the last batch and nothing happens.
            const bool waited_for = wanted || c.quota_waiters.load(std::memory_order_relaxed) != 0;
            idle_ = waited_for || !slowest ? 0 : std::min(idle_ + 1, kMostIdle);
            const u64 longest = !waited_for && !slowest ? kMaxSleepNs : std::min(kWantedSleepNs << idle_, kMaxSleepNs);
            const unsigned attached =
                c.attached.load(std::memory_order_relaxed) + c.subscribers.load(std::memory_order_relaxed);
            const Wait w = sleep_unless(
                [&] {
                    return ring_.holds(head_) || stop_.load(std::memory_order_seq_cst) ||
                           c.look_around.load(std::memory_order_seq_cst) != 0 ||
                           (slowest && (gates_.lowest(head_) > gate || gates_.slowest() != slowest)) ||
                           (untold_ && (c.quota_waiters.load(std::memory_order_seq_cst) ||
                                        c.space_waiters.load(std::memory_order_seq_cst))) ||
                           (released_ < std::min(passed_, gate) && c.space_waiters.load(std::memory_order_seq_cst) &&
                            !ring_.any_free());
                },
                c.event, c.sleeping, deadline_ns, spin_.budget_ns(1 + attached),
                untold_ ? told_ns_ + kNewsEveryNs - now : longest, missed);
            spin_.outcome(w == Wait::Ready);
            if (missed) Histogram::add(c.missed_wakeups, 1);
            if (w == Wait::Interrupted) {
                if (untold_) tell();
                return Result::Interrupted;
            }
        }
    }

    // Ends serve() after it has accepted what is committed. Any thread; async-signal-safe.
    void stop() noexcept {
        stop_.store(true, std::memory_order_seq_cst);
        wake_if_sleeping(ring_.control().event, ring_.control().sleeping);
    }
    void resume() noexcept { stop_.store(false, std::memory_order_seq_cst); }

    // The end without accepting anything: what is committed stays where it is, and unacknowledged.
    void abandon() noexcept { end(BrokerState::Stopped); }

    // The end: nobody may begin another batch, what is committed is accepted, everybody is told. A batch that
    // is committed after that is not in the log, and its publisher will know. Subscribers read on: from now on
    // nothing is released.
    void retire() noexcept {
        if (corruption_) return quarantine();
        ring_.control().state.store(static_cast<u32>(BrokerState::Stopping), std::memory_order_seq_cst);
        while (sweep(false) > 0) {}  // the last one releases only
        abandon();
    }

private:
    // Do subscribers have to take turns on the CPUs? Waking all of them for each batch of a steady flow would leave
    // little time for the rest, so they hear of several at a time: of the first at once, of those that follow within
    // kNewsEveryNs together, or as soon as a publisher has to wait.
    bool crowd() const noexcept { return gates_.count_of_all() > spin_.cpus(); }
    void tell() noexcept {
        untold_ = false;
        if (crowd()) told_ns_ = now_ns();
        if (gates_.tell()) Histogram::add(ring_.control().wakes_sent, 1);
    }

    // Looks after those who called: they join, have left, or have given a slot back.
    void attend() noexcept {
        Control& c = ring_.control();
        if (c.look_around.exchange(0, std::memory_order_seq_cst) == 0) return;
        admit();
        reap();
        if (c.space_waiters.load(std::memory_order_seq_cst)) peers_.wake_one_space_waiter();
    }
    // The same where a subscriber gets its batch: while there always is one, serve() comes no further. => true.
    bool attend_in_passing() noexcept {
        if (ring_.control().look_around.load(std::memory_order_relaxed)) attend();
        return true;
    }

    static constexpr int kSweep = 64;
    static constexpr int kBriefLooks = 200;
    static constexpr u64 kReapEveryNs = 50'000'000;   // while busy
    static constexpr u64 kWantedSleepNs = 5'000'000;  // while somebody waits for a slot
    static constexpr u64 kNewsEveryNs = 100'000;      // while subscribers are a crowd
    static constexpr u32 kMostIdle = 5;               // doublings of kWantedSleepNs

    SpinPolicy spin_;
    u64 next_reap_ = 0;
    u32 idle_ = 0;         // sleeps since something was accepted, up to kMostIdle
    u64 told_ns_ = 0;      // when the crowd was told
    bool untold_ = false;  // `head` has moved since
    std::atomic<bool> stop_{false};
};

}  // namespace embar

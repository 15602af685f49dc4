// The broker: sole consumer and sole reaper of one ring.
//
//   accept    look at the next ticket, copy the header once, check it, drop duplicates, acknowledge
//   pass      every subscriber is done with the ticket: it no longer counts against its publisher's quota
//   release   recycle the ticket, free the slot, wake whoever waits for it
//   reap      free what publishers and subscribers that are gone left behind (gates.hpp: subscribers)
//   serve     all of it, sleeping in between
//   recover   go on where the broker before this one was killed, whatever it was about to store
//
// An acknowledgement (`accepted_seq`) is absolute, and only ever the number of batches that form an unbroken
// prefix of the publisher's sequence, each wholly in the log: it is stored after the batch's own ticket was
// accepted, and a batch that would leave a gap is refused.
//
// released <= passed <= head. What lies between `released` and `passed` is retained for subscribers that come
// late or are lossy; it is given up as soon as a publisher finds no free slot.
//
// What the next step depends on is kept in private memory and only published to the segment: nobody can make the broker
// acknowledge, release or skip by writing there. A new broker believes the segment once, after it has checked it.
#pragma once

#include <vector>

#include "gates.hpp"
#include "invariants.hpp"
#include "peers.hpp"

namespace embar {

struct Accepted {
    u64 ticket;
    Ring::Committed where;
    BatchHeader header;
    Verdict verdict;
};

class Broker {
public:
    enum class Result { TimedOut, Stopped, Interrupted, Corrupt, Ready };

    // What was found when it began.
    struct Recovered {
        u64 head = 0;                  // batches that were accepted before
        u64 unread = 0;                // of them still in the ring
        u64 unaccepted = 0;            // committed since, and accepted from now on
        bool release = false;          // was cut short, and is finished
        bool acknowledgement = false;  // the same
        u32 slots = 0;                 // that were being filled from a network, and are free again
    };

    // `lock_fd`: an open file description of the segment on which the broker's byte is locked; -1 on a
    // plain buffer (tests), where nobody is ever found dead. Without `stage_times` no clock is read for them.
    // `retain`: batches that stay readable after everybody has read them.
    // When corruption() tells something afterwards, the segment is quarantined.
    Broker(Ring ring, int lock_fd, const SpinOptions& spin, bool stage_times = true, u32 retain = 0)
        : ring_(ring), stage_times_(stage_times), spin_(spin), gates_(ring, lock_fd, retain), peers_(ring, lock_fd),
          accepted_(ring.geometry().tickets), held_(ring.geometry().slots) {
        if (!recover()) return;
        Control& c = ring_.control();
        c.broker_pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
        c.epoch.store(c.epoch.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        c.look_around.store(1, std::memory_order_relaxed);  // somebody may have joined or left meanwhile
        c.state.store(static_cast<u32>(BrokerState::Serving), std::memory_order_seq_cst);
        peers_.rouse_all();
        gates_.rouse_all();
    }

    const Ring& ring() const noexcept { return ring_; }
    // What is wrong with the segment, if anything.
    const Finding& corruption() const noexcept { return corruption_; }
    const Recovered& recovered() const noexcept { return recovered_; }
    Peers& peers() noexcept { return peers_; }
    Gates& gates() noexcept { return gates_; }
    struct Position {
        u64 released, passed, head;
    };
    Position position() const noexcept { return {released_, passed_, head_}; }
    // CLOCK_MONOTONIC of the first batch it accepted, 0: there was none yet. Any thread.
    u64 first_accept_ns() const noexcept { return first_accept_ns_.load(std::memory_order_relaxed); }

    // Accepts the next committed ticket.
    // => true: `out` tells what it was; it holds its slot until release_next(). => false: there is none, or
    // the segment is corrupt (corruption() says what).
    bool accept(Accepted& out) noexcept {
        if (head_ - released_ >= ring_.geometry().tickets) return false;  // everything waits for its release
        const Ring::Look look = ring_.look(head_, out.where);
        if (look == Ring::Look::Empty) return false;
        if (look == Ring::Look::Corrupt) {
            diagnose("a ticket entry and its slot word do not belong together");
            return false;
        }
        if (held_[out.where.slot]) {
            diagnose("two tickets refer to one slot");
            return false;
        }
        held_[out.where.slot] = true;
        const u64 begin = clock();
        Control& c = ring_.control();
        std::memcpy(&out.header, ring_.header_of(out.where.slot), sizeof out.header);  // the one copy
        out.ticket = head_;
        out.verdict = peers_.judge(out.header, out.where.owner);
        switch (out.verdict) {
            case Verdict::Accepted:
                Histogram::add(c.batches, 1);
                Histogram::add(c.messages, out.header.messages);
                Histogram::add(c.payload_bytes, out.header.payload_bytes);
                break;
            case Verdict::Duplicate: Histogram::add(c.duplicated, 1); break;
            case Verdict::OutOfOrder: Histogram::add(c.out_of_order, 1); break;
            case Verdict::BadHeader: Histogram::add(c.corrupt, 1); break;
        }
        if (out.verdict != Verdict::Accepted) ring_.refuse(head_);
        accepted_[head_ % accepted_.size()] = {out.where, peers_.record(out.header, out.where.owner, out.verdict)};
        ++head_;
        c.head.store(head_, std::memory_order_release);  // pairs with Subscriber::take()
        peers_.acknowledge(out.where.owner);             // after `head`: see recover()
        if (first_accept_ns_.load(std::memory_order_relaxed) == 0) [[unlikely]]
            first_accept_ns_.store(now_ns(), std::memory_order_relaxed);
        if (stage_times_) {
            c.validate.record(now_ns() - begin);
            if (out.verdict == Verdict::Accepted && out.header.committed_ns <= begin)
                c.queue.record(begin - out.header.committed_ns);
        }
        return true;
    }

    // Wakes who waits for an acknowledgement, where a release does not follow at once.
    void announce(u32 owner) noexcept { peers_.wake(owner); }

    // Passes and releases what every subscriber has passed, and wakes who waits for it. Keeps as much as is to be
    // retained, unless a slot is `wanted` and none is free.
    void release(bool wanted) noexcept {
        const u64 gate = gates_.lowest(head_), keep = gates_.retained();
        // A slot is free before its publisher hears that it may claim another one.
        for (; passed_ < gate; pass_next())
            while (released_ + keep <= passed_) free_next();
        while (released_ + keep < std::min(passed_, gate)) free_next();
        if (wanted)
            while (released_ < std::min(passed_, gate) && !ring_.any_free()) free_next();
    }
    // Releases the oldest accepted ticket, retained or not. => false: there is none, or a subscriber holds it.
    bool release_next() noexcept {
        if (released_ >= gates_.lowest(head_)) return false;
        free_next();
        if (passed_ < released_) pass_next();
        return true;
    }

    // Frees what participants that are gone left behind. => rows of publishers.
    u32 reap() noexcept {
        gates_.reap();
        return peers_.reap(head_, [this](u32 i) { inherit(i); });
    }
    // The same for one publisher whose owner is known to be gone. => false: come back after the next accept.
    bool reap_row(u32 i) noexcept {
        return peers_.reap_row(i, head_, [this](u32 row) { inherit(row); });
    }

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

    // Has anybody written where only the broker writes, or committed where nobody can? Each step depends on private
    // memory alone, but who reads these words is misled: publishers may wait for ever at a `tail` that was changed.
    // Some loads per row and ticket. => false: corruption() says what.
    bool audit() noexcept {
        const Control& c = ring_.control();
        const u64 head = c.head.load(std::memory_order_relaxed), released = c.released.load(std::memory_order_relaxed);
        const u32 state = c.state.load(std::memory_order_relaxed);
        constexpr const char* kOther = "%" PRIu64 ": the broker has stored %" PRIu64;
        if (corruption_) return false;
        if (head != head_)
            corruption_.set("control.head", kOther, head, head_);
        else if (released != released_)
            corruption_.set("control.released", kOther, released, released_);
        else if (state != static_cast<u32>(BrokerState::Serving))
            corruption_.set("control.state", "%u: the broker serves, which is %u", state,
                            static_cast<u32>(BrokerState::Serving));
        else if (peers_.audit(corruption_))
            find_damage();
        return !corruption_;
    }

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

    u64 clock() const noexcept { return stage_times_ ? now_ns() : 0; }

    // Every subscriber has passed the oldest ticket that was not passed.
    void pass_next() noexcept {
        const InLog& batch = accepted_[passed_ % accepted_.size()];
        ++passed_;
        peers_.pass(batch.where.owner, batch.batches);
    }
    void free_next() noexcept {
        const u64 begin = clock();
        const Ring::Committed where = accepted_[released_ % accepted_.size()].where;
        held_[where.slot] = false;
        ring_.release(released_, where);
        ++released_;
        ring_.control().released.store(released_, std::memory_order_release);
        if (ring_.control().space_waiters.load(std::memory_order_seq_cst)) peers_.wake_one_space_waiter();
        if (stage_times_) ring_.control().release.record(now_ns() - begin);
    }
    // The slots of publisher i's batches that are in the log are the log's from now on.
    void inherit(u32 i) noexcept {
        for (u64 t = released_; t < head_; ++t) {
            Ring::Committed& where = accepted_[t % accepted_.size()].where;
            if (where.owner != i) continue;
            where.owner = kLogOwner;
            ring_.inherit(where);
        }
    }

    void end(BrokerState state) noexcept {
        ring_.control().state.store(static_cast<u32>(state), std::memory_order_seq_cst);
        peers_.wake_all();
        gates_.tell();
    }
    // Some word cannot be: which? `otherwise`: what to say when all words look right by now.
    [[gnu::cold]] void diagnose(const char* otherwise) noexcept {
        find_damage();
        if (!corruption_) corruption_.set("tickets", "ticket %" PRIu64 ": %s", head_, otherwise);
    }
    LogBounds find_damage() noexcept {
        Invariants invariants(ring_);
        invariants.check_structure([this](const Finding& f) {
            if (!corruption_) corruption_ = f;
        });
        return invariants.bounds();
    }
    // The end of a segment whose words make no sense: nobody uses it any more, and it stays for whoever looks into it.
    [[gnu::cold]] void quarantine() noexcept {
        auto* header = ring_.segment_header();
        if (header->damage[0] == 0)
            std::snprintf(header->damage, sizeof header->damage, "%s: %s", corruption_.field, corruption_.text);
        end(BrokerState::Quarantined);
    }

    // --- restart ---

    // In a new segment there is nothing to recover. => false: it is damaged.
    bool recover() {
        if (ring_.control().state.load(std::memory_order_acquire) == static_cast<u32>(BrokerState::Quarantined)) {
            corruption_.set("control.state", "%u: a broker has quarantined it",
                            static_cast<u32>(BrokerState::Quarantined));
            return false;
        }
        const LogBounds bounds = find_damage();
        if (!corruption_) recover_log(bounds);
        if (!corruption_) return true;
        quarantine();
        return false;
    }
    void recover_log(const LogBounds& found) {
        if (found.release_cut_short) finish_release(found);
        released_ = found.released;
        head_ = recovered_.head = found.head;
        recovered_.unread = head_ - released_;
        if (!peers_.recover(corruption_)) return;
        Ring::Committed where;
        BatchHeader h;
        for (u64 t = released_; t < head_; ++t) {
            if (!ring_.look_again(t, where) || held_[where.slot]) return diagnose("it changed while it was looked at");
            held_[where.slot] = true;
            std::memcpy(&h, ring_.header_of(where.slot), sizeof h);  // the one copy
            const u64 batches = ring_.is_refused(t)
                                    ? 0
                                    : peers_.recover_batch(h, where.owner, t + 1 == head_, recovered_.acknowledgement);
            accepted_[t % accepted_.size()] = {where, batches};
        }
        peers_.recover_passed();
        gates_.recover(released_, head_);
        passed_ = released_;
        for (const u64 gate = gates_.lowest(head_); passed_ < gate;) pass_next();
        for (u64 t = head_; t < released_ + ring_.geometry().tickets && ring_.holds(t); ++t) ++recovered_.unaccepted;
        peers_.adopt([&](auto&& batch) {
            for (u64 t = head_; t < head_ + recovered_.unaccepted; ++t) {
                if (ring_.look(t, where) != Ring::Look::Committed) continue;  // accept() will tell
                std::memcpy(&h, ring_.header_of(where.slot), sizeof h);
                batch(h, where.owner);
            }
        });
        free_half_received();
    }
    // The slot may be free already, and even be somebody else's: then its generation is another one.
    void finish_release(const LogBounds& found) noexcept {
        std::atomic<u64>& word = ring_.slot(ticket::slot(found.journal)).word;
        const u64 w = word.load(std::memory_order_acquire), g = slot_word::generation(w);
        if (slot_word::is_owned(w) && (g & ticket::kGenerationMask) == ticket::generation(found.journal))
            word.store(slot_word::free(g + 1), std::memory_order_seq_cst);
        ring_.control().released.store(found.released, std::memory_order_release);
        recovered_.release = true;
    }
    // The slots that the process of the broker before was filling from a network: those of rows that are kept, and of
    // no ticket.
    void free_half_received() {
        std::vector<bool> committed = held_;
        for (u64 t = head_; t < head_ + recovered_.unaccepted; ++t) {
            const u32 s = ticket::slot(ring_.entry(t).load(std::memory_order_acquire));
            if (s < committed.size()) committed[s] = true;
        }
        for (u32 s = 0; s < committed.size(); ++s) {
            const u64 w = ring_.slot(s).word.load(std::memory_order_acquire);
            if (committed[s] || !slot_word::is_owned(w) || !peers_.is_kept(slot_word::owner(w))) continue;
            ring_.slot(s).word.store(slot_word::free(slot_word::generation(w) + 1), std::memory_order_seq_cst);
            ++recovered_.slots;
        }
    }

    struct InLog {
        Ring::Committed where;
        u64 batches;  // for Peers::pass()
    };

    Ring ring_;
    bool stage_times_;
    SpinPolicy spin_;
    Gates gates_;
    Peers peers_;
    std::vector<InLog> accepted_;  // by ticket: what its release needs, out of others' reach
    std::vector<bool> held_;       // by slot: accepted and not released
    u64 head_ = 0;
    u64 passed_ = 0;    // the oldest ticket that a subscriber has not passed
    u64 released_ = 0;  // the oldest ticket that holds its slot
    u64 next_reap_ = 0;
    u32 idle_ = 0;         // sleeps since something was accepted, up to kMostIdle
    u64 told_ns_ = 0;      // when the crowd was told
    bool untold_ = false;  // `head` has moved since
    std::atomic<u64> first_accept_ns_{0};
    std::atomic<bool> stop_{false};
    Finding corruption_;
    Recovered recovered_;
};

}  // namespace embar

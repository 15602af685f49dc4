// The broker: sole consumer and sole reaper of one ring.
//
//   accept    look at the next ticket, copy the header once, check it, drop duplicates, acknowledge
//   pass      every subscriber is done with the ticket: it no longer counts against its publisher's quota
//   release   recycle the ticket, free the slot, wake whoever waits for it
//   reap      free what publishers and subscribers that are gone left behind (gates.hpp: subscribers)
//   serve     all of it, sleeping in between
//
// An acknowledgement (`accepted_seq`) is absolute, and only ever the number of batches that form an unbroken
// prefix of the publisher's sequence, each wholly in the log: it is stored after the batch's own ticket was
// accepted, and a batch that would leave a gap is refused.
//
// released <= passed <= head. What lies between `released` and `passed` is retained for subscribers that come
// late or are lossy; it is given up as soon as a publisher finds no free slot.
//
// Sequence numbers and cursors are kept in private memory and only published to the segment: nobody can
// make the broker acknowledge, release or skip by writing there.
#pragma once

#include <vector>

#include "gates.hpp"
#include "liveness.hpp"
#include "ring.hpp"
#include "waiting.hpp"

namespace embar {

enum class Verdict { Accepted, Duplicate, OutOfOrder, BadHeader };

struct Accepted {
    u64 ticket;
    Ring::Committed where;
    BatchHeader header;
    Verdict verdict;
};

class Broker {
public:
    enum class Result { TimedOut, Stopped, Interrupted, Corrupt, Ready };

    // `lock_fd`: an open file description of the segment on which the broker's byte is locked; -1 on a
    // plain buffer (tests), where nobody is ever found dead. Without `stage_times` no clock is read for them.
    // `retain`: batches that stay readable after everybody has read them.
    Broker(Ring ring, int lock_fd, const SpinOptions& spin, bool stage_times = true, u32 retain = 0)
        : ring_(ring), lock_fd_(lock_fd), stage_times_(stage_times), spin_(spin), gates_(ring, lock_fd, retain),
          peers_(ring.geometry().max_publishers), accepted_(ring.geometry().tickets), held_(ring.geometry().slots) {
        Control& c = ring_.control();
        // What is accepted and not released is looked at again, and found to be a duplicate.
        head_ = passed_ = released_ = c.released.load(std::memory_order_relaxed);
        for (u32 i = 0; i < peers_.size(); ++i) {
            peers_[i].accepted_seq = ring_.publisher(i).accepted_seq.load(std::memory_order_relaxed);
            peers_[i].released = ring_.publisher(i).released_batches.load(std::memory_order_relaxed);
        }
        c.broker_pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
        c.epoch.store(c.epoch.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        c.state.store(static_cast<u32>(BrokerState::Serving), std::memory_order_seq_cst);
    }

    const Ring& ring() const noexcept { return ring_; }
    const char* corruption() const noexcept { return corruption_; }

    // Accepts the next committed ticket.
    // => true: `out` tells what it was; it holds its slot until release_next(). => false: there is none, or
    // the segment is corrupt (corruption() says what).
    bool accept(Accepted& out) noexcept {
        if (head_ - released_ >= ring_.geometry().tickets) return false;  // everything waits for its release
        const Ring::Look look = ring_.look(head_, out.where);
        if (look == Ring::Look::Empty) return false;
        if (look == Ring::Look::Corrupt) {
            corruption_ = "a ticket entry and its slot word do not belong together";
            return false;
        }
        if (held_[out.where.slot]) {
            corruption_ = "two tickets refer to one slot";
            return false;
        }
        held_[out.where.slot] = true;
        const u64 begin = clock();
        Control& c = ring_.control();
        std::memcpy(&out.header, ring_.header_of(out.where.slot), sizeof out.header);  // the one copy
        out.ticket = head_;
        out.verdict = judge(out.header, out.where.owner);
        Peer& peer = peers_[out.where.owner];
        PublisherEntry& row = ring_.publisher(out.where.owner);
        switch (out.verdict) {
            case Verdict::Accepted:
                Histogram::add(c.batches, 1);
                Histogram::add(c.messages, out.header.messages);
                Histogram::add(c.payload_bytes, out.header.payload_bytes);
                Histogram::add(row.accepted_messages, out.header.messages);
                Histogram::add(row.accepted_bytes, out.header.payload_bytes);
                peer.accepted_seq = out.header.seq;
                break;
            case Verdict::Duplicate: Histogram::add(c.duplicated, 1); break;
            case Verdict::OutOfOrder:
                Histogram::add(c.out_of_order, 1);
                accuse(row, Fault::OutOfOrder, out.header.seq);
                break;
            case Verdict::BadHeader:
                Histogram::add(c.corrupt, 1);
                accuse(row, Fault::BadHeader, peer.accepted_seq + 1);
                break;
        }
        if (out.verdict != Verdict::Accepted) ring_.refuse(head_);
        accepted_[head_ % accepted_.size()] = out.where;
        ++head_;
        c.head.store(head_, std::memory_order_release);  // pairs with Subscriber::take()
        // The acknowledgement. seq_cst: the condition of the publisher's eventcount.
        row.accepted_seq.store(peer.accepted_seq, std::memory_order_seq_cst);
        if (stage_times_) {
            c.validate.record(now_ns() - begin);
            if (out.verdict == Verdict::Accepted && out.header.committed_ns <= begin)
                c.queue.record(begin - out.header.committed_ns);
        }
        return true;
    }

    // Wakes who waits for an acknowledgement, where a release does not follow at once.
    void announce(u32 owner) noexcept {
        if (owner < peers_.size()) wake(ring_.publisher(owner));
    }

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

    // Frees the slots and rows of publishers that are gone. => rows freed.
    u32 reap() noexcept {
        u32 rows = 0, attached = 0;
        gates_.reap();
        if (lock_fd_ < 0) return 0;
        for (u32 i = 0; i < ring_.geometry().max_publishers; ++i) {
            const auto state = static_cast<EntryState>(ring_.publisher(i).state.load(std::memory_order_acquire));
            if (state == EntryState::Free) continue;  // pairs with the release store that ends an attach
            ++attached;
            if (state == EntryState::Closed) {        // pairs with the store in Publisher::close()
                if (reap_row(i)) ++rows, --attached;  // the owner's own word that it will not touch anything again
                continue;
            }
            // Else only the kernel's word counts. While we hold the byte, nobody can take the row.
            if (!try_lock_byte(lock_fd_, publisher_lock(i))) continue;
            if (reap_row(i)) ++rows, --attached;
            unlock_byte(lock_fd_, publisher_lock(i));
        }
        ring_.control().attached.store(attached, std::memory_order_relaxed);
        return rows;
    }
    // Frees row i and its slots if it has no batch that is not accepted; those that are in the log already are the
    // log's from now on. The caller knows that the owner is gone. => false: come back after the next accept.
    bool reap_row(u32 i) noexcept {
        if (ring_.has_committed(i, head_)) return false;
        PublisherEntry& row = ring_.publisher(i);
        Control& c = ring_.control();
        for (u64 t = released_; t < head_; ++t) {
            Ring::Committed& where = accepted_[t % accepted_.size()];
            if (where.owner != i) continue;
            where.owner = kLogOwner;
            ring_.inherit(where);
        }
        // Acquire: if it left in order since reap() looked, this orders its last writes before.
        if (row.state.load(std::memory_order_acquire) == static_cast<u32>(EntryState::Active))
            Histogram::add(c.reaped_publishers, 1);
        const u32 slots = ring_.reap_slots(i);
        Histogram::add(c.reaped_slots, slots);
        peers_[i] = Peer{};
        clear(row);
        row.state.store(static_cast<u32>(EntryState::Free), std::memory_order_release);
        for (u32 n = 0; n < slots && c.space_waiters.load(std::memory_order_seq_cst); ++n) wake_one_space_waiter();
        return true;
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
            for (u64 t = before; t < head_; ++t) announce(accepted_[t % accepted_.size()].owner);
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
                abandon();  // nobody shall wait for what will not come
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
    void abandon() noexcept {
        ring_.control().state.store(static_cast<u32>(BrokerState::Stopped), std::memory_order_seq_cst);
        for (u32 i = 0; i < ring_.geometry().max_publishers; ++i) wake(ring_.publisher(i));
        gates_.tell();
    }

    // The end: nobody may begin another batch, what is committed is accepted, everybody is told. A batch that
    // is committed after that is not in the log, and its publisher will know. Subscribers read on: from now on
    // nothing is released.
    void retire() noexcept {
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
        if (c.space_waiters.load(std::memory_order_seq_cst)) wake_one_space_waiter();
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

    struct Peer {
        u64 accepted_seq = 0;
        u64 released = 0;
    };

    u64 clock() const noexcept { return stage_times_ ? now_ns() : 0; }

    Verdict judge(const BatchHeader& h, u32 owner) const noexcept {
        const PublisherEntry& row = ring_.publisher(owner);
        if (!well_formed(h, ring_.geometry().slot_bytes) ||
            h.publisher_id != row.publisher_id.load(std::memory_order_relaxed) ||
            h.incarnation != row.incarnation.load(std::memory_order_relaxed))
            return Verdict::BadHeader;
        const u64 last = peers_[owner].accepted_seq;
        if (h.seq <= last) return Verdict::Duplicate;
        return h.seq == last + 1 ? Verdict::Accepted : Verdict::OutOfOrder;
    }

    // Every subscriber has passed the oldest ticket that was not passed.
    void pass_next() noexcept {
        const u32 owner = accepted_[passed_ % accepted_.size()].owner;
        ++passed_;
        if (owner >= peers_.size()) return;  // its publisher is gone
        ring_.publisher(owner).released_batches.store(++peers_[owner].released, std::memory_order_seq_cst);
        wake(ring_.publisher(owner));
    }
    void free_next() noexcept {
        const u64 begin = clock();
        const Ring::Committed where = accepted_[released_ % accepted_.size()];
        held_[where.slot] = false;
        ring_.release(released_, where);
        ++released_;
        ring_.control().released.store(released_, std::memory_order_release);
        if (ring_.control().space_waiters.load(std::memory_order_seq_cst)) wake_one_space_waiter();
        if (stage_times_) ring_.control().release.record(now_ns() - begin);
    }

    void accuse(PublisherEntry& row, Fault fault, u64 seq) noexcept {
        if (row.fault.load(std::memory_order_relaxed)) return;  // the first fault is the one to tell
        row.fault_seq.store(seq, std::memory_order_relaxed);
        row.fault.store(static_cast<u32>(fault), std::memory_order_seq_cst);  // seq_cst: an eventcount's condition
    }

    bool wake(PublisherEntry& row) noexcept {
        if (!wake_if_sleeping(row.event, row.sleeping)) return false;
        Histogram::add(ring_.control().wakes_sent, 1);
        return true;
    }

    // One slot came free, one waiter is woken; one that is awake looks for itself and does not count. The flag
    // is taken back before the search: a publisher that starts to wait after we passed its row sets it again.
    void wake_one_space_waiter() noexcept {
        Control& c = ring_.control();
        c.space_waiters.store(0, std::memory_order_seq_cst);  // pairs with Publisher::wait_space()
        const u32 rows = ring_.geometry().max_publishers;
        for (u32 k = 0; k < rows; ++k) {
            const u32 i = (next_waiter_ + k) % rows;
            PublisherEntry& row = ring_.publisher(i);
            if (row.wants_any_slot.load(std::memory_order_seq_cst) == 0) continue;
            c.space_waiters.store(1, std::memory_order_seq_cst);  // there may be more
            if (!wake(row)) continue;
            next_waiter_ = (i + 1) % rows;
            return;
        }
    }

    static void clear(PublisherEntry& row) noexcept {
        row.pid.store(0, std::memory_order_relaxed);
        for (auto* w : {&row.publisher_id, &row.incarnation, &row.attached_ns, &row.accepted_seq, &row.released_batches,
                        &row.accepted_messages, &row.accepted_bytes, &row.fault_seq, &row.committed_seq, &row.messages,
                        &row.payload_bytes, &row.space_waits, &row.ack_waits, &row.wakes_sent, &row.missed_wakeups,
                        &row.nontemporal_batches})
            w->store(0, std::memory_order_relaxed);
        for (auto* w : {&row.quota, &row.ack, &row.remote, &row.fault, &row.event, &row.sleeping, &row.wants_any_slot})
            w->store(0, std::memory_order_relaxed);
        for (auto* h :
             {&row.buffer_write, &row.get_buffer, &row.send_payload, &row.wait_space, &row.wait_ack, &row.receive})
            h->reset();
    }

    Ring ring_;
    int lock_fd_;
    bool stage_times_;
    SpinPolicy spin_;
    Gates gates_;
    std::vector<Peer> peers_;
    std::vector<Ring::Committed> accepted_;  // by ticket: what release_next() needs, out of others' reach
    std::vector<bool> held_;                 // by slot: accepted and not released
    u64 head_ = 0;
    u64 passed_ = 0;    // the oldest ticket that a subscriber has not passed
    u64 released_ = 0;  // the oldest ticket that holds its slot
    u64 next_reap_ = 0;
    u32 idle_ = 0;         // sleeps since something was accepted, up to kMostIdle
    u64 told_ns_ = 0;      // when the crowd was told
    bool untold_ = false;  // `head` has moved since
    u32 next_waiter_ = 0;
    std::atomic<bool> stop_{false};
    const char* corruption_ = nullptr;
};

}  // namespace embar

// The subscriber: reads the log in the order of its tickets, and says what it is done with.
//
//   join       ask the broker for a place in the log; it answers in the row (gates.hpp)
//   take       the next batch, if there is one: entry and header copied once, everything checked
//   pass       this process is done with a ticket; in whatever order, the cursor follows when it can
//   wait       sleep until take() is worth another try
//   leave      give the row back to the broker
//
// A *reliable* subscriber's cursor is a gate: the broker frees no slot of a ticket at or beyond it, so the bytes
// of a batch that was taken and not passed do not change. A *lossy* one is no gate, and what it reads may be freed
// and overwritten meanwhile: it copies, and then looks whether the ticket's entry still is what it was (a sequence lock
// whose sequence is the entry, recycled before its slot is freed and unique for 2^32 laps: Lameter, "Effective
// Synchronization on Linux/NUMA Systems", 2005, section 5).
//
// A subscriber can also be the *sole* consumer of a ring that has no broker: of a private ring in which batches
// from a network arrive (receiver.hpp). It then reads what is committed, and releases slots itself. The ticket of
// the log and the gap before it are in the batch header, where the sender has put them.
//
// One thread at a time takes; pass() is for any thread. Nothing here knows Python.
#pragma once

#include <algorithm>
#include <mutex>
#include <vector>

#include "liveness.hpp"
#include "ring.hpp"
#include "waiting.hpp"

namespace embar {

struct SubscriberOptions {
    SubscribeMode mode = SubscribeMode::Reliable;
    Start start = Start::Latest;
    u64 ticket = 0;  // Start::Ticket
    bool sole = false;
    u64 patience_ns = 0;  // for a broker that died to be started again
    u64 remote_id = 0;    // of a subscriber on a network that comes back, with its incarnation
    u64 remote_incarnation = 0;
    u64 resumes_at = kNoTicket;  // the row was taken over from a process that died: where it is
};

class Subscriber {
public:
    enum class Joined { Waiting, Yes, No };
    enum class Take {
        Batch,
        Nothing,   // call wait(), then again
        Damaged,   // this batch was changed after the broker had accepted it; it is passed
        Corrupt,   // the ring's words make no sense
        NoMemory,  // for the copy
    };
    enum class Peer { Ok, Stopped, Gone, Quarantined };

    struct View {
        u64 ticket = 0;  // in the log
        u64 gap = 0;     // batches overrun just before it
        u64 place = 0;   // for pass(): the ticket in this ring
        BatchHeader header{};
        const char* body = nullptr;
    };

    // The caller holds the liveness lock of row `index` on `lock_fd` and has seen the row free, or `sole`.
    Subscriber(Ring ring, u32 index, int lock_fd, const char* name, const SubscriberOptions& options,
               const SpinOptions& spin)
        : ring_(ring), row_(&ring_.subscriber(index)), index_(index), broker_(lock_fd, options.patience_ns),
          options_(options), spin_(spin), passed_(ring.geometry().tickets), taken_(ring.geometry().tickets) {
        SubscriberEntry& row = *row_;
        row.pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
        row.mode.store(static_cast<u32>(options.mode), std::memory_order_relaxed);
        row.start.store(static_cast<u32>(options.start), std::memory_order_relaxed);
        row.start_ticket.store(options.ticket, std::memory_order_relaxed);
        row.attached_ns.store(now_ns(), std::memory_order_relaxed);
        row.remote_id.store(options.remote_id, std::memory_order_relaxed);
        row.remote_incarnation.store(options.remote_incarnation, std::memory_order_relaxed);
        std::strncpy(row.name, name, sizeof row.name - 1);
        if (options.sole) {
            joined_ = true;
            row.state.store(static_cast<u32>(SubscriberState::Active), std::memory_order_release);
            return;
        }
        if (options.resumes_at != kNoTicket) {
            begin(options.resumes_at);
            return;
        }
        row.state.store(static_cast<u32>(SubscriberState::Joining), std::memory_order_release);  // pairs with admit()
        call_broker();
    }
    Subscriber(const Subscriber&) = delete;
    Subscriber& operator=(const Subscriber&) = delete;

    // --- joining ---

    Joined joined() noexcept {
        if (joined_) return Joined::Yes;
        const u32 state = row_->state.load(std::memory_order_seq_cst);  // pairs with Gates::admit()
        if (state == static_cast<u32>(SubscriberState::Joining)) return Joined::Waiting;
        if (state != static_cast<u32>(SubscriberState::Active)) return Joined::No;
        begin(row_->cursor.load(std::memory_order_relaxed));
        return Joined::Yes;
    }
    Wait wait_joined(u64 deadline_ns) noexcept {
        call_broker();
        return sleep_slice(
            [this] {
                return row_->state.load(std::memory_order_seq_cst) != static_cast<u32>(SubscriberState::Joining) ||
                       stopped() || interrupted();
            },
            deadline_ns);
    }

    // --- reading ---

    // `copy(body, bytes)` returns a copy of what a lossy subscriber reads, or null. It is not called otherwise.
    template <class Copy>
    Take take(View& v, Copy&& copy) noexcept {
        for (;;) {
            const u64 end = available(), at = next();
            if (at >= end) return Take::Nothing;
            if (is_gate() && at - cursor_seen() >= ring_.geometry().tickets) return Take::Corrupt;
            const u64 e = ring_.entry(at).load(std::memory_order_acquire);  // pairs with Ring::commit()
            const u32 s = ticket::slot(e);
            if (!ticket::is_used(e) || ticket::lap(e) != ring_.lap_of(at) || s >= ring_.geometry().slots) {
                if (!overrun(end)) return Take::Corrupt;
                continue;
            }
            if (ticket::is_refused(e)) {
                skip();
                continue;
            }
            const u64 w = ring_.slot(s).word.load(std::memory_order_acquire);
            if (!holds_batch(w, ticket::generation(e))) {
                if (!overrun(end)) return Take::Corrupt;
                continue;
            }
            std::memcpy(&v.header, ring_.header_of(s), sizeof v.header);  // the one copy
            v.body = ring_.payload_of(s);
            bool good = well_formed(v.header, ring_.geometry().slot_bytes);
            if (options_.mode == SubscribeMode::Lossy && !options_.sole) {
                if (good && !(v.body = copy(v.body, v.header.body_bytes))) return Take::NoMemory;
                // The copy is of that batch if the ticket was not released meanwhile. The fence orders the reads before
                // the second look, and pairs with the one in Ring::try_claim(): who has read a byte of the slot's next
                // owner sees the entry that Ring::release() recycled before that one could claim it.
                std::atomic_thread_fence(std::memory_order_acquire);
                if (ring_.entry(at).load(std::memory_order_relaxed) != e) {
                    if (!overrun(end)) return Take::Corrupt;
                    continue;
                }
            }
            if (!good) {
                Histogram::add(row_->corrupt, 1);
                v.place = v.ticket = at;
                skip();
                return Take::Damaged;
            }
            v.place = at;
            v.ticket = options_.sole ? v.header.ticket : at;
            v.gap = options_.sole ? v.header.gap : gap_;
            if (options_.sole) Histogram::add(row_->lost, v.gap);
            gap_ = 0;
            if (options_.sole) {
                taken_[at % taken_.size()] = {s, slot_word::owner(w), slot_word::generation(w)};
                after_.store(v.ticket + 1, std::memory_order_relaxed);
            }
            set_next(at + 1);
            if (!is_gate()) follow();
            Histogram::add(row_->batches, 1);
            Histogram::add(row_->messages, v.header.messages);
            Histogram::add(row_->payload_bytes, v.header.payload_bytes);
            return Take::Batch;
        }
    }

    // This process reads nothing of `place` any more. Any thread. A lossy subscriber has nothing to pass.
    void pass(u64 place) noexcept {
        if (!is_gate()) return;
        const std::lock_guard<std::mutex> guard(mutex_);
        passed_[place % passed_.size()] = true;
        advance();
    }

    // Before anything is taken: does nobody miss a batch if this one goes on with `ticket`? Everything before it is in
    // the log, and so was read; what was passed from there on was refused, as far as that can still be seen.
    bool may_go_on_at(u64 ticket) const noexcept {
        const u64 at = next(), tickets = ring_.geometry().tickets;
        if (ticket >= at) return ticket <= available() && ticket - at <= tickets;
        const u64 released = ring_.control().released.load(std::memory_order_acquire);
        for (u64 t = std::max({ticket, released, at - std::min(at, tickets)}); t < at; ++t) {
            const u64 e = ring_.entry(t).load(std::memory_order_acquire);
            if (ticket::is_used(e) && ticket::lap(e) == ring_.lap_of(t) && !ticket::is_refused(e)) return false;
        }
        return true;
    }
    // Passes everything before `ticket`, where it may_go_on_at().
    void go_on_at(u64 ticket) noexcept {
        for (u64 t = next(); t < ticket; ++t) pass(t);
        if (ticket > next()) set_next(ticket);
    }

    // Looks for a batch for a few microseconds, in mode "spin"; else once.
    bool look_briefly() const noexcept {
        for (int i = 0; i < kBriefLooks; ++i) {
            if (available() > next()) return true;
            if (!spin_.spins()) return false;
            cpu_relax();
        }
        return false;
    }
    Wait wait(u64 deadline_ns) noexcept {
        Histogram::add(row_->waits, 1);
        return sleep_slice([this] { return available() > next() || stopped() || interrupted(); }, deadline_ns);
    }
    // Ends all waits, now and until resume(). Any thread.
    void interrupt() noexcept {
        interrupted_.store(true, std::memory_order_seq_cst);
        wake_if_sleeping(event(), sleepers());
    }
    void resume() noexcept { interrupted_.store(false, std::memory_order_seq_cst); }
    bool interrupted() const noexcept { return interrupted_.load(std::memory_order_seq_cst); }

    // What is to be told when there is nothing to take. Asks the kernel about the broker.
    Peer peer() noexcept {
        if (state_of_broker() == static_cast<u32>(BrokerState::Quarantined)) return Peer::Quarantined;
        if (stopped()) return Peer::Stopped;
        return broker_.gone(ring_.control().epoch.load(std::memory_order_relaxed)) ? Peer::Gone : Peer::Ok;
    }
    // A sole consumer's feeder: nothing more will come. Any thread.
    void end() noexcept {
        ring_.control().state.store(static_cast<u32>(BrokerState::Stopped), std::memory_order_seq_cst);
        wake_if_sleeping(event(), sleepers());
    }

    // Gives the row back to the broker. No batch may be in use.
    void leave() noexcept {
        row_->state.store(static_cast<u32>(SubscriberState::Closed), std::memory_order_release);  // pairs with reap()
        if (!options_.sole) call_broker();
    }

    // --- looking ---

    u32 index() const noexcept { return index_; }
    const SubscriberOptions& options() const noexcept { return options_; }
    const Ring& ring() const noexcept { return ring_; }
    u64 next() const noexcept { return next_.load(std::memory_order_relaxed); }  // to take, in this ring
    u64 position() const noexcept {                                              // in the log
        return options_.sole ? after_.load(std::memory_order_relaxed) : next();
    }
    u64 held() const noexcept { return is_gate() ? next() - cursor_seen() : 0; }
    u64 available() const noexcept {
        const u64 at = next();
        if (options_.sole) return ring_.holds(at) ? at + 1 : at;
        return ring_.control().head.load(std::memory_order_seq_cst);  // the condition of an eventcount: Broker::sweep()
    }

private:
    static constexpr int kBriefLooks = 200;

    bool is_gate() const noexcept { return options_.sole || options_.mode == SubscribeMode::Reliable; }
    u64 cursor_seen() const noexcept { return row_cursor_.load(std::memory_order_relaxed); }
    u32 state_of_broker() const noexcept { return ring_.control().state.load(std::memory_order_seq_cst); }
    bool stopped() const noexcept { return state_of_broker() >= static_cast<u32>(BrokerState::Stopped); }
    static bool holds_batch(u64 w, u32 generation) noexcept {
        return slot_word::is_owned(w) && (slot_word::generation(w) & ticket::kGenerationMask) == generation;
    }

    // The batch at next() is not there any more. A lossy subscriber goes on in the middle of what is still there: at
    // its old end it would be overrun again at once. => false: that cannot be, for a gate, or in a ring of this size.
    bool overrun(u64 end) noexcept {
        if (is_gate()) return false;
        const u64 at = next(), oldest = ring_.control().released.load(std::memory_order_acquire);
        if (oldest < end && end - oldest > ring_.geometry().tickets) return false;
        u64 to = oldest < end ? oldest + (end - oldest) / 2 : end;
        if (to <= at) to = at + 1;
        gap_ += to - at;
        Histogram::add(row_->lost, to - at);
        set_next(to);
        follow();
        return true;
    }
    void begin(u64 at) noexcept {
        cursor_ = at;
        row_cursor_.store(at, std::memory_order_relaxed);
        set_next(at);
        joined_ = true;
    }
    void set_next(u64 to) noexcept {
        next_.store(to, std::memory_order_relaxed);
        row_->next.store(to, std::memory_order_relaxed);
    }
    // Moves past next() without a batch.
    void skip() noexcept {
        const u64 place = next();
        set_next(place + 1);
        if (!is_gate()) return follow();
        if (options_.sole) {
            const u32 s = ticket::slot(ring_.entry(place).load(std::memory_order_relaxed));
            const u64 w = ring_.slot(s).word.load(std::memory_order_relaxed);
            taken_[place % taken_.size()] = {s, slot_word::owner(w), slot_word::generation(w)};
        }
        pass(place);
    }
    // Moves the cursor past everything that is passed. Under the mutex.
    void advance() noexcept {
        const u64 before = cursor_;
        while (passed_[cursor_ % passed_.size()]) {
            passed_[cursor_ % passed_.size()] = false;
            if (options_.sole) release(taken_[cursor_ % taken_.size()]);
            ++cursor_;
        }
        if (cursor_ == before) return;
        row_cursor_.store(cursor_, std::memory_order_relaxed);
        row_->moved_ns.store(coarse_now_ns(), std::memory_order_relaxed);
        // seq_cst: releases what was read to Gates::lowest(), and is the condition of the broker's eventcount.
        row_->cursor.store(cursor_, std::memory_order_seq_cst);
        Control& c = ring_.control();
        if (c.slowest.load(std::memory_order_seq_cst) == index_ + 1)  // pairs with Gates::watch()
            wake_if_sleeping(c.event, c.sleeping);
    }
    // Frees a slot of the private ring, and wakes the row that fills it (the only one).
    void release(const Ring::Committed& where) noexcept {
        ring_.release(cursor_, where);
        ring_.control().released.store(cursor_ + 1, std::memory_order_release);
        PublisherEntry& row = ring_.publisher(0);
        row.released_batches.store(cursor_ + 1, std::memory_order_seq_cst);
        wake_if_sleeping(row.event, row.sleeping);
    }
    // A lossy subscriber's cursor only tells how far it is.
    void follow() noexcept {
        row_->cursor.store(next(), std::memory_order_relaxed);
        row_->moved_ns.store(coarse_now_ns(), std::memory_order_relaxed);
    }

    std::atomic<u32>& event() noexcept { return options_.sole ? ring_.control().event : ring_.control().news; }
    std::atomic<u32>& sleepers() noexcept {
        return options_.sole ? ring_.control().sleeping : ring_.control().news_sleepers;
    }
    void call_broker() noexcept {
        Control& c = ring_.control();
        c.look_around.store(1, std::memory_order_seq_cst);  // pairs with the exchange in Broker::serve()
        wake_if_sleeping(c.event, c.sleeping);
    }
    template <class Ready>
    Wait sleep_slice(Ready&& ready, u64 deadline_ns) noexcept {
        bool missed = false;
        const Control& c = ring_.control();
        const unsigned participants =
            1 + c.attached.load(std::memory_order_relaxed) + c.subscribers.load(std::memory_order_relaxed);
        const Wait w =
            sleep_unless(ready, event(), sleepers(), deadline_ns, spin_.budget_ns(participants), kMaxSleepNs, missed);
        spin_.outcome(w == Wait::Ready);
        if (missed) Histogram::add(row_->missed_wakeups, 1);
        return w;
    }

    Ring ring_;
    SubscriberEntry* row_;
    u32 index_;
    BrokerWatch broker_;
    SubscriberOptions options_;
    SpinPolicy spin_;
    std::atomic<bool> interrupted_{false};
    bool joined_ = false;
    std::atomic<u64> next_{0};   // written by the thread that takes, read by those that wait or look: relaxed
    std::atomic<u64> after_{0};  // sole: the ticket after the last one taken
    u64 gap_ = 0;
    std::mutex mutex_;                    // around the next three
    std::vector<bool> passed_;            // by ticket: passed, and the cursor has not come to it
    std::vector<Ring::Committed> taken_;  // sole, by ticket: what its release needs
    u64 cursor_ = 0;
    std::atomic<u64> row_cursor_{0};  // the same, for those without the mutex
};

}  // namespace embar

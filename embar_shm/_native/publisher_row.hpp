// A row of the publishers table, held by this process, and the slot being filled for it.
//
//   claim          own a slot, if the quota allows it and one is free
//   commit_batch   write the header, take the place in the log, wake the broker
//   give_back      return a slot that was never committed
//   wait_space     sleep until a claim is worth another try
//   wait_acked     sleep until the broker has accepted a given batch
//   leave          give the row back to the broker
//
// What fills the slot is somebody else's: `Publisher` appends messages to it (publisher.hpp), `Receiver` is for
// batches that come from a network (receiver.hpp). One thread at a time claims, commits and gives back; waits for
// acknowledgements and the statistics are for any thread.
//
// Nothing here knows Python. Functions that may have to wait return NeedSlot instead; the caller drops the GIL,
// calls wait_space(), lets Python look at signals, and calls again.
#pragma once

#include "liveness.hpp"
#include "ring.hpp"
#include "waiting.hpp"

namespace embar {

enum class Status {
    Ok,
    NeedSlot,       // call wait_space(), then again
    Empty,          // zero-size message
    TooLarge,       // does not fit into a batch
    WrongSize,      // not the fixed message size
    Closed,         // close() was called
    Forked,         // this is a fork of the process that connected
    Reserved,       // a reservation is open
    InUse,          // this thread is in another call already: a signal handler calls
    NotReserved,    // no reservation is open
    BrokerStopped,  // the broker has left in order
    BrokerGone,     // the broker's lock is free: it died, and no other came in time
    Quarantined,    // the broker found the segment damaged
    Faulted,        // the broker refused a batch of ours
    Corrupt,        // the ring's words make no sense
};

struct RowOptions {
    u64 publisher_id = 0;
    u64 incarnation = 0;
    u32 quota = 1;  // slots held at a time
    u32 ack = 1;
    bool timed = false;       // record stage times
    u64 patience_ns = 0;      // for a broker that died to be started again
    bool remote = false;      // for a publisher on a network, which will connect again when this process dies
    bool taken_over = false;  // the row was left by a process that died, and is one of this publisher
    u64 committed = 0;        // batches that are committed already, if so
};

class PublisherRow {
public:
    static constexpr u64 kNoSeq = ~0ULL;  // is never accepted

    // The caller holds the liveness lock of row `index` on `lock_fd`, and has seen the row free. `lock_fd` -1: a plain
    // buffer, where nobody is ever found dead. A row that was taken over is this publisher's already.
    PublisherRow(Ring ring, u32 index, int lock_fd, const RowOptions& options, const SpinOptions& spin)
        : ring_(ring), row_(&ring_.publisher(index)), index_(index), broker_(lock_fd, options.patience_ns),
          row_options_(options), spin_(spin), committed_(options.committed) {
        PublisherEntry& row = *row_;
        row.pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
        row.publisher_id.store(options.publisher_id, std::memory_order_relaxed);
        row.incarnation.store(options.incarnation, std::memory_order_relaxed);
        row.attached_ns.store(now_ns(), std::memory_order_relaxed);
        row.quota.store(options.quota, std::memory_order_relaxed);
        row.ack.store(options.ack, std::memory_order_relaxed);
        row.remote.store(options.remote, std::memory_order_relaxed);
        row.committed_seq.store(options.committed, std::memory_order_relaxed);
        row.sleeping.store(0, std::memory_order_relaxed);  // nobody does, whatever those before it left
        row.wants_any_slot.store(0, std::memory_order_relaxed);
        if (options.taken_over) return;
        row.state.store(static_cast<u32>(EntryState::Active), std::memory_order_release);  // pairs with reap()
        ring_.control().attached.fetch_add(1, std::memory_order_relaxed);                  // a hint; reap() recounts
    }
    PublisherRow(const PublisherRow&) = delete;
    PublisherRow& operator=(const PublisherRow&) = delete;

    // --- waiting ---

    // Sleeps (one slice) until a claim is worth another try. On the claiming thread, without the GIL.
    // First for the quota, of which the broker tells this publisher alone; then for any free slot, of which it
    // tells one of those that asked. One wait for both would miss the slots of others while it asks for none.
    // The acknowledgement of batch `seq` ends the wait, too.
    Wait wait_space(u64 deadline_ns, u64 seq = kNoSeq) noexcept {
        if (!waiting_since_) {
            waiting_since_ = row_options_.timed ? now_ns() : 1;  // not 0: it waits
            Histogram::add(row_->space_waits, 1);
        }
        Control& c = ring_.control();
        if (in_flight() >= row_options_.quota) {
            c.quota_waiters.fetch_add(1, std::memory_order_seq_cst);  // pairs with Broker::serve()
            if (c.news_held_back.load(std::memory_order_seq_cst)) wake_if_sleeping(c.event, c.sleeping);
            const Wait w = sleep_slice(
                [this, seq] {
                    return in_flight() < row_options_.quota || accepted_seq() >= seq || no_more_batches() ||
                           interrupted();
                },
                deadline_ns);
            c.quota_waiters.fetch_sub(1, std::memory_order_relaxed);
            return w;
        }
        row_->wants_any_slot.store(1, std::memory_order_seq_cst);
        c.space_waiters.store(1, std::memory_order_seq_cst);  // pairs with Broker::wake_one_space_waiter()
        wake_if_sleeping(c.event, c.sleeping);                // a dead owner's slots may be waiting to be reaped
        const Wait w = sleep_slice(
            [this, seq] { return ring_.any_free() || accepted_seq() >= seq || no_more_batches() || interrupted(); },
            deadline_ns);
        row_->wants_any_slot.store(0, std::memory_order_seq_cst);
        return w;
    }

    // Is a claim worth a try? On the claiming thread.
    bool may_claim() noexcept { return no_more_batches() || (in_flight() < row_options_.quota && ring_.any_free()); }

    // Sleeps (one slice) until batch `seq` is accepted. Any thread, without the GIL.
    Wait wait_acked(u64 seq, u64 deadline_ns) noexcept {
        return sleep_slice([this, seq] { return accepted_seq() >= seq || no_more_acks() || interrupted(); },
                           deadline_ns);
    }
    void record_ack_wait(u64 since) noexcept {
        Histogram::add(row_->ack_waits, 1);
        if (row_options_.timed) row_->wait_ack.record(now_ns() - since);
    }

    // Ends all waits, now and until resume(). Any thread. seq_cst: a condition of the row's eventcount.
    void interrupt() noexcept {
        interrupted_.store(true, std::memory_order_seq_cst);
        wake_if_sleeping(row_->event, row_->sleeping);
    }
    void resume() noexcept { interrupted_.store(false, std::memory_order_seq_cst); }
    bool interrupted() const noexcept { return interrupted_.load(std::memory_order_seq_cst); }

    // What a wait that did not end well should tell the user. Asks the kernel about the broker.
    Status peer_status() noexcept {
        if (refused()) return Status::Faulted;
        if (no_more_acks()) return ended();
        return broker_.gone(ring_.control().epoch.load(std::memory_order_relaxed)) ? Status::BrokerGone : Status::Ok;
    }

    // --- looking ---

    u32 index() const noexcept { return index_; }
    Status state() const noexcept { return state_.load(std::memory_order_relaxed); }
    u32 quota() const noexcept { return row_options_.quota; }
    const Ring& ring() const noexcept { return ring_; }
    PublisherEntry& row() const noexcept { return *row_; }
    u64 committed_seq() const noexcept { return row_->committed_seq.load(std::memory_order_acquire); }
    u64 accepted_seq() const noexcept { return row_->accepted_seq.load(std::memory_order_seq_cst); }
    // Batches committed and not released, for others than the publishing thread.
    u64 in_flight_seen() const noexcept {
        const u64 released = row_->released_batches.load(std::memory_order_acquire);
        const u64 committed = committed_seq();
        return committed - std::min(released, committed);
    }
    // seq_cst: the condition of an eventcount; pairs with Broker::release_next().
    u64 in_flight() const noexcept {
        const u64 released = row_->released_batches.load(std::memory_order_seq_cst);
        return committed_ - std::min(released, committed_);
    }

protected:
    // Claims a slot without waiting. The quota counts this batch, too.
    Status claim_slot() noexcept {
        const u64 begin = row_options_.timed ? now_ns() : 0;
        if (no_more_batches()) return refused() ? Status::Faulted : ended();
        if (committed_ - released_seen_ >= row_options_.quota) {
            released_seen_ = committed_ - in_flight();
            if (committed_ - released_seen_ >= row_options_.quota) return Status::NeedSlot;
        }
        if (!ring_.try_claim(index_, slot_, generation_)) return Status::NeedSlot;
        const u64 end = now_ns();
        ring_.slot(slot_).owned_since.store(end, std::memory_order_relaxed);
        if (row_options_.timed) {
            row_->get_buffer.record(end - begin);
            row_->wait_space.record(waiting_since_ ? begin - waiting_since_ : 0);
        }
        waiting_since_ = 0;
        opened_ns_ = end;
        return Status::Ok;
    }

    // Writes the header into the claimed slot and commits it: one CAS, and a wake if the broker sleeps.
    Status commit_slot(BatchHeader& h) noexcept {
        h.check = header_check(h);
        std::memcpy(ring_.header_of(slot_), &h, sizeof h);
        if (ring_.commit(slot_, generation_) == kNoTicket) {
            state_.store(Status::Corrupt, std::memory_order_relaxed);
            call_broker();  // it looks at all words, and tells everybody
            return Status::Corrupt;
        }
        ++committed_;
        Histogram::add(row_->messages, h.messages);
        Histogram::add(row_->payload_bytes, h.payload_bytes);
        row_->committed_seq.store(committed_, std::memory_order_release);
        if (wake_if_sleeping(ring_.control().event, ring_.control().sleeping)) Histogram::add(row_->wakes_sent, 1);
        return Status::Ok;
    }

    // Gives the claimed slot back without a batch.
    void give_slot_back() noexcept {
        ring_.give_back(slot_, generation_);
        call_broker();  // it knows who waits: `space_waiters` may just be taken back to look for one
    }

    // Gives the row back to the broker. A slot that is still claimed is reaped.
    void leave() noexcept {
        state_.store(Status::Closed, std::memory_order_relaxed);
        row_->state.store(static_cast<u32>(EntryState::Closed), std::memory_order_release);  // pairs with reap()
        call_broker();
    }

    void call_broker() noexcept {
        Control& c = ring_.control();
        c.look_around.store(1, std::memory_order_seq_cst);  // pairs with the exchange in Broker::serve()
        wake_if_sleeping(c.event, c.sleeping);
    }

    u32 broker_state() const noexcept { return ring_.control().state.load(std::memory_order_seq_cst); }
    bool refused() const noexcept { return row_->fault.load(std::memory_order_seq_cst) != 0; }
    // Why the broker has ended.
    Status ended() const noexcept {
        return broker_state() == static_cast<u32>(BrokerState::Quarantined) ? Status::Quarantined
                                                                            : Status::BrokerStopped;
    }
    // Nothing new can be sent.
    bool no_more_batches() const noexcept {
        return refused() || broker_state() >= static_cast<u32>(BrokerState::Stopping);
    }
    // Nothing will be accepted any more.
    bool no_more_acks() const noexcept { return refused() || broker_state() >= static_cast<u32>(BrokerState::Stopped); }

    template <class Ready>
    Wait sleep_slice(Ready&& ready, u64 deadline_ns) noexcept {
        bool missed = false;
        const Control& c = ring_.control();
        // One subscriber may be the broker's own thread.
        const unsigned participants =
            c.attached.load(std::memory_order_relaxed) + std::max(1U, c.subscribers.load(std::memory_order_relaxed));
        const Wait w = sleep_unless(ready, row_->event, row_->sleeping, deadline_ns, spin_.budget_ns(participants),
                                    kMaxSleepNs, missed);
        spin_.outcome(w == Wait::Ready);
        if (missed) Histogram::add(row_->missed_wakeups, 1);
        return w;
    }

    Ring ring_;
    PublisherEntry* row_;
    u32 index_;
    BrokerWatch broker_;
    RowOptions row_options_;
    SpinPolicy spin_;
    std::atomic<Status> state_{Status::Ok};  // written by the claiming thread, read anywhere: relaxed
    std::atomic<bool> interrupted_{false};
    u64 committed_;
    u64 released_seen_ = 0;  // of them no longer in flight, at the last look: the broker's word is read when it matters
    u32 slot_ = 0;
    u64 generation_ = 0;
    u64 opened_ns_ = 0;  // when the slot was claimed
    u64 waiting_since_ = 0;
};

}  // namespace embar

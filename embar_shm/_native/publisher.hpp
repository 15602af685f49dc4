// The publisher: appends messages to a slot it owns, and commits the slot as one batch.
//
//   append         copy one message to the cursor; the batch that is full is committed
//   append_block   the same for many messages of one size
//   reserve        hand out the place of the next message, to be written by the caller
//   flush          commit the batch that is not full
//   wait_space     sleep until a slot can be claimed (the quota allows it, and one is free)
//   wait_acked     sleep until the broker has accepted a given batch
//
// Nothing here knows Python. Functions that may have to wait return NeedSlot instead; the caller (module.cpp)
// drops the GIL, calls wait_space(), lets Python look at signals, and calls again.
//
// Threads.  append, append_block, reserve and flush run under `lock` (biased_lock.hpp). Its other taker is the
// linger thread, which commits a batch that has been open for longer than linger_ns, so that a partial batch
// never waits forever. wait_acked and the statistics need no lock.
//
// Fork.  A child must not write into the parent's slots: after_fork_in_child() turns the object into one
// that only raises, and forgets the linger thread, which the child does not have.
#pragma once

#include <limits>

#include "biased_lock.hpp"
#include "copy.hpp"
#include "linger.hpp"
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
    BrokerGone,     // the broker's lock is free: it died
    Faulted,        // the broker refused a batch of ours
    Corrupt,        // the ring's words make no sense
};

struct PublisherOptions {
    u64 publisher_id = 0;
    u64 incarnation = 0;
    u64 message_size = 0;  // 0: variable
    u64 batch_bytes = 0;
    u32 quota = 1;
    u32 ack = 1;
    u64 linger_ns = 0;  // 0: never
    CopyMode copy = CopyMode::Auto;
    u32 sample_every = 0;  // 0: no stage times
    bool turns = false;    // calls under the lock never begin at the same time: see BiasedLock
};

class Publisher {
public:
    // The caller holds the liveness lock of row `index` on `lock_fd`, and has seen the row free.
    Publisher(Ring ring, u32 index, int lock_fd, const PublisherOptions& options, const SpinOptions& spin)
        : lock(options.turns), ring_(ring), row_(&ring_.publisher(index)), index_(index), lock_fd_(lock_fd),
          options_(options), spin_(spin) {
        fixed_ = options.message_size ? options.message_size : kVariable;
        until_sample_ = options.sample_every ? options.sample_every : kNeverSample;
        if (options.sample_every) clock_cost_ns_ = clock_cost();
        PublisherEntry& row = *row_;
        row.pid.store(static_cast<u32>(getpid()), std::memory_order_relaxed);
        row.publisher_id.store(options.publisher_id, std::memory_order_relaxed);
        row.incarnation.store(options.incarnation, std::memory_order_relaxed);
        row.attached_ns.store(now_ns(), std::memory_order_relaxed);
        row.quota.store(options.quota, std::memory_order_relaxed);
        row.ack.store(options.ack, std::memory_order_relaxed);
        row.state.store(static_cast<u32>(EntryState::Active), std::memory_order_release);  // pairs with reap()
        ring_.control().attached.fetch_add(1, std::memory_order_relaxed);                  // a hint; reap() recounts
        if (options.linger_ns)
            linger_ = new Linger(options.linger_ns, [this](u64 since) { return commit_lingering(since); });
    }
    ~Publisher() { stop_linger(); }
    Publisher(const Publisher&) = delete;
    Publisher& operator=(const Publisher&) = delete;

    // Taken by the caller around everything up to flush().
    alignas(kLine) BiasedLock lock;

    // --- appending ---

    // Appends one message. The common case, a message of the fixed size with room left, is four lines.
    Status append(const char* data, u64 n) noexcept {
        if (n == fixed_ && cursor_ != limit_) [[likely]] {
            if (--until_sample_ == 0) [[unlikely]]
                timed_copy(cursor_, data, n, 1);
            else
                copy_bytes(cursor_, data, n, nontemporal_);
            cursor_ += n;
            return cursor_ == limit_ ? commit() : Status::Ok;
        }
        return append_slow(data, n);
    }

    // Appends as many of `rows` messages of `size` bytes each as fit without waiting; `done` counts them.
    Status append_block(const char* data, u64 rows, u64 size, u64& done) noexcept {
        done = 0;
        if (const Status s = usable(size, /*framed=*/false); s != Status::Ok) return s;
        while (done < rows) {
            if (const Status s = open(Format::Fixed, size, size); s != Status::Ok) return s;
            const u64 n = std::min(rows - done, static_cast<u64>(limit_ - cursor_) / size);
            const char* from = data + done * size;
            if (--until_sample_ == 0) [[unlikely]]
                timed_copy(cursor_, from, n * size, n);
            else
                copy_bytes(cursor_, from, n * size, nontemporal_);
            cursor_ += n * size;
            done += n;
            if (cursor_ == limit_)
                if (const Status s = commit(); s != Status::Ok) return s;
        }
        return Status::Ok;
    }

    // Hands out the place of the next message of n bytes (with a fixed message size: of n / size messages).
    // Until finish_reservation() nothing else can be appended, flushed or committed by lingering.
    Status reserve(u64 n, char*& place) noexcept {
        const bool variable = fixed_ == kVariable;
        if (reserved_) return Status::Reserved;
        if (n == 0) return Status::Empty;
        if (!variable && n % fixed_) return Status::WrongSize;
        if (const Status s = usable(variable ? n : fixed_, variable); s != Status::Ok) return s;
        const u64 need = variable ? framed_size(n) : n;
        if (need > batch_capacity(variable ? 0 : fixed_)) return Status::TooLarge;
        if (const Status s = open(variable ? Format::Variable : Format::Fixed, variable ? 0 : fixed_, need);
            s != Status::Ok)
            return s;
        place = variable ? cursor_ + kFrameHeader : cursor_;
        reserved_ = n;
        reserved_limit_ = limit_;
        limit_ = cursor_;  // closes the short way through append()
        return Status::Ok;
    }
    // Ends the reservation; `keep` appends what was written as one message (or n / size of them).
    Status finish_reservation(bool keep) noexcept {
        if (!reserved_) return Status::NotReserved;
        const u64 n = reserved_;
        limit_ = reserved_limit_;
        reserved_ = 0;
        if (!keep) {
            if (cursor_ == start_) give_back();  // others may be waiting for it
            return Status::Ok;
        }
        if (format_ == Format::Variable) {
            frame(n);
        } else {
            cursor_ += n;
        }
        return full() ? commit() : Status::Ok;
    }

    // Commits the open batch, if there is one with a message in it.
    Status flush() noexcept {
        if (reserved_) return Status::Reserved;
        if (const Status s = state(); s != Status::Ok) return s;
        return cursor_ == start_ ? Status::Ok : commit();
    }

    // Gives the row back to the broker. Flush first: an open batch is dropped, its slot is reaped.
    void close() noexcept {
        if (state() == Status::Forked || state() == Status::Closed) return;
        stop_linger();
        state_.store(Status::Closed, std::memory_order_relaxed);
        start_ = cursor_ = limit_ = nullptr;
        row_->state.store(static_cast<u32>(EntryState::Closed), std::memory_order_release);  // pairs with reap()
        call_broker();
    }
    bool has_reservation() const noexcept { return reserved_ != 0; }
    // Messages in the open batch. Under the lock.
    u64 open_messages() const noexcept {
        if (!start_) return 0;
        return format_ == Format::Variable ? framed_messages_ : static_cast<u64>(cursor_ - start_) / message_size_;
    }

    void after_fork_in_child() noexcept {
        if (state() == Status::Closed) return;
        state_.store(Status::Forked, std::memory_order_relaxed);
        start_ = cursor_ = limit_ = nullptr;
        linger_ = nullptr;  // the thread exists in the parent only: neither joined nor destroyed
        reserved_ = 0;
        lock.reset();
    }

    // --- waiting ---

    // Sleeps (one slice) until a claim is worth another try. Under the lock, without the GIL.
    // First for the quota, of which the broker tells this publisher alone; then for any free slot, of which it
    // tells one of those that asked. One wait for both would miss the slots of others while it asks for none.
    Wait wait_space(u64 deadline_ns) noexcept {
        if (!waiting_since_) {
            waiting_since_ = now_ns();
            Histogram::add(row_->space_waits, 1);
        }
        if (in_flight() >= options_.quota)
            return sleep_slice([this] { return in_flight() < options_.quota || no_more_batches(); }, deadline_ns);
        Control& c = ring_.control();
        row_->wants_any_slot.store(1, std::memory_order_seq_cst);
        c.space_waiters.store(1, std::memory_order_seq_cst);  // pairs with Broker::wake_one_space_waiter()
        wake_if_sleeping(c.event, c.sleeping);                // a dead owner's slots may be waiting to be reaped
        const Wait w = sleep_slice([this] { return ring_.any_free() || no_more_batches(); }, deadline_ns);
        row_->wants_any_slot.store(0, std::memory_order_seq_cst);
        return w;
    }

    // Sleeps (one slice) until batch `seq` is accepted. Any thread, without the GIL.
    Wait wait_acked(u64 seq, u64 deadline_ns) noexcept {
        return sleep_slice([this, seq] { return accepted_seq() >= seq || no_more_acks(); }, deadline_ns);
    }
    void record_ack_wait(u64 ns) noexcept {
        Histogram::add(row_->ack_waits, 1);
        row_->wait_ack.record(ns);
    }

    // What a wait that did not end well should tell the user. Asks the kernel about the broker.
    Status peer_status() noexcept {
        if (refused()) return Status::Faulted;
        if (no_more_acks()) return Status::BrokerStopped;
        if (lock_fd_ >= 0 && holder(lock_fd_, kBrokerLock) == Liveness::Gone) return Status::BrokerGone;
        return Status::Ok;
    }

    // --- looking ---

    u32 index() const noexcept { return index_; }
    Status state() const noexcept { return state_.load(std::memory_order_relaxed); }
    const PublisherOptions& options() const noexcept { return options_; }
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

private:
    static constexpr u64 kVariable = std::numeric_limits<u64>::max();  // no message has this size
    static constexpr u32 kNeverSample = 0;                             // wraps: 2^32 messages until it is looked at

    // Can a message of n bytes be appended at all?
    Status usable(u64 n, bool framed) const noexcept {
        if (const Status s = state(); s != Status::Ok) return s;
        if (reserved_) return Status::Reserved;
        if (n == 0) return Status::Empty;
        if (!framed && fixed_ != kVariable && n != fixed_) return Status::WrongSize;
        if (n > options_.batch_bytes || (framed && framed_size(n) > options_.batch_bytes)) return Status::TooLarge;
        return Status::Ok;
    }
    u64 batch_capacity(u64 message_size) const noexcept {
        return message_size ? options_.batch_bytes / message_size * message_size : options_.batch_bytes & ~u64{7};
    }

    [[gnu::noinline]] Status append_slow(const char* data, u64 n) noexcept {
        const bool variable = fixed_ == kVariable;
        if (!variable && n != fixed_ && n != 0 && state() == Status::Ok && !reserved_) return Status::WrongSize;
        if (const Status s = usable(n, variable); s != Status::Ok) return s;
        const u64 need = variable ? framed_size(n) : n;
        if (const Status s = open(variable ? Format::Variable : Format::Fixed, variable ? 0 : n, need); s != Status::Ok)
            return s;
        if (--until_sample_ == 0) [[unlikely]]
            timed_copy(variable ? cursor_ + kFrameHeader : cursor_, data, n, 1);
        else
            copy_bytes(variable ? cursor_ + kFrameHeader : cursor_, data, n, nontemporal_);
        if (variable)
            frame(n);
        else
            cursor_ += n;
        return full() ? commit() : Status::Ok;
    }

    // Writes length prefix and padding around the n bytes at cursor + 8, and moves the cursor.
    void frame(u64 n) noexcept {
        const u64 length = n;  // u32 length, u32 zero; little endian
        std::memcpy(cursor_, &length, sizeof length);
        const u64 size = framed_size(n);
        std::memset(cursor_ + kFrameHeader + n, 0, size - kFrameHeader - n);
        cursor_ += size;
        ++framed_messages_;
        framed_bytes_ += n;
    }
    bool full() const noexcept {  // no further message fits
        const auto room = static_cast<u64>(limit_ - cursor_);
        return room < (format_ == Format::Variable ? framed_size(1) : message_size_);
    }

    // Makes sure that a batch of this format is open, with `need` bytes of room.
    Status open(Format format, u64 message_size, u64 need) noexcept {
        if (start_) {
            if (format == format_ && message_size == message_size_ && need <= static_cast<u64>(limit_ - cursor_))
                return Status::Ok;
            if (cursor_ != start_)
                if (const Status s = commit(); s != Status::Ok) return s;
        }
        if (!start_)
            if (const Status s = claim(); s != Status::Ok) return s;
        format_ = format;
        message_size_ = message_size;
        limit_ = start_ + batch_capacity(message_size);
        framed_messages_ = framed_bytes_ = 0;
        return Status::Ok;
    }

    // Claims a slot without waiting. The quota counts this batch, too.
    Status claim() noexcept {
        const u64 begin = clock();
        if (no_more_batches()) return refused() ? Status::Faulted : Status::BrokerStopped;
        if (in_flight() >= options_.quota || !ring_.try_claim(index_, slot_, generation_)) return Status::NeedSlot;
        const u64 end = now_ns();
        ring_.slot(slot_).owned_since.store(end, std::memory_order_relaxed);
        if (options_.sample_every) {
            row_->get_buffer.record(end - begin);
            row_->wait_space.record(waiting_since_ ? begin - waiting_since_ : 0);
        }
        waiting_since_ = 0;
        start_ = cursor_ = ring_.payload_of(slot_);
        opened_ns_ = end;
        nontemporal_ = use_nontemporal(options_.copy, (u64{slot_} + 1) * ring_.geometry().slot_stride);
        if (linger_) linger_->opened(end);
        return Status::Ok;
    }

    // Commits the open batch: header, one CAS, wake.
    [[gnu::noinline]] Status commit() noexcept {
        const u64 now = now_ns();
        const auto body = static_cast<u64>(cursor_ - start_);
        const bool variable = format_ == Format::Variable;
        BatchHeader h{};
        h.magic = kBatchMagic;
        h.version = kBatchVersion;
        h.format = static_cast<u16>(format_);
        h.publisher_id = options_.publisher_id;
        h.incarnation = options_.incarnation;
        h.seq = committed_ + 1;
        h.messages = static_cast<u32>(variable ? framed_messages_ : body / message_size_);
        h.message_size = static_cast<u32>(message_size_);
        h.body_bytes = body;
        h.payload_bytes = variable ? framed_bytes_ : body;
        h.opened_ns = opened_ns_;
        h.committed_ns = now;
        h.check = header_check(h);
        std::memcpy(ring_.header_of(slot_), &h, sizeof h);
        if (nontemporal_) {
            copy_fence();
            Histogram::add(row_->nontemporal_batches, 1);
        }
        start_ = cursor_ = limit_ = nullptr;
        if (linger_) linger_->closed();
        if (ring_.commit(slot_, generation_) == kNoTicket) {
            state_.store(Status::Corrupt, std::memory_order_relaxed);
            return Status::Corrupt;
        }
        ++committed_;
        Histogram::add(row_->messages, h.messages);
        Histogram::add(row_->payload_bytes, h.payload_bytes);
        row_->committed_seq.store(committed_, std::memory_order_release);
        if (wake_if_sleeping(ring_.control().event, ring_.control().sleeping)) Histogram::add(row_->wakes_sent, 1);
        if (options_.sample_every) row_->send_payload.record(now_ns() - now);
        return Status::Ok;
    }

    // Gives the slot of a batch without messages back.
    void give_back() noexcept {
        ring_.give_back(slot_, generation_);
        start_ = cursor_ = limit_ = nullptr;
        if (linger_) linger_->closed();
        if (ring_.control().space_waiters.load(std::memory_order_seq_cst)) call_broker();
    }
    void call_broker() noexcept {
        Control& c = ring_.control();
        c.look_around.store(1, std::memory_order_seq_cst);  // pairs with the exchange in Broker::serve()
        wake_if_sleeping(c.event, c.sleeping);
    }

    u32 broker_state() const noexcept { return ring_.control().state.load(std::memory_order_seq_cst); }
    bool refused() const noexcept { return row_->fault.load(std::memory_order_seq_cst) != 0; }
    // Nothing new can be sent.
    bool no_more_batches() const noexcept {
        return refused() || broker_state() >= static_cast<u32>(BrokerState::Stopping);
    }
    // Nothing will be accepted any more.
    bool no_more_acks() const noexcept { return refused() || broker_state() >= static_cast<u32>(BrokerState::Stopped); }

    template <class Ready>
    Wait sleep_slice(Ready&& ready, u64 deadline_ns) noexcept {
        bool missed = false;
        const unsigned participants = 1 + ring_.control().attached.load(std::memory_order_relaxed);
        const Wait w = sleep_unless(ready, row_->event, row_->sleeping, deadline_ns, spin_.budget_ns(participants),
                                    kMaxSleepNs, missed);
        spin_.outcome(w == Wait::Ready);
        if (missed) Histogram::add(row_->missed_wakeups, 1);
        return w;
    }

    // --- stage times ---

    u64 clock() const noexcept { return options_.sample_every ? now_ns() : 0; }
    [[gnu::noinline]] void timed_copy(char* to, const char* from, u64 n, u64 messages) noexcept {
        const u64 begin = now_ns();
        copy_bytes(to, from, n, nontemporal_);
        const u64 elapsed = now_ns() - begin;
        row_->buffer_write.record((elapsed - std::min(elapsed, clock_cost_ns_)) / messages);
        until_sample_ = options_.sample_every ? options_.sample_every : kNeverSample;
    }
    static u64 clock_cost() noexcept {
        u64 best = ~0ULL;
        for (int i = 0; i < 100; ++i) {
            const u64 t = now_ns();
            best = std::min(best, now_ns() - t);
        }
        return best;
    }

    // Commits the open batch if it still is the one opened at `since`. On the linger thread.
    Linger::Tried commit_lingering(u64 since) noexcept {
        if (!lock.try_lock_remote()) return Linger::Tried::Busy;
        auto tried = Linger::Tried::Done;
        if (state() != Status::Ok)
            tried = Linger::Tried::Over;
        else if (linger_->open_since() == since)
            tried = reserved_ ? Linger::Tried::Busy : (commit(), Linger::Tried::Done);
        lock.unlock_remote();
        return tried;
    }
    void stop_linger() noexcept {
        delete linger_;
        linger_ = nullptr;
    }

    // What append() touches comes first, right behind the lock: two cache lines.
    u32 until_sample_ = 0;
    u64 fixed_ = 0;
    char* cursor_ = nullptr;
    char* limit_ = nullptr;  // end of the batch; == cursor_ when nothing can be appended the short way
    bool nontemporal_ = false;
    Format format_ = Format::Fixed;
    std::atomic<Status> state_{Status::Ok};  // written under the lock, read anywhere: relaxed
    char* start_ = nullptr;                  // first byte of the open batch, or null
    u64 message_size_ = 0;
    u64 framed_messages_ = 0;
    u64 framed_bytes_ = 0;
    u64 committed_ = 0;
    u64 reserved_ = 0;
    char* reserved_limit_ = nullptr;
    u32 slot_ = 0;
    u64 generation_ = 0;
    u64 opened_ns_ = 0;
    u64 waiting_since_ = 0;
    u64 clock_cost_ns_ = 0;

    Ring ring_;
    PublisherEntry* row_;
    u32 index_;
    int lock_fd_;
    PublisherOptions options_;
    SpinPolicy spin_;

    Linger* linger_ = nullptr;  // not owned by a smart pointer: a forked child forgets it
};

}  // namespace embar

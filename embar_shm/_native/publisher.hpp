// The publisher: appends messages to a slot it owns, and commits the slot as one batch.
//
//   append         copy one message to the cursor; the batch that is full is committed
//   append_block   the same for many messages of one size
//   reserve        hand out the place of the next message, to be written by the caller
//   flush          commit the batch that is not full
//
// The slot itself, its commit and all waiting are PublisherRow's (publisher_row.hpp). A function that would have to
// wait returns NeedSlot instead: the caller (bind_publisher.cpp) waits, and calls again.
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
#include "publisher_row.hpp"

namespace embar {

struct PublisherOptions {
    RowOptions row;
    u64 message_size = 0;  // 0: variable
    u64 batch_bytes = 0;
    u64 linger_ns = 0;  // 0: never
    CopyMode copy = CopyMode::Auto;
    u32 sample_every = 0;  // 0: no stage times
    bool turns = false;    // calls under the lock never begin at the same time: see BiasedLock
};

class Publisher : public PublisherRow {
public:
    // The caller holds the liveness lock of row `index` on `lock_fd`, and has seen the row free.
    Publisher(Ring ring, u32 index, int lock_fd, const PublisherOptions& options, const SpinOptions& spin)
        : PublisherRow(ring, index, lock_fd, options.row, spin), lock(options.turns), options_(options) {
        fixed_ = options.message_size ? options.message_size : kVariable;
        until_sample_ = options.sample_every ? options.sample_every : kNeverSample;
        if (options.sample_every) clock_cost_ns_ = clock_cost();
        if (options.linger_ns)
            linger_ = new Linger(options.linger_ns, [this](u64 since) { return commit_lingering(since); });
    }
    ~Publisher() { stop_linger(); }

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

    // Until it is taken back, no batch is opened any more: what a flush() after it commits is all there is, though
    // other threads go on. Relaxed: who calls this, and usable(), have the GIL or are one thread.
    void set_closing(bool closing) noexcept { closing_.store(closing, std::memory_order_relaxed); }
    bool is_closing() const noexcept { return closing_.load(std::memory_order_relaxed); }

    // Gives the row back to the broker. Flush first: an open batch is dropped, its slot is reaped.
    // => false: it was given back before.
    bool close() noexcept {
        if (state() == Status::Forked || state() == Status::Closed) return false;
        stop_linger();
        start_ = cursor_ = limit_ = nullptr;
        leave();
        return true;
    }
    const PublisherOptions& options() const noexcept { return options_; }
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

private:
    static constexpr u64 kVariable = std::numeric_limits<u64>::max();  // no message has this size
    static constexpr u32 kNeverSample = 0;                             // wraps: 2^32 messages until it is looked at

    // Can a message of n bytes be appended at all?
    Status usable(u64 n, bool framed) const noexcept {
        if (const Status s = state(); s != Status::Ok) return s;
        if (is_closing()) return Status::Closed;
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

    // Claims a slot for the next batch.
    Status claim() noexcept {
        if (const Status s = claim_slot(); s != Status::Ok) return s;
        start_ = cursor_ = ring_.payload_of(slot_);
        nontemporal_ = use_nontemporal(options_.copy, (u64{slot_} + 1) * ring_.geometry().slot_stride);
        if (linger_) linger_->opened(opened_ns_);
        return Status::Ok;
    }

    // Commits the open batch.
    [[gnu::noinline]] Status commit() noexcept {
        const u64 now = now_ns();
        const auto body = static_cast<u64>(cursor_ - start_);
        const bool variable = format_ == Format::Variable;
        BatchHeader h{};
        h.magic = kBatchMagic;
        h.version = kBatchVersion;
        h.format = static_cast<u16>(format_);
        h.publisher_id = options_.row.publisher_id;
        h.incarnation = options_.row.incarnation;
        h.seq = committed_ + 1;
        h.messages = static_cast<u32>(variable ? framed_messages_ : body / message_size_);
        h.message_size = static_cast<u32>(message_size_);
        h.body_bytes = body;
        h.payload_bytes = variable ? framed_bytes_ : body;
        h.opened_ns = opened_ns_;
        h.committed_ns = now;
        if (nontemporal_) {
            copy_fence();
            Histogram::add(row_->nontemporal_batches, 1);
        }
        start_ = cursor_ = limit_ = nullptr;
        if (linger_) linger_->closed();
        if (const Status s = commit_slot(h); s != Status::Ok) return s;
        if (options_.sample_every) row_->send_payload.record(now_ns() - now);
        return Status::Ok;
    }

    // Gives the slot of a batch without messages back.
    void give_back() noexcept {
        start_ = cursor_ = limit_ = nullptr;
        if (linger_) linger_->closed();
        give_slot_back();
    }

    // --- stage times ---

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
    char* start_ = nullptr;  // first byte of the open batch, or null
    u64 message_size_ = 0;
    u64 framed_messages_ = 0;
    u64 framed_bytes_ = 0;
    u64 reserved_ = 0;
    char* reserved_limit_ = nullptr;
    u64 clock_cost_ns_ = 0;
    std::atomic<bool> closing_{false};

    PublisherOptions options_;
    Linger* linger_ = nullptr;  // not owned by a smart pointer: a forked child forgets it
};

}  // namespace embar

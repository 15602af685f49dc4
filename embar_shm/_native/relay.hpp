// The relay: sends what one publisher commits to a ring of its own, somewhere else.
//
// A publisher without a broker on its machine fills batches in a private ring, with one row and as many slots as
// it may have in flight (transports/tcp.py). The relay stands in for the broker there: one thread takes committed
// batches in order and sends them; a batch is accepted and its slot released only when the distant broker has
// acknowledged it, of which another thread reads. Until then it can be sent again.
//
// With one publisher that counts from the beginning, batch `seq` is ticket `seq - 1`.
#pragma once

#include <mutex>

#include "broker.hpp"
#include "socket_io.hpp"

namespace embar {

class Relay {
public:
    Relay(Ring ring, const SpinOptions& spin, bool timed)
        : ring_(ring), broker_(ring, -1, spin, /*stage_times=*/false), spin_(spin), timed_(timed) {
        send_times_.reset();
    }

    const Ring& ring() const noexcept { return ring_; }

    // --- the sending thread ---

    // Sends batches from `sent + 1` on. => Whole: woken, or the last one (0: there is none) is sent. => else: the
    // socket is of no use any more.
    // `sent` counts the batches that the kernel has taken whole; with `forget` they need no acknowledgement.
    Transferred send(int fd, u64& sent, u64 last, bool forget) noexcept {
        for (;;) {
            sent = std::max(sent, acknowledged());
            if (last && sent >= last) return {Transferred::Whole, 0, 0};
            Ring::Committed where;
            if (!find(sent + 1, where)) {
                if (take_wake()) return {Transferred::Whole, 0, 0};
                wait_committed(sent + 1, now_ns() + kSliceNs);
                continue;
            }
            offer(sent + 1);
            const u64 begin = timed_ ? now_ns() : 0;
            iovec parts[2] = {{ring_.header_of(where.slot), sizeof(BatchHeader)},
                              {ring_.payload_of(where.slot), body_bytes(where)}};
            if (const Transferred t = send_bytes(fd, parts, 2, calls); t.how != Transferred::Whole) return t;
            ++sent;
            if (timed_) {
                send_times_.record(now_ns() - begin);
                if (sent % kLookAtQueuesEvery == 0) calls.look_at_queues(fd);
            }
            if (forget) acknowledge(sent);
            if (take_wake()) return {Transferred::Whole, 0, 0};
        }
    }
    // The same in single steps, for a connection that is encrypted elsewhere.
    // Where a batch that is committed and not acknowledged lies. => false: it is neither.
    bool find(u64 seq, Ring::Committed& where) noexcept {
        const std::scoped_lock guard(mutex_);
        return seq > acknowledged_ && ring_.holds(seq - 1) && ring_.look(seq - 1, where) == Ring::Look::Committed;
    }
    // Before batch `seq` is sent: from now on it may be acknowledged.
    void offer(u64 seq) noexcept { offered_.store(seq, std::memory_order_release); }  // pairs with acknowledge()
    u64 body_bytes(const Ring::Committed& where) const noexcept {
        u64 bytes;
        std::memcpy(&bytes, ring_.header_of(where.slot) + offsetof(BatchHeader, body_bytes), sizeof bytes);
        return std::min(bytes, ring_.geometry().slot_bytes);
    }
    // Sleeps (one slice) until batch `seq` is committed, or wake().
    Wait wait_committed(u64 seq, u64 deadline_ns) noexcept {
        Control& c = ring_.control();
        bool missed = false;
        const Wait w = sleep_unless([&] { return ring_.holds(seq - 1) || woken_.load(std::memory_order_seq_cst); },
                                    c.event, c.sleeping, deadline_ns, spin_.budget_ns(2), kMaxSleepNs, missed);
        spin_.outcome(w == Wait::Ready);
        if (missed) Histogram::add(c.missed_wakeups, 1);
        return w;
    }
    // Was wake() called since the last look? Else a wake-up that comes while a batch is sent would be lost.
    bool take_wake() noexcept { return woken_.exchange(false, std::memory_order_seq_cst); }

    // --- the thread that reads acknowledgements ---

    // Reads acknowledgements (`head` is how they begin) and releases what they cover.
    // => Whole: another frame begins, with the first `bytes` in `frame`. => else: the connection has ended.
    // `lie` is set to a batch that was acknowledged and never sent.
    Transferred read_acks(int fd, const char* head, AckFrame& frame, u64& lie) noexcept {
        auto* const bytes = reinterpret_cast<char*>(&frame);
        for (;;) {
            Transferred t = receive_bytes(fd, bytes, AckFrame::kHeadBytes, sizeof frame, calls);
            if (t.how != Transferred::Whole) return t;
            if (std::memcmp(frame.head, head, AckFrame::kHeadBytes) != 0) return t;
            if (const std::size_t left = sizeof frame - t.bytes; left) {
                t = receive_bytes(fd, bytes + t.bytes, left, left, calls);
                if (t.how != Transferred::Whole) return t;
            }
            if (!acknowledge(frame.seq)) {
                lie = frame.seq;
                return {Transferred::Failed, 0, 0};
            }
        }
    }
    // Releases everything up to `seq`. => false: some of it was never sent.
    bool acknowledge(u64 seq) noexcept {
        const std::scoped_lock guard(mutex_);
        if (seq > acknowledged_ && seq > offered_.load(std::memory_order_acquire)) return false;
        for (; acknowledged_ < seq; ++acknowledged_) {
            Accepted a;
            if (!broker_.accept(a)) return false;
            broker_.release_next();  // wakes the publisher for both
        }
        return true;
    }

    // --- any thread ---

    u64 acknowledged() noexcept {
        const std::scoped_lock guard(mutex_);
        return acknowledged_;
    }
    // Ends the present or next wait of the sending thread.
    void wake() noexcept {
        woken_.store(true, std::memory_order_seq_cst);
        wake_if_sleeping(ring_.control().event, ring_.control().sleeping);
    }
    // Nothing will be acknowledged any more: whoever waits learns it.
    void abandon() noexcept { broker_.abandon(); }
    Histogram& send_times() noexcept { return send_times_; }
    bool timed() const noexcept { return timed_; }

    SocketCalls calls;

private:
    Ring ring_;
    std::mutex mutex_;  // the sender and the reader of acknowledgements
    Broker broker_;
    SpinPolicy spin_;  // of the sender
    bool timed_;
    u64 acknowledged_ = 0;
    std::atomic<u64> offered_{0};
    std::atomic<bool> woken_{false};
    Histogram send_times_;
};

}  // namespace embar

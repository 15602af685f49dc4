// PublisherCore: a Publisher (publisher.hpp) that waits without the GIL, minds signals and raises Python's errors.
// Its methods for Python are bound in bind_publisher.cpp, reservations in bind_reservation.cpp.
#pragma once

#include "explain.hpp"
#include "publisher.hpp"

namespace embar {

class PublisherCore {
public:
    // `context` explains errors: embar_shm.segment.Segment. It must not refer back to this object.
    PublisherCore(nb::object context, nb::handle buffer, u32 index, int lock_fd, u64 publisher_id, u64 incarnation,
                  u64 message_size, u64 batch_bytes, u32 quota, u32 ack, double linger_ms, int copy, u32 sample_every,
                  int wait_mode, double spin_us, unsigned cpus, std::optional<double> timeout, double restart_timeout)
        : context_(std::move(context)), buffer_(buffer, true), timeout_(timeout),
          core(checked(buffer_, index, batch_bytes, message_size, quota), index, lock_fd,
               options(publisher_id, incarnation, message_size, batch_bytes, quota, ack, linger_ms, copy, sample_every,
                       restart_timeout),
               spin_options(wait_mode, spin_us, cpus)) {}

    // Throws the Python error for `status`; `size` is the message or batch number it is about.
    [[noreturn]] void raise(Status status, u64 size = 0) { raise_status(this, status, size); }
    [[noreturn]] void raise_timeout(const char* what, u64 seq, double waited) {
        raise_object(call_python("embar_shm.diagnose", "publisher_timeout", nb::cast(this, nb::rv_policy::reference),
                                 what, seq, waited));
    }
    [[noreturn]] static void raise_buffer(nb::handle object, const char* expected) {
        raise_object(call_python("embar_shm.diagnose", "buffer_error", object, expected));
    }

    // What would have to be waited for, in a call that must not wait: "lock", "space" or "ack".
    [[noreturn]] static void raise_would_wait(const char* what) {
        raise_object(call_python("embar_shm.diagnose", "would_wait", what));
    }

    // Holds the publisher's lock. Waits for another thread without the GIL.
    //
    // A thread that is without the GIL while it holds the lock (it waits for a slot, or copies much) and comes back at
    // once would have it always when those that wait look. So who unlocks leaves it to one of them every kTurnNs.
    class Guard {
    public:
        explicit Guard(PublisherCore& p) : Guard(p, p.blocking_) {}
        Guard(PublisherCore& p, bool blocking) : p_(p) {
            if (!p.core.lock.try_lock()) [[unlikely]] {
                if (p.owner_ == PyThread_get_thread_ident()) p.raise(Status::InUse);  // from a signal handler
                if (!blocking) raise_would_wait("lock");
                wait();
            }
            p.owner_ = PyThread_get_thread_ident();
        }
        ~Guard() {
            p_.owner_ = 0;
            if (p_.waiting_)
                if (const u64 now = now_ns(); now - p_.turn_ns_ > kTurnNs) {
                    p_.passed_on_ns_ = now;
                    return;
                }
            p_.core.lock.unlock();
        }
        Guard(const Guard&) = delete;
        Guard& operator=(const Guard&) = delete;

    private:
        static constexpr u64 kTurnNs = 2'000'000;

        void wait() {
            const u64 begin = now_ns(), deadline = deadline_after(p_.timeout_);
            if (p_.waiting_ == 0) p_.turn_ns_ = begin;
            do {
                if (now_ns() >= deadline) p_.raise_timeout("lock", 0, static_cast<double>(now_ns() - begin) / 1e9);
                // Counted, and so left the lock, only here: a signal handler may use the publisher, too.
                ++p_.waiting_;
                nap();
                --p_.waiting_;
                if (p_.passed_on_ns_ && begin <= p_.passed_on_ns_) {
                    p_.passed_on_ns_ = 0;
                    break;
                }
                check_signals();
            } while (!p_.core.lock.try_lock());
            p_.turn_ns_ = now_ns();
        }
        PublisherCore& p_;
    };

    // Runs a step until it needs no slot; waits in between. Under the lock.
    template <class Step>
    void run(Step&& step, u64 size) {
        Status s = step();
        if (s == Status::Ok) [[likely]]
            return;
        if (s == Status::Reserved && abandoned_ && !exports_) {
            core.finish_reservation(false);
            abandoned_ = false;
            s = step();
        }
        u64 begin = now_ns(), deadline = deadline_after(timeout_), seq = core.committed_seq();
        while (s == Status::NeedSlot) {
            if (!blocking_) {
                if (const Status peer = core.peer_status(); peer != Status::Ok) raise(peer);
                raise_would_wait("space");
            }
            if (core.committed_seq() != seq) {  // a long call gets on: the timeout is for standing still
                seq = core.committed_seq();
                begin = now_ns(), deadline = deadline_after(timeout_);
            }
            Wait w;
            {
                Unlocked unlocked;
                w = core.wait_space(std::min(deadline, now_ns() + kSliceNs));
            }
            check_signals();
            s = step();
            if (s != Status::NeedSlot || w == Wait::Ready) continue;
            if (const Status peer = core.peer_status(); peer != Status::Ok) raise(peer);
            if (now_ns() >= deadline) raise_timeout("space", 0, static_cast<double>(now_ns() - begin) / 1e9);
        }
        if (s != Status::Ok) raise(s, size);
    }

    void publish(const char* data, u64 n) {
        Guard guard(*this);
        run([&] { return core.append(data, n); }, n);
    }
    u64 flush() {
        Guard guard(*this);
        run([&] { return core.flush(); }, 0);
        return core.committed_seq();
    }
    void wait_acked(std::optional<double> timeout, std::optional<u64> seq) {
        if (!seq) seq = flush();
        if (core.state() != Status::Ok) raise(core.state());
        const u64 begin = ack_wait_since_ ? ack_wait_since_ : now_ns();
        const u64 deadline = deadline_after(timeout ? timeout : timeout_);
        if (!blocking_ && !acked(*seq) && core.peer_status() == Status::Ok) raise_would_wait("ack");
        for (;;) {
            Wait w;
            {
                Unlocked unlocked;
                w = core.wait_acked(*seq, std::min(deadline, now_ns() + kSliceNs));
            }
            if (acked(*seq)) break;
            check_signals();
            // The broker may have accepted the batch as its last act: look once more after its end.
            if (const Status peer = core.peer_status(); peer != Status::Ok) {
                if (acked(*seq)) break;
                raise(peer);
            }
            if (w != Wait::Ready && now_ns() >= deadline)
                raise_timeout("ack", *seq, static_cast<double>(now_ns() - begin) / 1e9);
        }
        ack_wait_since_ = 0;
        core.record_ack_wait(begin);
    }
    // For those whose calls must not wait (blocking_): waits, in another thread, until a call is worth another try
    // (True), because there is a slot (`space`), or batch `seq` is in the log, or it would raise. False at the timeout
    // and after interrupt(). With `space` it holds the lock: only who claims may wait for slots.
    bool wait(bool space, std::optional<u64> seq, std::optional<double> timeout) {
        std::optional<Guard> guard;
        if (space) guard.emplace(*this, true);
        if (seq && !ack_wait_since_) ack_wait_since_ = now_ns();
        const u64 deadline = deadline_after(timeout), last = seq.value_or(PublisherRow::kNoSeq);
        for (;;) {
            if (core.accepted_seq() >= last || (space && core.may_claim())) return true;
            if (core.state() != Status::Ok || core.peer_status() != Status::Ok) return true;
            if (space && core.is_closing()) return true;
            if (now_ns() >= deadline) return false;
            {
                Unlocked unlocked;
                const u64 slice = std::min(deadline, now_ns() + kSliceNs);
                space ? core.wait_space(slice, last) : core.wait_acked(last, slice);
            }
            check_signals();
            if (interrupted_.exchange(false)) {
                core.resume();
                return false;
            }
        }
    }
    // Ends a wait() of another thread, or else the next one.
    void interrupt() {
        interrupted_ = true;
        core.interrupt();
    }
    // Throws when another thread has closed the publisher: the row may be somebody else's by now.
    bool acked(u64 seq) {
        const bool found = core.accepted_seq() >= seq;
        if (core.state() != Status::Ok) raise(core.state());
        return found;
    }
    void drop_reservation() {
        Guard guard(*this, true);
        if (!core.has_reservation()) return;
        if (exports_) throw nb::buffer_error(kViewAlive);
        core.finish_reservation(false);
    }
    // The child has none of the threads that had the lock, or waited for it.
    void after_fork_in_child() noexcept {
        core.after_fork_in_child();
        owner_ = 0;
        waiting_ = 0;
        passed_on_ns_ = 0;
    }
    // Other threads' messages are refused from here on, and what they wait for is over. close() follows.
    void begin_close() noexcept { core.set_closing(true); }
    // => true: it was open until now; the last one to use the row was this publisher.
    bool close() {
        try {
            drop_reservation();
            Guard guard(*this, true);
            return core.close();
        } catch (...) {
            core.set_closing(false);
            throw;
        }
    }
    std::string state() const { return name(core.state()); }
    std::string peer() { return name(core.peer_status()); }

    static constexpr const char* kViewAlive =
        "a view or array of the reserved memory is still alive: it would change a batch that is committed. "
        "Delete it (del array) before the reservation ends; this message is dropped";

    HeldObject context_;
    HeldBuffer buffer_;
    std::optional<double> timeout_;
    bool blocking_ = true;  // false: what would have to wait raises WouldWait
    u64 exports_ = 0;       // live buffers of the open reservation
    u64 reservations_ = 0;
    std::atomic<unsigned long> owner_{0};  // the thread in a call that may run signal handlers
    u32 waiting_ = 0;                      // threads that sleep until they get the lock
    u64 turn_ns_ = 0;                      // since when they do, or since one of them had it
    u64 passed_on_ns_ = 0;    // it is locked, and the first that looks of those that waited then has it; 0: it is not
    bool abandoned_ = false;  // it never ended, or could not while views were alive: dropped when they are gone
    Publisher core;

private:
    std::atomic<bool> interrupted_{false};
    u64 ack_wait_since_ = 0;  // of the first wait() for an acknowledgement that wait_acked() has not told yet

    static Ring checked(const HeldBuffer& b, u32 index, u64 batch_bytes, u64 message_size, u32 quota) {
        const Ring ring = ring_in(b);
        if (index >= ring.geometry().max_publishers) throw nb::index_error("no such row in the publishers table");
        if (batch_bytes < 16 || batch_bytes > ring.geometry().slot_bytes)
            throw nb::value_error("batch_bytes must be 16 bytes to the size of a slot");
        if (message_size > batch_bytes) throw nb::value_error("message_size is larger than batch_bytes");
        if (quota < 1) throw nb::value_error("quota must be at least 1");
        return ring;
    }
    static PublisherOptions options(u64 id, u64 incarnation, u64 message_size, u64 batch_bytes, u32 quota, u32 ack,
                                    double linger_ms, int copy, u32 sample_every, double restart_timeout) {
        if (copy < 0 || copy > 2) throw nb::value_error("copy must be 0 (auto), 1 (plain) or 2 (nontemporal)");
        PublisherOptions o;
        o.row = {id, incarnation, quota, ack, sample_every != 0, nanoseconds(restart_timeout)};
        o.message_size = message_size;
        o.batch_bytes = batch_bytes;
        o.linger_ns = static_cast<u64>(std::clamp(linger_ms, 0.0, 1e9) * 1e6);
        o.copy = static_cast<CopyMode>(copy);
        o.sample_every = sample_every;
#if !defined(Py_GIL_DISABLED)
        o.turns = true;
#endif
        return o;
    }
};

}  // namespace embar

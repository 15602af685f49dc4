// SubscriberCore: a Subscriber (subscriber.hpp) that waits without the GIL, minds signals and raises Python's errors.
// What it hands out are Batches (batch.hpp). Its methods for Python are bound in bind_subscriber.cpp.
#pragma once

#include <pthread.h>

#include <memory>
#include <vector>

#include "broker_core.hpp"
#include "explain.hpp"
#include "subscriber.hpp"

namespace embar {

// How many forks this process has behind it. A core that was made before the last one is the parent's, which Python's
// hooks cannot tell a core whose Subscriber is gone and which only a view keeps alive.
inline std::atomic<unsigned> forks_behind{0};
inline void count_forks() {
    if (pthread_atfork(nullptr, nullptr, [] { forks_behind.fetch_add(1, std::memory_order_relaxed); }) != 0)
        throw std::bad_alloc();
}

class SubscriberCore {
public:
    // `context` explains errors: embar_shm.segment.Segment. `slots`: a buffer of the slots alone, or None when they are
    // in `buffer`. `broker`: the ring's BrokerCore, which waiting here serves, or None. `on_left()` is called once no
    // batch is in use and the row is given back. None of them may refer back to this object.
    SubscriberCore(nb::object context, nb::handle buffer, nb::handle slots, u32 index, int lock_fd,
                   const std::string& name, int mode, int start, u64 ticket, bool sole, int wait_mode, double spin_us,
                   unsigned cpus, std::optional<double> timeout, nb::object broker, nb::object on_left,
                   double restart_timeout)
        : context_(std::move(context)), buffer_(buffer, true), broker_(std::move(broker)), on_left_(std::move(on_left)),
          timeout_(timeout), driver_(broker_.is_none() ? nullptr : nb::cast<BrokerCore*>(broker_)),
          core(checked(slots, index), index, lock_fd, name.c_str(), options(mode, start, ticket, sole, restart_timeout),
               spin_options(wait_mode, spin_us, cpus)) {}

    // Subscribers of one process: one thread is in a call at a time. The row is given back in nobody's call.
    class Turn {
    public:
        Turn(SubscriberCore& s, std::optional<double> timeout) : s_(s) {
            const unsigned long me = PyThread_get_thread_ident();
            s.check_open();
            if (take(me)) [[likely]]
                return;
            if (s.turn_.load(std::memory_order_relaxed) == me) s.raise("in_use");  // from a signal handler
            const u64 begin = now_ns(), deadline = deadline_after(timeout);
            while (!take(me)) {
                s.check_open();
                if (now_ns() >= deadline) s.raise("lock", static_cast<double>(now_ns() - begin) / 1e9);
                nap();
                check_signals();
            }
        }
        ~Turn() {
            s_.turn_.store(0, std::memory_order_seq_cst);  // pairs with take(), and with the look in leave_if_idle()
            s_.leave_if_idle();
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

    private:
        bool take(unsigned long me) noexcept {
            unsigned long nobody = 0;
            return s_.turn_.compare_exchange_strong(nobody, me, std::memory_order_seq_cst, std::memory_order_relaxed);
        }
        SubscriberCore& s_;
    };

    // Throws the Python error for `status` (embar_shm/diagnose_subscriber.py); `number`: seconds, or a ticket.
    [[noreturn]] void raise(const char* status, double number = 0) {
        raise_object(call_python("embar_shm.diagnose_subscriber", "subscriber_error",
                                 nb::cast(this, nb::rv_policy::reference), status, number));
    }

    // Waits until the broker has answered the request to join.
    void join(double timeout) {
        const u64 begin = now_ns(), deadline = deadline_after(timeout);
        for (;;) {
            if (driver_) driver_->core.admit();
            const Subscriber::Joined j = core.joined();
            if (j == Subscriber::Joined::Yes) return;
            if (j == Subscriber::Joined::No) raise("refused");
            {
                Unlocked unlocked;
                core.wait_joined(std::min(deadline, now_ns() + kSliceNs));
            }
            check_signals();
            if (core.joined() != Subscriber::Joined::Waiting) continue;
            if (const auto p = core.peer(); p != Subscriber::Peer::Ok) raise(name(p));
            if (now_ns() >= deadline) raise("not_admitted", static_cast<double>(now_ns() - begin) / 1e9);
        }
    }

    enum class Found { Batch, Nothing, End };
    using View = Subscriber::View;

    // Takes the next batch; `copy` holds its bytes if it was copied. => Nothing: there is none now.
    Found poll(View& v, std::unique_ptr<char[]>& copy) {
        Turn turn(*this, timeout_);
        Broker::Result served = Broker::Result::Ready;
        if (driver_) {
            Unlocked unlocked;
            served = driver_->core.serve(0, core.next());
        }
        if (take(v, copy)) return Found::Batch;
        if (served == Broker::Result::Corrupt) raise("corrupt");
        if (served == Broker::Result::Stopped) {
            driver_->core.resume();
            return Found::End;
        }
        const auto p = core.peer();
        if (p == Subscriber::Peer::Ok) return Found::Nothing;
        return take(v, copy) ? Found::Batch : ended(p);  // it may have been accepted before the end
    }
    // The same, but waits until there is one, or there never will be (End).
    Found next(View& v, std::unique_ptr<char[]>& copy, std::optional<double> timeout) {
        Turn turn(*this, timeout);
        if (take(v, copy)) return Found::Batch;
        // Shorter than giving the GIL away and getting it back.
        if ((driver_ ? driver_->core.look_briefly(core.next()) : core.look_briefly()) && take(v, copy))
            return Found::Batch;
        const u64 begin = now_ns(), deadline = deadline_after(timeout);
        for (;;) {
            bool stopped = false;
            {
                Unlocked unlocked;
                const u64 slice = std::min(deadline, now_ns() + kSliceNs);
                if (!driver_)
                    core.wait(slice);
                else
                    stopped = driver_->core.serve(slice, core.next()) == Broker::Result::Stopped;
            }
            if (take(v, copy)) return Found::Batch;
            check_signals();
            check_open();  // a signal handler may have closed it
            if (driver_ && driver_->core.corruption()) raise("corrupt");
            if (stopped) {
                driver_->core.resume();
                return Found::End;
            }
            if (interrupted_.exchange(false)) {
                core.resume();
                return Found::Nothing;
            }
            if (const auto p = core.peer(); p != Subscriber::Peer::Ok) return take(v, copy) ? Found::Batch : ended(p);
            if (now_ns() >= deadline) raise("timeout", static_cast<double>(now_ns() - begin) / 1e9);
        }
    }
    // Waits until a batch can be taken, or never will (True), without taking it; False at the timeout.
    bool wait(std::optional<double> timeout) {
        const u64 deadline = deadline_after(timeout);
        std::optional<Turn> turn;
        if (driver_) turn.emplace(*this, timeout);  // one thread serves
        Broker::Result served = Broker::Result::Ready;
        for (;;) {
            check_open();
            if (core.available() > core.next() || core.peer() != Subscriber::Peer::Ok) return true;
            if (served == Broker::Result::Stopped || served == Broker::Result::Corrupt) return true;
            if (now_ns() >= deadline) return false;
            {
                Unlocked unlocked;
                const u64 slice = std::min(deadline, now_ns() + kSliceNs);
                if (!driver_)
                    core.wait(slice);
                else
                    served = driver_->core.serve(slice, core.next());
            }
            check_signals();
            if (interrupted_.exchange(false)) {
                core.resume();
                return false;
            }
        }
    }
    // Ends a next() or wait() of another thread, or the following one.
    void interrupt() {
        interrupted_ = true;
        core.interrupt();
    }

    // --- batches in use ---

    // A buffer of a batch is exported. => false: the subscriber is closed.
    bool pin() noexcept {
        ++pinned_;
        if (!closed_) return true;
        unpin();
        return false;
    }
    void unpin() noexcept {
        if (--pinned_ == 0) leave_if_idle();
    }
    void pass(u64 place) noexcept {
        if (!left_ && !is_forked()) core.pass(place);
    }
    std::unique_ptr<char[]> spare() noexcept {
        const std::lock_guard<std::mutex> guard(spares_mutex_);
        if (spares_.empty()) return std::unique_ptr<char[]>(new (std::nothrow) char[core.ring().geometry().slot_bytes]);
        auto buffer = std::move(spares_.back());
        spares_.pop_back();
        return buffer;
    }
    void give_spare(std::unique_ptr<char[]> buffer) noexcept {
        if (is_forked()) return;  // a thread that is not here may have held the mutex
        const std::lock_guard<std::mutex> guard(spares_mutex_);
        if (spares_.size() < kSpares) spares_.push_back(std::move(buffer));
    }

    // No more batches. Those in use by a view keep their slots until it is gone; then the row is given back.
    void close() noexcept {
        if (closed_.exchange(true)) return;
        core.interrupt();
        leave_if_idle();
    }
    // Waits until no other thread is in a call. Once closed, they come out within kSliceNs.
    void settle() {
        const unsigned long me = PyThread_get_thread_ident();
        for (unsigned long in_call; (in_call = turn_) != 0 && in_call != me;) nap();
    }
    bool is_closed() const noexcept { return closed_ || is_forked(); }
    bool is_forked() const noexcept { return forks_behind.load(std::memory_order_relaxed) != born_after_; }
    u32 pinned() const noexcept { return pinned_; }

    HeldObject context_;
    HeldBuffer buffer_;
    std::unique_ptr<HeldBuffer> slots_;
    HeldObject broker_;
    HeldObject on_left_;
    std::optional<double> timeout_;
    BrokerCore* driver_;
    Subscriber core;

private:
    static constexpr std::size_t kSpares = 4;
    static constexpr u64 kCopyUnderGil = 64 * 1024;  // shorter than giving the GIL away and getting it back

    static const char* name(Subscriber::Peer p) {
        if (p == Subscriber::Peer::Quarantined) return "quarantined";
        return p == Subscriber::Peer::Stopped ? "stopped" : "gone";
    }

    Ring checked(nb::handle slots, u32 index) {
        Geometry g;
        const bool apart = !slots.is_none();
        if (const char* why = Ring::unusable(buffer_.data(), buffer_.size(), g, !apart)) throw nb::value_error(why);
        if (index >= g.max_subscribers) throw nb::index_error("no such row in the subscribers table");
        if (!apart) return Ring(buffer_.data(), g);
        slots_ = std::make_unique<HeldBuffer>(slots, false);
        if (slots_->size() < g.total_bytes - g.slots_offset) throw nb::value_error("the slots are truncated");
        return Ring(buffer_.data(), g, slots_->data());
    }
    static SubscriberOptions options(int mode, int start, u64 ticket, bool sole, double restart_timeout) {
        if (mode < 0 || mode > 1) throw nb::value_error("mode must be 0 (reliable) or 1 (lossy)");
        if (start < 0 || start > 2) throw nb::value_error("start must be 0 (latest), 1 (earliest) or 2 (ticket)");
        return {static_cast<SubscribeMode>(mode), static_cast<Start>(start), ticket, sole,
                nanoseconds(restart_timeout)};
    }

    bool take(View& v, std::unique_ptr<char[]>& copy) {
        check_open();
        Subscriber::Take t;
        const auto into = [&](const char* body, u64 bytes) -> const char* {
            if (!copy) copy = spare();
            if (copy) std::memcpy(copy.get(), body, bytes);
            return copy.get();
        };
        if (core.options().mode == SubscribeMode::Lossy && !core.options().sole &&
            core.ring().geometry().slot_bytes > kCopyUnderGil && core.available() > core.next()) {
            Unlocked unlocked;
            t = core.take(v, into);
        } else {
            t = core.take(v, into);
        }
        switch (t) {
            case Subscriber::Take::Batch: return true;
            case Subscriber::Take::Nothing: break;
            case Subscriber::Take::Damaged: raise("damaged", static_cast<double>(v.ticket));
            case Subscriber::Take::Corrupt: raise("corrupt");
            case Subscriber::Take::NoMemory: PyErr_NoMemory(); throw nb::python_error();
        }
        return false;
    }
    Found ended(Subscriber::Peer p) {
        if (p != Subscriber::Peer::Stopped) raise(name(p));
        return Found::End;
    }
    void check_open() {
        if (is_closed()) raise(is_forked() ? "forked" : "closed");
    }
    // Once it is closed, nobody is in a call, and no view is alive, whichever comes last.
    void leave_if_idle() noexcept {
        if (!closed_ || pinned_ || turn_ || is_forked() || left_.exchange(true)) return;
        core.leave();
        PyObject *type, *value, *traceback;  // this may be the end of a view while an error is on its way
        PyErr_Fetch(&type, &value, &traceback);
        try {
            stay_if_python_ends([this] { on_left_(); });
        } catch (nb::python_error& e) {
            e.restore();
            PyErr_WriteUnraisable(on_left_.ptr());
        }
        PyErr_Restore(type, value, traceback);
    }

    std::atomic<unsigned long> turn_{0};  // the thread in a call
    std::atomic<bool> closed_{false}, left_{false}, interrupted_{false};
    const unsigned born_after_ = forks_behind.load(std::memory_order_relaxed);
    std::atomic<u32> pinned_{0};  // batches with a live buffer
    std::mutex spares_mutex_;
    std::vector<std::unique_ptr<char[]>> spares_;  // for copies of lossy subscribers
};

}  // namespace embar

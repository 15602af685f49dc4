// The feed: sends the batches of the broker's ring to one subscriber on another machine.
//
//   find       the next batch to send, if the other side has room for it
//   send       all of them, into a plain socket, batch after batch
//   credit     what the other side says it has received, and how much more it has room for
//   resume     a new connection of the same subscriber: what it did not receive is sent again
//
// The row belongs to the broker's own process and stands for the remote subscriber. A batch that was sent to a
// *reliable* one stays where it is, so holds back the publishers, until the other side has said that it received it.
// What was sent to a *lossy* one is forgotten, and the feed ends with its connection: the next one is another feed,
// which begins where the last batch arrived, if the log still has that place.
//
// A feed can take over the row of one whose process was killed (options.resumes_at). What that one had sent is not
// known, so the other side may say of everything that is in the log that it has it.
//
// One thread finds and sends, another one reads credits; interrupt() ends the waits of the first.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <new>

#include "socket_io.hpp"
#include "subscriber.hpp"

namespace embar {

// What a CREDIT frame says (embar_shm/subscribe_frames.py).
struct Credit {
    u64 received;  // every batch with a lower ticket
    u64 granted;   // batches on this connection, from its beginning
};
struct CreditFrame {
    static constexpr std::size_t kHeadBytes = 16;
    char head[kHeadBytes];
    Credit credit;
};
static_assert(sizeof(CreditFrame) == 32);
inline constexpr u64 kMaxCredit = kMaxSlots;

class Feed {
public:
    Feed(Ring ring, u32 index, int lock_fd, const char* name, const SubscriberOptions& options, const SpinOptions& spin)
        : subscriber_(ring, index, lock_fd, name, options, spin), reliable_(options.mode == SubscribeMode::Reliable),
          taken_over_(options.resumes_at != kNoTicket) {
        if (taken_over_) credit_.received = sent_to_ = options.resumes_at;
    }

    Subscriber& subscriber() noexcept { return subscriber_; }

    // --- connections ---

    // The broker has answered: that is where it begins. `wanted`: where a lossy subscriber would have gone on; what it
    // missed since is a gap before the first batch.
    void begin(u64 wanted) noexcept {
        const std::scoped_lock guard(mutex_);
        credit_.received = sent_to_ = subscriber_.next();
        if (reliable_ || wanted >= sent_to_) return;
        credit_.received = wanted;  // as it will say
        gap_ = sent_to_ - wanted;
    }
    // A connection begins: the other side has everything before `ticket`, and room for `granted` batches.
    // => false: it says it has what was never sent, or wants what it said it had.
    bool resume(u64 ticket, u64 granted) noexcept {
        const std::scoped_lock guard(mutex_);
        if (granted > kMaxCredit) return false;
        if (taken_over_) {
            if (!subscriber_.may_go_on_at(ticket)) return false;
            subscriber_.go_on_at(ticket);
            taken_over_ = false;
            sent_to_ = ticket;
        } else if (ticket < credit_.received || ticket > sent_to_) {
            return false;
        }
        forget(ticket);
        again_ = 0;
        credit_ = {ticket, granted};
        on_this_ = 0;
        subscriber_.resume();
        interrupted_ = false;
        return true;
    }
    // Ends the waits of the sending thread, until resume(). Any thread.
    void interrupt() noexcept {
        {
            const std::scoped_lock guard(mutex_);
            interrupted_ = true;
        }
        room_.notify_all();
        subscriber_.interrupt();
    }

    // --- the sending thread ---

    enum class Found {
        Batch,        // `view`: header with ticket and gap, and body
        Waited,       // nothing to send for a while: look around, and call again
        Interrupted,  // interrupt()
        End,          // the broker has stopped, and everything was sent
        Gone,         // the broker died
        Damaged,      // the batch `view.ticket` was changed after the broker had accepted it
        Corrupt,      // the ring's words make no sense
        NoMemory,
    };
    // Waits (one slice) for the next batch, and for room for it. What is found counts as sent.
    Found find(Subscriber::View& view) noexcept {
        {
            std::unique_lock lock(mutex_);
            if (on_this_ >= credit_.granted && !interrupted_)
                room_.wait_for(lock, std::chrono::nanoseconds(kSliceNs),
                               [this] { return on_this_ < credit_.granted || interrupted_; });
            if (interrupted_) return Found::Interrupted;
            if (on_this_ >= credit_.granted) return Found::Waited;
            if (again_ < sent_.size()) {
                view = sent_[again_++];
                ++on_this_;
                return Found::Batch;
            }
        }
        switch (take(view)) {
            case Subscriber::Take::Batch: return offer(view);
            case Subscriber::Take::Damaged: return Found::Damaged;
            case Subscriber::Take::NoMemory: return Found::NoMemory;
            case Subscriber::Take::Corrupt: return Found::Corrupt;
            case Subscriber::Take::Nothing: break;
        }
        const Subscriber::Peer peer = subscriber_.peer();
        if (peer != Subscriber::Peer::Ok) {
            // The broker may have accepted something as its last act: look once more after its end.
            if (subscriber_.available() > subscriber_.next()) return Found::Waited;
            if (peer == Subscriber::Peer::Quarantined) return Found::Corrupt;
            return peer == Subscriber::Peer::Stopped ? Found::End : Found::Gone;
        }
        subscriber_.wait(now_ns() + kSliceNs);
        return subscriber_.interrupted() ? Found::Interrupted : Found::Waited;
    }

    struct Ended {
        Found why;  // Batch: the socket failed, `socket` says how
        Transferred socket{Transferred::Whole, 0, 0};
        u64 ticket = 0;  // Damaged: of that batch
    };
    Ended send(int fd) noexcept {
        for (;;) {
            Subscriber::View view;
            const Found found = find(view);
            if (found == Found::Waited) continue;
            if (found != Found::Batch) return {found, {Transferred::Whole, 0, 0}, view.ticket};
            iovec parts[2] = {{&view.header, sizeof view.header},
                              {const_cast<char*>(view.body), static_cast<std::size_t>(view.header.body_bytes)}};
            if (const Transferred t = send_bytes(fd, parts, 2, calls); t.how != Transferred::Whole)
                return {Found::Batch, t, view.ticket};
            if (++counted_ % kLookAtQueuesEvery == 0) calls.look_at_queues(fd);
        }
    }

    // --- the thread that reads credits ---

    // Reads CREDIT frames (`head` is how they begin) until something else comes.
    // => Whole: another frame begins, with the first `bytes` in `frame`; or, if `bytes` is all of it, it is a CREDIT
    // that cannot be. => else: the connection has ended.
    Transferred read_credits(int fd, const char* head, CreditFrame& frame) noexcept {
        auto* const bytes = reinterpret_cast<char*>(&frame);
        for (;;) {
            Transferred t = receive_bytes(fd, bytes, CreditFrame::kHeadBytes, sizeof frame, calls);
            if (t.how == Transferred::Stalled && t.bytes == 0) continue;  // it has nothing to say
            if (t.how != Transferred::Whole) return t;
            if (std::memcmp(frame.head, head, CreditFrame::kHeadBytes) != 0) return t;
            if (const std::size_t left = sizeof frame - t.bytes; left) {
                t = receive_bytes(fd, bytes + t.bytes, left, left, calls);
                if (t.how != Transferred::Whole) return t;
            }
            if (!credit(frame.credit)) return {Transferred::Whole, sizeof frame, 0};
        }
    }
    // => false: no honest subscriber says that (subscribe_frames.check_credit explains why).
    bool credit(const Credit& c) noexcept {
        {
            const std::scoped_lock guard(mutex_);
            if (c.received < credit_.received || c.received > sent_to_ || c.granted < credit_.granted ||
                c.granted > on_this_ + kMaxCredit)
                return false;
            forget(c.received);
            credit_ = c;
        }
        room_.notify_all();
        return true;
    }

    // --- looking, any thread ---

    struct Known {
        Credit credit;
        u64 on_this;  // batches sent on this connection
        u64 sent_to;  // the ticket after the last batch that was ever sent
    };
    Known known() noexcept {
        const std::scoped_lock guard(mutex_);
        return {credit_, on_this_, sent_to_};
    }

    SocketCalls calls;

private:
    Subscriber::Take take(Subscriber::View& view) noexcept {
        return subscriber_.take(view, [this](const char* body, u64 bytes) -> const char* {
            if (!copy_) copy_.reset(new (std::nothrow) char[subscriber_.ring().geometry().slot_bytes]);
            if (copy_) std::memcpy(copy_.get(), body, bytes);
            return copy_.get();
        });
    }
    // From now on the other side may say that it has this one.
    Found offer(Subscriber::View& view) noexcept {
        const std::scoped_lock guard(mutex_);
        view.gap += gap_;
        gap_ = 0;
        view.header.ticket = view.ticket;
        view.header.gap = view.gap;
        view.header.check = header_check(view.header);
        if (reliable_) {
            sent_.push_back(view);
            again_ = sent_.size();
        }
        sent_to_ = view.ticket + 1;
        ++on_this_;
        return Found::Batch;
    }
    // The other side has received everything before `ticket`. With the mutex.
    void forget(u64 ticket) noexcept {
        while (!sent_.empty() && sent_.front().ticket < ticket) {
            subscriber_.pass(sent_.front().place);
            sent_.pop_front();
            if (again_) --again_;
        }
    }

    Subscriber subscriber_;
    const bool reliable_;
    bool taken_over_;               // and no connection has begun since
    std::unique_ptr<char[]> copy_;  // of the batch that is sent to a lossy subscriber
    u64 counted_ = 0;               // batches that the sending thread sent natively
    std::mutex mutex_;              // around the rest
    std::condition_variable room_;
    std::deque<Subscriber::View> sent_;  // to a reliable subscriber, and not known to be received
    std::size_t again_ = 0;              // so many of them were sent on this connection
    Credit credit_{0, 0};
    u64 on_this_ = 0;
    u64 sent_to_ = 0;
    u64 gap_ = 0;  // missed before the first batch
    bool interrupted_ = false;
};

}  // namespace embar

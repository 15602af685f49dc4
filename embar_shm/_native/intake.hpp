// The intake: brings the batches that a distant broker sends into a private ring, for a subscriber of this process.
//
//   receive      all of them, from a plain socket, batch after batch
//   next_credit  what the broker should be told: what is here, and how many more have a slot
//   wait_credit  sleep until a slot came free that the broker waits for
//
// The ring has as many slots as batches may be on their way or in use. The subscriber reads and frees them (subscriber.
// hpp, sole); a slot that is free is a credit. The broker has credits for free slots only, so a batch never waits here.
//
// Most credits travel behind a batch that was received, by the thread that received it. Only when the broker has few
// left, a second thread waits for the next slot that comes free; else it sleeps, and frees cost nobody a wake-up.
#pragma once

#include <condition_variable>
#include <mutex>

#include "feed.hpp"
#include "receiver.hpp"

namespace embar {

class Intake : public Receiver {
public:
    // Row 0 of the private ring; `first`: the lowest ticket that may come.
    Intake(Ring ring, const RowOptions& options, bool reliable, u64 first)
        : Receiver(ring, 0, -1, options, {WaitMode::Block, 0, 1}), reliable_(reliable), next_ticket_(first) {}

    // --- a connection ---

    // It begins: how many batches may come before the first CREDIT.
    u64 connect() noexcept {
        const std::scoped_lock guard(mutex_);
        begun_at_ = committed_seq();
        const u64 slots = slots_free();
        slots_told_.store(slots, std::memory_order_seq_cst);
        told_ = {next_ticket_.load(std::memory_order_relaxed), slots - begun_at_};
        ended_ = false;
        look();
        resume();
        return told_.granted;
    }
    // It ends: nobody waits for a credit any more.
    void disconnect() noexcept {
        {
            const std::scoped_lock guard(mutex_);
            ended_ = true;
        }
        few_.notify_all();
        interrupt();
    }

    // After disconnect(): waits until the CREDIT that another thread may be sending is sent. Nothing of ours follows
    // it.
    void settle() noexcept { const std::scoped_lock guard(telling_); }

    // --- the receiving thread ---

    // Receives batches of at most `limit` bytes until it cannot go on; says so in CREDIT frames, which begin with
    // `head`.
    Ended receive(int fd, u64 limit, const Patience& patience, const char* head, BatchHeader& header) noexcept {
        for (;;) {
            Transferred t = receive_bytes(fd, reinterpret_cast<char*>(&header), sizeof header, sizeof header, calls);
            if (t.how == Transferred::Stalled && t.bytes == 0) {
                if (has_ended()) return {Ended::Interrupted};
                continue;  // nothing is published
            }
            if (t.how == Transferred::Closed && t.bytes == 0) return {Ended::Closed};
            if (t.how != Transferred::Whole) return cut(t, sizeof header);
            char* body = nullptr;
            if (!is_next(header, limit) || !has_slot() || claim(body) != Status::Ok) return {Ended::Header};
            t = receive_bytes(fd, body, header.body_bytes, header.body_bytes, calls,
                              patience.deadline(now_ns(), header.body_bytes));
            if (t.how != Transferred::Whole) {
                give_back();
                return cut(t, header.body_bytes);
            }
            if (const Status s = commit(header); s != Status::Ok) return ring_ended(s);
            if (t = send_credit(fd, head, true); t.how != Transferred::Whole) return lost(t, sizeof(CreditFrame));
            if (committed_seq() % kLookAtQueuesEvery == 0) calls.look_at_queues(fd);
        }
    }
    // Its times stay those of the machine that published it.
    Status commit(const BatchHeader& h) noexcept {
        const Status s = commit_as_it_is(h, 0);
        if (s != Status::Ok) return s;
        next_ticket_.store(h.ticket + 1, std::memory_order_release);
        return s;
    }
    // Does the broker have a credit for the batch that comes?
    bool has_slot() noexcept { return in_flight() < ring_.geometry().slots; }

    // --- credits ---

    // What to tell now, if there is anything new. `received`: a batch came; else it only counts when the broker waits.
    // What is told is never taken back: one thread at a time asks and tells.
    bool next_credit(bool received, Credit& credit) noexcept {
        const std::scoped_lock guard(mutex_);
        const u64 slots = slots_free();
        credit = {next_ticket_.load(std::memory_order_relaxed), slots - begun_at_};
        slots_told_.store(slots, std::memory_order_seq_cst);
        if (ended_ || (!received && !wanted_)) return false;
        const bool news = credit.received != told_.received || credit.granted != told_.granted;
        told_ = credit;
        look();
        return news;
    }
    // Sleeps until the broker waits for a slot and one came free. => false: disconnect().
    bool wait_credit() noexcept {
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                few_.wait(lock, [this] { return wanted_ || ended_; });
                if (ended_) return false;
            }
            const auto came_free = [this] { return slots_told_.load(std::memory_order_seq_cst) < slots_free(); };
            if (came_free()) return true;
            sleep_slice([&] { return came_free() || interrupted(); }, now_ns() + kSliceNs);
        }
    }
    // Tells the broker, if there is anything to tell.
    Transferred send_credit(int fd, const char* head, bool received) noexcept {
        const std::scoped_lock guard(telling_);
        CreditFrame frame;
        if (!next_credit(received, frame.credit)) return {Transferred::Whole, 0, 0};
        std::memcpy(frame.head, head, CreditFrame::kHeadBytes);
        iovec part{&frame, sizeof frame};
        return send_bytes(fd, &part, 1, calls);
    }
    // Tells a broker that waits, until the connection ends.
    Transferred send_credits(int fd, const char* head) noexcept {
        while (wait_credit())
            if (const Transferred t = send_credit(fd, head, false); t.how != Transferred::Whole) return t;
        return {Transferred::Whole, 0, 0};
    }

    u64 next_ticket() const noexcept { return next_ticket_.load(std::memory_order_acquire); }

private:
    bool is_next(const BatchHeader& h, u64 limit) const noexcept {
        const u64 next = next_ticket_.load(std::memory_order_relaxed);
        return h.magic == kBatchMagic && h.version == kBatchVersion && h.check == header_check(h) && h.ticket >= next &&
               h.gap <= (reliable_ ? 0 : h.ticket - next) && h.body_bytes > 0 &&
               h.body_bytes <= std::min(limit, ring_.geometry().slot_bytes);
    }
    bool has_ended() noexcept {
        const std::scoped_lock guard(mutex_);
        return ended_;
    }
    // Slots that were free or came free since the ring exists; seq_cst: the condition of an eventcount, pairs with
    // Subscriber::release().
    u64 slots_free() const noexcept {
        return ring_.geometry().slots + row_->released_batches.load(std::memory_order_seq_cst);
    }
    // Has the broker few credits left? With the mutex.
    void look() noexcept {
        wanted_ = told_.granted + begun_at_ - committed_seq() <= ring_.geometry().slots / 2;
        if (wanted_) few_.notify_one();
    }

    const bool reliable_;
    std::atomic<u64> next_ticket_;
    std::atomic<u64> slots_told_{0};
    std::mutex telling_;  // held while a CREDIT is made and sent
    std::mutex mutex_;    // around the rest
    std::condition_variable few_;
    Credit told_{0, 0};
    u64 begun_at_ = 0;     // batches that were here when the connection began
    bool wanted_ = false;  // the broker has few credits left
    bool ended_ = true;
};

}  // namespace embar

// The subscribers of a ring, as its broker sees them: who joins, who holds back the release, who is gone.
//
//   admit     answer those that join: where in the log they begin
//   lowest    the first ticket that some reliable subscriber has not released: nothing from there on is freed
//   watch     say whose release the broker waits for, so that only that one wakes it
//   reap      free the rows of those that left or died; a dead one holds nothing back any more
//   recover   go on where the broker before this one was killed
//
// What a subscriber writes is its cursor, and it only counts while it moves forward, and not beyond `head`: a
// broken one can hold back the release, as a slow one can, but not make the broker release what others read.
//
// A lossy subscriber holds nothing back. For it, and for those that start at the earliest ticket, batches that
// everybody has passed are retained for a while: see Broker::release().
#pragma once

#include <algorithm>
#include <vector>

#include "kept.hpp"
#include "ring.hpp"
#include "waiting.hpp"

namespace embar {

class Gates {
public:
    // Of a subscriber on a network whose row the broker keeps.
    struct Adopted {
        u32 index;
        u64 id;
        u64 incarnation;
        u64 cursor;
    };

    // `retain`: batches to keep readable, lossy subscribers or not. `lock_fd` -1: a plain buffer, where nobody is
    // ever found dead.
    Gates(Ring ring, int lock_fd, u32 retain)
        : ring_(ring), lock_fd_(lock_fd), retain_(std::min(retain, ring.geometry().slots)),
          rows_(ring.geometry().max_subscribers), kept_(lock_fd, ring.geometry().max_subscribers, subscriber_lock) {}

    // How many batches that everybody has passed should stay in the ring.
    u64 retained() const noexcept { return lossy_ ? std::max<u64>(retain_, ring_.geometry().slots / 2) : retain_; }

    // => at most `head`. Reads the cursors of all reliable subscribers, seq_cst: the condition of the broker's
    // eventcount, pairs with Subscriber::advance().
    u64 lowest(u64 head) noexcept {
        u64 lowest = head;
        slowest_ = 0;
        for (const u32 i : reliable_) {
            const u64 c = ring_.subscriber(i).cursor.load(std::memory_order_seq_cst);
            if (c > rows_[i].cursor && c <= head) rows_[i].cursor = c;
            if (rows_[i].cursor > lowest || rows_[i].cursor == head) continue;
            lowest = rows_[i].cursor;
            slowest_ = i + 1;  // of several the last: it was woken last, and the others will have passed, too
        }
        return lowest;
    }
    // Row + 1 of the subscriber at the last lowest(); 0: none holds anything back.
    u32 slowest() const noexcept { return slowest_; }
    bool any_reliable() const noexcept { return !reliable_.empty(); }
    u32 count_of_all() const noexcept { return static_cast<u32>(reliable_.size()) + lossy_; }
    // Before the broker sleeps: that one is to wake it. seq_cst: pairs with the load in Subscriber::advance().
    u32 watch() noexcept {
        ring_.control().slowest.store(slowest_, std::memory_order_seq_cst);
        return slowest_;
    }

    // Answers all that are joining. The log holds the tickets `released` to `head` - 1.
    void admit(u64 released, u64 head) noexcept {
        bool any = false;
        for (u32 i = 0; i < rows_.size(); ++i) {
            SubscriberEntry& row = ring_.subscriber(i);
            if (row.state.load(std::memory_order_acquire) != static_cast<u32>(SubscriberState::Joining)) continue;
            u64 at = row.start_ticket.load(std::memory_order_relaxed);
            switch (static_cast<Start>(row.start.load(std::memory_order_relaxed))) {
                case Start::Latest: at = head; break;
                case Start::Earliest: at = released; break;
                case Start::Ticket: break;
            }
            any = true;
            const bool there = released <= at && at <= head;
            if (there) {
                rows_[i] = {at, row.mode.load(std::memory_order_relaxed) == static_cast<u32>(SubscribeMode::Lossy)
                                    ? Kind::Lossy
                                    : Kind::Reliable};
                row.cursor.store(at, std::memory_order_relaxed);
                row.next.store(at, std::memory_order_relaxed);
                row.moved_ns.store(now_ns(), std::memory_order_relaxed);
            }
            // seq_cst: releases the cursor, and is the condition of an eventcount (Subscriber::wait_joined). Not a
            // plain store: it may have left meanwhile, and would seem to be here until somebody finds it dead.
            u32 joining = static_cast<u32>(SubscriberState::Joining);
            if (!row.state.compare_exchange_strong(
                    joining, static_cast<u32>(there ? SubscriberState::Active : SubscriberState::Refused),
                    std::memory_order_seq_cst))
                rows_[i] = Row{};
        }
        if (!any) return;
        count();
        tell();
    }

    // Wakes everybody who sleeps until something happens. The condition was stored seq_cst before.
    bool tell() noexcept { return wake_if_sleeping(ring_.control().news, ring_.control().news_sleepers); }

    // At the start of a broker, whatever the flag says: see Peers::rouse_all().
    void rouse_all() noexcept { wake_whoever_sleeps(ring_.control().news, ring_.control().news_sleepers); }

    // Frees the rows of all that are gone. => how many.
    u32 reap() noexcept {
        u32 gone = 0;
        kept_.give_up_old();
        for (u32 i = 0; i < rows_.size(); ++i) gone += reap_row(i);
        if (gone) count();
        ring_.control().subscribers.store(count_of_all(), std::memory_order_relaxed);
        return gone;
    }
    // The same for the one the last lowest() found, about 0.5 us. => true: look at lowest() again.
    bool reap_slowest() noexcept {
        if (!slowest_ || !reap_row(slowest_ - 1)) return false;
        count();
        return true;
    }

    // The gates of those that are in the table, where their rows say. A cursor that cannot be holds back everything, as
    // it would have at the broker before this one, until it moves to where it can be.
    void recover(u64 released, u64 head) {
        for (u32 i = 0; i < rows_.size(); ++i) {
            const SubscriberEntry& row = ring_.subscriber(i);
            if (row.state.load(std::memory_order_acquire) != static_cast<u32>(SubscriberState::Active)) continue;
            const u64 cursor = row.cursor.load(std::memory_order_acquire);  // pairs with Subscriber::advance()
            const bool lossy = row.mode.load(std::memory_order_relaxed) == static_cast<u32>(SubscribeMode::Lossy);
            rows_[i] = {released <= cursor && cursor <= head ? cursor : released, lossy ? Kind::Lossy : Kind::Reliable};
            const u64 id = row.remote_id.load(std::memory_order_relaxed);
            const u64 incarnation = row.remote_incarnation.load(std::memory_order_relaxed);
            if ((id || incarnation) && !lossy && kept_.keep(i))
                adopted_.push_back({i, id, incarnation, rows_[i].cursor});
        }
        count();
    }
    const std::vector<Adopted>& adopted() const noexcept { return adopted_; }
    // Any thread.
    bool take_over(u32 i, int lock_fd) noexcept { return i < rows_.size() && kept_.take_over(i, lock_fd); }

private:
    enum class Kind : u8 { None, Reliable, Lossy };
    struct Row {
        u64 cursor = 0;
        Kind kind = Kind::None;
    };

    bool reap_row(u32 i) noexcept {
        SubscriberEntry& row = ring_.subscriber(i);
        const u32 state = row.state.load(std::memory_order_acquire);  // pairs with Subscriber's stores
        // Free, and a gate all the same: its state was overwritten. It shall not hold back the release forever.
        if (state == static_cast<u32>(SubscriberState::Free) && rows_[i].kind == Kind::None) return false;
        if (state == static_cast<u32>(SubscriberState::Closed)) {  // its own word that it reads nothing any more
            clear(i);
            return true;
        }
        if (kept_.has(i)) return false;
        // Else only the kernel's word counts. While we hold the byte, nobody can take the row.
        if (lock_fd_ < 0 || !try_lock_byte(lock_fd_, subscriber_lock(i))) return false;
        // It may have left in order since the first look. Acquire: then it is this that orders its last reads before.
        if (row.state.load(std::memory_order_acquire) != static_cast<u32>(SubscriberState::Closed))
            Histogram::add(ring_.control().reaped_subscribers, 1);
        clear(i);
        unlock_byte(lock_fd_, subscriber_lock(i));
        return true;
    }
    void clear(u32 i) noexcept {
        SubscriberEntry& row = ring_.subscriber(i);
        rows_[i] = Row{};
        // From here on the row says nothing any more, but that it is to be cleared.
        row.state.store(static_cast<u32>(SubscriberState::Closed), std::memory_order_release);
        for (auto* w : {&row.pid, &row.mode, &row.start}) w->store(0, std::memory_order_relaxed);
        for (auto* w : {&row.start_ticket, &row.attached_ns, &row.remote_id, &row.remote_incarnation, &row.cursor,
                        &row.next, &row.moved_ns, &row.batches, &row.messages, &row.payload_bytes, &row.lost,
                        &row.corrupt, &row.waits, &row.missed_wakeups})
            w->store(0, std::memory_order_relaxed);
        std::memset(row.name, 0, sizeof row.name);
        row.state.store(static_cast<u32>(SubscriberState::Free), std::memory_order_release);
    }
    void count() noexcept {
        reliable_.clear();
        lossy_ = 0;
        slowest_ = 0;
        for (u32 i = 0; i < rows_.size(); ++i) {
            if (rows_[i].kind == Kind::Reliable) reliable_.push_back(i);
            if (rows_[i].kind == Kind::Lossy) ++lossy_;
        }
        ring_.control().subscribers.store(count_of_all(), std::memory_order_relaxed);
    }

    Ring ring_;
    int lock_fd_;
    u32 retain_;
    std::vector<Row> rows_;
    std::vector<u32> reliable_;  // indices of the rows that can hold back the release
    KeptRows kept_;
    std::vector<Adopted> adopted_;
    u32 lossy_ = 0;
    u32 slowest_ = 0;
};

}  // namespace embar

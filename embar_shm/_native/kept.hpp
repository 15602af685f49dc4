// Rows that a broker keeps for participants on a network while nobody stands for them: the broker that did died, and
// they will connect again. It holds their lock bytes, so that nobody takes the rows, and does not reap them, until a
// listener of this process takes them over, or until it has been long enough.
//
// Everything but take_over() is the broker's own thread's.
#pragma once

#include <atomic>
#include <memory>

#include "liveness.hpp"
#include "waiting.hpp"

namespace embar {

class KeptRows {
public:
    using LockOf = std::uint64_t (*)(std::uint32_t) noexcept;

    // `lock_fd` -1: a plain buffer, where there are no locks.
    KeptRows(int lock_fd, std::uint32_t rows, LockOf lock_of)
        : lock_fd_(lock_fd), rows_(rows), lock_of_(lock_of),
          kept_(std::make_unique<std::atomic<std::uint8_t>[]>(rows)) {}

    // => false: somebody else holds the row's lock. (Not the broker before, whose process may still be closing its
    // descriptors, one after the other: that is waited for, once for all rows.)
    bool keep(std::uint32_t row) noexcept {
        if (!closed_ns_) closed_ns_ = now_ns() + kClosingNs;
        while (lock_fd_ >= 0 && !try_lock_byte(lock_fd_, lock_of_(row))) {
            if (now_ns() >= closed_ns_) return false;
            const timespec pause{0, 200'000};
            nanosleep(&pause, nullptr);
        }
        kept_[row].store(kKept, std::memory_order_release);
        any_ = true;
        give_up_ns_ = now_ns() + kPatienceNs;
        return true;
    }
    // Is the row kept, or being taken over? Acquire: pairs with take_over(), whose lock then shows who has it.
    bool has(std::uint32_t row) const noexcept { return any_ && kept_[row].load(std::memory_order_acquire) != kNot; }
    // Lets all go that nobody has taken for too long: they are dead now.
    void give_up_old() noexcept {
        if (!any_ || now_ns() < give_up_ns_) return;
        for (std::uint32_t i = 0; i < rows_; ++i) {
            std::uint8_t kept = kKept;
            if (kept_[i].compare_exchange_strong(kept, kNot, std::memory_order_acq_rel)) unlock(i);
        }
    }
    // The lock of the row goes to another descriptor of this process. Any thread. => false: it is not kept any more.
    bool take_over(std::uint32_t row, int lock_fd) noexcept {
        std::uint8_t kept = kKept;
        if (!kept_[row].compare_exchange_strong(kept, kMoving, std::memory_order_acq_rel)) return false;
        unlock(row);  // while it is moving, the broker leaves the row alone, and no newcomer takes one that is not free
        const bool taken = lock_fd < 0 || try_lock_byte(lock_fd, lock_of_(row));
        kept_[row].store(kNot, std::memory_order_release);
        return taken;
    }

private:
    static constexpr std::uint8_t kNot = 0, kKept = 1, kMoving = 2;
    static constexpr std::uint64_t kPatienceNs = 60'000'000'000;
#if defined(EMBAR_FUZZING)  // rows that look like that, and whose owners live, are all there is
    static constexpr std::uint64_t kClosingNs = 0;
#else
    static constexpr std::uint64_t kClosingNs = 1'000'000'000;
#endif

    void unlock(std::uint32_t row) noexcept {
        if (lock_fd_ >= 0) unlock_byte(lock_fd_, lock_of_(row));
    }

    int lock_fd_;
    std::uint32_t rows_;
    LockOf lock_of_;
    std::unique_ptr<std::atomic<std::uint8_t>[]> kept_;
    bool any_ = false;
    std::uint64_t give_up_ns_ = 0;
    std::uint64_t closed_ns_ = 0;  // when the broker before has closed all its descriptors, whatever happens
};

}  // namespace embar

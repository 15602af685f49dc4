// Who is alive: open-file-description byte-range locks on the segment's own file (fcntl(2), F_OFD_SETLK).
//
// Byte 0 is the broker's, byte 1 + i belongs to row i of the publishers table, 2048 + i to row i of the
// subscribers'. The kernel drops a lock when the last descriptor of the holder's open file description is closed, which
// at a process's death comes after its memory is gone: once a lock can be had, its former holder stores nothing any
// more. No timeouts, no pid reuse; works across PID namespaces. (Plain POSIX locks would be lost by any close() of the
// file.)
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "waiting.hpp"

namespace embar {

inline constexpr std::uint64_t kBrokerLock = 0;
constexpr std::uint64_t publisher_lock(std::uint32_t index) noexcept { return 1 + std::uint64_t{index}; }
constexpr std::uint64_t subscriber_lock(std::uint32_t index) noexcept { return 2048 + std::uint64_t{index}; }

namespace detail {
inline struct flock one_byte(short type, std::uint64_t offset) noexcept {
    struct flock f{};
    f.l_type = type;
    f.l_whence = SEEK_SET;
    f.l_start = static_cast<off_t>(offset);
    f.l_len = 1;
    return f;
}
}  // namespace detail

enum class Liveness { Alive, Gone, Unknown };

// => true: ours now. => false: somebody else holds it, or errno says why not.
inline bool try_lock_byte(int fd, std::uint64_t offset) noexcept {
    struct flock f = detail::one_byte(F_WRLCK, offset);
    return fcntl(fd, F_OFD_SETLK, &f) == 0;
}
inline void unlock_byte(int fd, std::uint64_t offset) noexcept {
    struct flock f = detail::one_byte(F_UNLCK, offset);
    fcntl(fd, F_OFD_SETLK, &f);
}
// Does another open file description hold the byte? Does not take it. About 0.5 us.
inline Liveness holder(int fd, std::uint64_t offset) noexcept {
    struct flock f = detail::one_byte(F_WRLCK, offset);
    if (fcntl(fd, F_OFD_GETLK, &f) != 0) return Liveness::Unknown;
    return f.l_type == F_UNLCK ? Liveness::Gone : Liveness::Alive;
}

// Is the broker gone for good? One that died may be started again on the same segment: those who wait for it give it a
// while. They do not where the segment was removed. Any thread.
class BrokerWatch {
public:
    // `lock_fd` -1: a plain buffer, where nobody is ever found dead.
    BrokerWatch(int lock_fd, std::uint64_t patience_ns) noexcept : lock_fd_(lock_fd), patience_ns_(patience_ns) {}

    // Asks the kernel, about 0.5 us. `epoch`: of the ring (Control), which tells one broker's absence from the next's.
    bool gone(std::uint32_t epoch) noexcept {
        if (lock_fd_ < 0) return false;
        if (holder(lock_fd_, kBrokerLock) != Liveness::Gone) {
            since_.store(0, std::memory_order_relaxed);
            return false;
        }
        struct stat file;
        if (fstat(lock_fd_, &file) == 0 && file.st_nlink == 0) return true;
        const std::uint64_t now = now_ns();
        if (epoch_.exchange(epoch, std::memory_order_relaxed) != epoch) since_.store(0, std::memory_order_relaxed);
        std::uint64_t since = 0;  // of several threads the first sets it
        since_.compare_exchange_strong(since, now, std::memory_order_relaxed);
        return now - (since ? since : now) >= patience_ns_;
    }

private:
    int lock_fd_;
    std::uint64_t patience_ns_;
    std::atomic<std::uint64_t> since_{0};  // when it was first seen to be gone
    std::atomic<std::uint32_t> epoch_{0};  // at that time
};

}  // namespace embar

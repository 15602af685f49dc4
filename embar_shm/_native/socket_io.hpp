// Whole transfers over a blocking stream socket, and what they cost.
//
// The socket's timeouts are the kernel's (SO_RCVTIMEO, SO_SNDTIMEO). Another thread ends a transfer with shutdown(2).
#pragma once

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>

#include "layout.hpp"
#include "waiting.hpp"

namespace embar {

// Of the sockets of one publisher. Written by the threads that move its bytes, read by anybody: relaxed.
struct SocketCalls {
    std::atomic<u64> receives{0};
    std::atomic<u64> sends{0};
    std::atomic<u64> eagain{0};    // transfers that stood still in the middle
    std::atomic<u64> max_inq{0};   // bytes received and not read
    std::atomic<u64> max_outq{0};  // bytes sent, and not acknowledged by the other kernel

    void look_at_queues(int fd) noexcept {
        int bytes = 0;
        if (ioctl(fd, SIOCINQ, &bytes) == 0) raise(max_inq, bytes);
        if (ioctl(fd, SIOCOUTQ, &bytes) == 0) raise(max_outq, bytes);
    }

private:
    static void raise(std::atomic<u64>& most, int bytes) noexcept {
        const auto now = static_cast<u64>(std::max(bytes, 0));
        u64 known = most.load(std::memory_order_relaxed);
        while (known < now && !most.compare_exchange_weak(known, now, std::memory_order_relaxed)) {}
    }
};

// How a transfer ended.
struct Transferred {
    enum How {
        Whole,
        Closed,   // the other side sends no more; `bytes` have come
        Stalled,  // the socket's timeout is over; `bytes` have come, perhaps none
        Failed,   // errno is `error`
    };
    How how;
    std::size_t bytes;
    int error;
};

// Receives at least `least` and at most `most` bytes. What comes in pieces has to be there at `deadline_ns`.
inline Transferred receive_bytes(int fd, char* to, std::size_t least, std::size_t most, SocketCalls& calls,
                                 u64 deadline_ns = ~0ULL) noexcept {
    const int flags = least == most ? MSG_WAITALL : 0;
    std::size_t got = 0;
    while (got < least) {
        calls.receives.fetch_add(1, std::memory_order_relaxed);
        const ssize_t n = ::recv(fd, to + got, most - got, flags);
        if (n > 0) {
            got += static_cast<std::size_t>(n);
            if (got < least && now_ns() > deadline_ns) return {Transferred::Stalled, got, EAGAIN};
        } else if (n == 0) {
            return {Transferred::Closed, got, 0};
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return {Transferred::Stalled, got, errno};
        } else if (errno != EINTR) {
            return {Transferred::Failed, got, errno};
        }
    }
    return {Transferred::Whole, got, 0};
}

// Sends all parts, gathered into one call where the kernel takes them at once.
inline Transferred send_bytes(int fd, iovec* parts, std::size_t count, SocketCalls& calls) noexcept {
    std::size_t sent = 0;
    while (count) {
        msghdr message{};
        message.msg_iov = parts;
        message.msg_iovlen = count;
        calls.sends.fetch_add(1, std::memory_order_relaxed);
        const ssize_t n = ::sendmsg(fd, &message, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR) continue;
            const bool stalled = errno == EAGAIN || errno == EWOULDBLOCK;
            if (stalled) calls.eagain.fetch_add(1, std::memory_order_relaxed);
            return {stalled ? Transferred::Stalled : Transferred::Failed, sent, errno};
        }
        sent += static_cast<std::size_t>(n);
        auto left = static_cast<std::size_t>(n);
        while (count && left >= parts->iov_len) {
            left -= parts->iov_len;
            ++parts, --count;
        }
        if (count) {
            parts->iov_base = static_cast<char*>(parts->iov_base) + left;
            parts->iov_len -= left;
        }
    }
    return {Transferred::Whole, sent, 0};
}

// The one frame that is moved without Python: an acknowledgement (embar_shm/protocol.py). Its head is always the same.
struct AckFrame {
    static constexpr std::size_t kHeadBytes = 16;
    char head[kHeadBytes];
    u64 seq;
};
static_assert(sizeof(AckFrame) == 24);
inline constexpr u64 kLookAtQueuesEvery = 16;  // batches

}  // namespace embar

// What a blocking stream socket carries at best: whole batches with send(2) and recv(2), and nothing else.
//
// A transfer is one batch on its way. A signal can cut it anywhere; how far it came survives that, so the caller
// lets Python look at the signal and goes on.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>

namespace embar {

struct Transfer {
    char* data;
    std::size_t size;
    std::size_t done = 0;

    bool complete() const noexcept { return done == size; }
};

enum class Socket {
    Moved,      // some bytes; all of the batch unless a signal arrived
    Signal,     // no bytes: a signal arrived first
    EndOfFile,  // the peer sends no more
    Failed,     // errno says why
};

inline Socket moved(Transfer& batch, ssize_t bytes) noexcept {
    if (bytes > 0) {
        batch.done += static_cast<std::size_t>(bytes);
        return Socket::Moved;
    }
    if (bytes == 0) return Socket::EndOfFile;
    return errno == EINTR ? Socket::Signal : Socket::Failed;
}

// One call that sends the rest of the batch. A peer that is gone is an error, not a SIGPIPE. => never EndOfFile
inline Socket send_rest(int fd, Transfer& batch) noexcept {
    return moved(batch, ::send(fd, batch.data + batch.done, batch.size - batch.done, MSG_NOSIGNAL));
}

// One call that receives the rest of the batch; comes back early with a signal, an error or the end of file.
inline Socket receive_rest(int fd, Transfer& batch) noexcept {
    return moved(batch, ::recv(fd, batch.data + batch.done, batch.size - batch.done, MSG_WAITALL));
}

}  // namespace embar

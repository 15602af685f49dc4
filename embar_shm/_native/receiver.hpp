// The receiver: brings batches that come from a network into the ring, for one remote publisher.
//
//   claim      own a slot to receive the body of a batch into
//   commit     take the batch's place in the log, under the header its publisher gave it
//   give_back  return the slot: the batch did not come, or not wholly
//   receive    all of it, from a plain socket, batch after batch
//   send_acks  wait for the broker, and tell the publisher what is in the log
//
// The row belongs to the broker's own process and stands for the remote publisher; one thread claims, receives and
// commits, another one waits for acknowledgements; interrupt() ends the waits of both.
#pragma once

#include "publisher_row.hpp"
#include "socket_io.hpp"

namespace embar {

class Receiver : public PublisherRow {
public:
    using PublisherRow::PublisherRow;

    // => Ok: `body` has room for a slot's bytes. A slot that is claimed already is handed out again.
    Status claim(char*& body) noexcept {
        if (const Status s = state(); s != Status::Ok) return s;
        if (!claimed_)
            if (const Status s = claim_slot(); s != Status::Ok) return s;
        claimed_ = true;
        body = ring_.payload_of(slot_);
        return Status::Ok;
    }
    // Commits what was received. The broker judges the header like any other. The time of the commit is this
    // machine's, so that it can be compared: the publisher's clock may be another one's.
    Status commit(BatchHeader h, u64 receive_ns) noexcept {
        h.committed_ns = now_ns();
        return commit_as_it_is(h, receive_ns);
    }
    void give_back() noexcept {
        if (claimed_ && state() == Status::Ok) give_slot_back();
        claimed_ = false;
    }
    void close() noexcept {
        if (state() != Status::Closed) leave();
    }

    struct Ended {
        enum Why {
            Closed,       // the publisher sends no more, between two batches
            Interrupted,  // interrupt()
            Header,       // `header` is not the next batch's: whoever knows the protocol has to look
            Socket,       // `socket` says how
            Ring,         // `status` says why there is no slot, or no acknowledgement
        };
        Why why;
        Transferred socket{Transferred::Whole, 0, 0};
        u64 wanted = 0;  // bytes, where the socket did not give them
        Status status = Status::Ok;
    };

    // How slow a batch may come: whoever sends a byte now and then would hold its slot for days.
    struct Patience {
        u64 stall_ns;
        double ns_per_byte;
        u64 deadline(u64 begin_ns, u64 bytes) const noexcept {
            return begin_ns + stall_ns + static_cast<u64>(static_cast<double>(bytes) * ns_per_byte);
        }
    };

    // Receives batches after `seq`, each at most `limit` bytes, until it cannot go on. `seq` counts them.
    Ended receive(int fd, u64 limit, const Patience& patience, u64& seq, BatchHeader& header) noexcept {
        for (;;) {
            Transferred t = receive_bytes(fd, reinterpret_cast<char*>(&header), sizeof header, sizeof header, calls);
            if (t.how == Transferred::Stalled && t.bytes == 0 && !interrupted()) continue;  // nothing is published
            if (t.how == Transferred::Stalled && t.bytes == 0) return {Ended::Interrupted};
            if (t.how == Transferred::Closed && t.bytes == 0) return {Ended::Closed};
            if (t.how != Transferred::Whole) return cut(t, sizeof header);
            if (!is_next(header, seq, limit)) return {Ended::Header};
            char* body = nullptr;
            Status s;
            while ((s = claim(body)) == Status::NeedSlot) {
                wait_space(now_ns() + kSliceNs);
                if (interrupted()) return {Ended::Interrupted};
                if (const Status peer = peer_status(); peer != Status::Ok) return ring_ended(peer);
            }
            if (s != Status::Ok) return ring_ended(s);
            const u64 begin = now_ns();
            t = receive_bytes(fd, body, header.body_bytes, header.body_bytes, calls,
                              patience.deadline(begin, header.body_bytes));
            if (t.how != Transferred::Whole) {
                give_back();
                return cut(t, header.body_bytes);
            }
            s = commit(header, row_options_.timed ? now_ns() - begin : 0);
            if (s != Status::Ok) return ring_ended(s);
            ++seq;
            if (row_options_.timed && seq % kLookAtQueuesEvery == 0) calls.look_at_queues(fd);
        }
    }
    // Tells the publisher each time the broker has accepted more than `acked`; `head` is how such a frame begins.
    Ended send_acks(int fd, const char* head, u64& acked) noexcept {
        AckFrame frame;
        std::memcpy(frame.head, head, AckFrame::kHeadBytes);
        for (;;) {
            wait_acked(acked + 1, now_ns() + kSliceNs);
            frame.seq = accepted_seq();
            if (frame.seq > acked) {
                iovec part{&frame, sizeof frame};
                if (const Transferred t = send_bytes(fd, &part, 1, calls); t.how != Transferred::Whole)
                    return lost(t, sizeof frame);
                acked = frame.seq;
                continue;
            }
            if (interrupted()) return {Ended::Interrupted};
            // The broker may have accepted something as its last act: look once more after its end.
            if (const Status peer = peer_status(); peer != Status::Ok && accepted_seq() == acked)
                return ring_ended(peer);
        }
    }

    SocketCalls calls;

protected:
    Status commit_as_it_is(BatchHeader h, u64 receive_ns) noexcept {
        if (const Status s = state(); s != Status::Ok) return s;
        if (!claimed_) return Status::NotReserved;
        claimed_ = false;
        if (row_options_.timed) row_->receive.record(receive_ns);
        return commit_slot(h);
    }
    // The middle of a batch did not come.
    Ended cut(const Transferred& t, u64 wanted) noexcept {
        if (t.how == Transferred::Stalled) calls.eagain.fetch_add(1, std::memory_order_relaxed);
        return lost(t, wanted);
    }
    static Ended lost(const Transferred& t, u64 wanted) noexcept { return {Ended::Socket, t, wanted}; }
    static Ended ring_ended(Status s) noexcept { return {Ended::Ring, {Transferred::Whole, 0, 0}, 0, s}; }

private:
    // The checks of the protocol (protocol.py) that a batch has to pass before its body is received.
    bool is_next(const BatchHeader& h, u64 seq, u64 limit) const noexcept {
        return h.magic == kBatchMagic && h.version == kBatchVersion && h.check == header_check(h) &&
               h.publisher_id == row_options_.publisher_id && h.incarnation == row_options_.incarnation &&
               h.seq == seq + 1 && h.body_bytes > 0 && h.body_bytes <= std::min(limit, ring_.geometry().slot_bytes);
    }

    bool claimed_ = false;
};

}  // namespace embar

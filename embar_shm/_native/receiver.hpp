// The receiver: brings batches that come from a network into the ring, for one remote publisher.
//
//   claim      own a slot to receive the body of a batch into
//   commit     take the batch's place in the log, under the header its publisher gave it
//   give_back  return the slot: the batch did not come, or not wholly
//
// The row belongs to the broker's own process and stands for the remote publisher; one thread claims, receives and
// commits, another one waits for acknowledgements; interrupt() ends the waits of both.
#pragma once

#include "publisher_row.hpp"

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
        if (const Status s = state(); s != Status::Ok) return s;
        if (!claimed_) return Status::NotReserved;
        claimed_ = false;
        h.committed_ns = now_ns();
        if (row_options_.timed) row_->receive.record(receive_ns);
        return commit_slot(h);
    }
    void give_back() noexcept {
        if (claimed_ && state() == Status::Ok) give_slot_back();
        claimed_ = false;
    }
    void close() noexcept {
        if (state() != Status::Closed) leave();
    }

private:
    bool claimed_ = false;
};

}  // namespace embar

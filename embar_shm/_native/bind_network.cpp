// ReceiverCore and RelayCore (receiver.hpp, relay.hpp) for Python: the two ends of a batch's way through a network.
#include "explain.hpp"
#include "receiver.hpp"
#include "relay.hpp"

namespace embar {
namespace {

class ReceiverCore {
public:
    // `context` explains errors: embar_shm.segment.Segment. It must not refer back to this object.
    ReceiverCore(nb::object context, nb::handle buffer, u32 index, int lock_fd, u64 publisher_id, u64 incarnation,
                 u32 quota, u32 ack, bool timed)
        : context_(std::move(context)), buffer_(buffer, true),
          core(checked(buffer_, index, quota), index, lock_fd, {publisher_id, incarnation, quota, ack, timed},
               {WaitMode::Block, 0, 1}) {}

    // Where the body of a batch can be received: its offset in the buffer. None: timeout, or interrupt().
    nb::object claim(std::optional<double> timeout) {
        char* body = nullptr;
        Status s = core.claim(body);
        const u64 deadline = deadline_after(timeout);
        while (s == Status::NeedSlot) {
            {
                nb::gil_scoped_release unlocked;
                core.wait_space(std::min(deadline, now_ns() + kSliceNs));
            }
            check_signals();
            s = core.claim(body);
            if (s != Status::NeedSlot) break;
            if (core.interrupted() || now_ns() >= deadline) return nb::none();
            if (const Status peer = core.peer_status(); peer != Status::Ok) raise_status(this, peer, 0);
        }
        if (s != Status::Ok) raise_status(this, s, 0);
        return nb::int_(static_cast<u64>(body - buffer_.data()));
    }
    // The header's own check was compared by the protocol.
    void commit(nb::bytes header, u64 receive_ns) {
        BatchHeader h;
        if (header.size() != sizeof h) throw nb::value_error("a batch header has 128 bytes");
        std::memcpy(&h, header.c_str(), sizeof h);
        if (const Status s = core.commit(h, receive_ns); s != Status::Ok) raise_status(this, s, 0);
    }
    void give_back() { core.give_back(); }
    // The accepted batches; fewer than `seq` at the timeout, or after interrupt().
    u64 wait_accepted(u64 seq, std::optional<double> timeout) {
        const u64 deadline = deadline_after(timeout);
        for (;;) {
            {
                nb::gil_scoped_release unlocked;
                core.wait_acked(seq, std::min(deadline, now_ns() + kSliceNs));
            }
            check_signals();
            const u64 accepted = core.accepted_seq();
            if (accepted >= seq || core.interrupted() || now_ns() >= deadline) return accepted;
            // The broker may have accepted it as its last act: look once more after its end.
            if (const Status peer = core.peer_status(); peer != Status::Ok && core.accepted_seq() == accepted)
                raise_status(this, peer, 0);
        }
    }
    void close() { core.close(); }

    nb::object context_;
    HeldBuffer buffer_;
    Receiver core;

private:
    static Ring checked(const HeldBuffer& b, u32 index, u32 quota) {
        const Ring ring = ring_in(b);
        if (index >= ring.geometry().max_publishers) throw nb::index_error("no such row in the publishers table");
        if (quota < 1) throw nb::value_error("quota must be at least 1");
        return ring;
    }
};

class RelayCore {
public:
    RelayCore(nb::handle buffer, int wait_mode, double spin_us, unsigned cpus)
        : buffer_(buffer, true), relay_(ring_in(buffer_), spin_options(wait_mode, spin_us, cpus)) {}

    // Batch `seq`: offsets of its header and body in the buffer, bytes of its body. None: timeout, or wake().
    nb::object next(u64 seq, std::optional<double> timeout) {
        if (seq == 0) throw nb::value_error("batches are numbered from 1");
        const u64 deadline = deadline_after(timeout);
        for (;;) {
            Ring::Committed where;
            if (relay_.find(seq, where)) return place(where);
            Wait w;
            {
                nb::gil_scoped_release unlocked;
                w = relay_.wait_committed(seq, std::min(deadline, now_ns() + kSliceNs));
            }
            check_signals();
            if (relay_.find(seq, where)) return place(where);
            if (w == Wait::Ready || now_ns() >= deadline) return nb::none();
        }
    }
    void acknowledge(u64 seq) {
        if (!relay_.acknowledge(seq)) throw nb::value_error("a batch was acknowledged that was never committed");
    }
    u64 acknowledged() { return relay_.acknowledged(); }
    void wake() { relay_.wake(); }
    void abandon() { relay_.abandon(); }

private:
    nb::object place(const Ring::Committed& where) const {
        const Ring& ring = relay_.ring();
        u64 bytes;
        std::memcpy(&bytes, ring.header_of(where.slot) + offsetof(BatchHeader, body_bytes), sizeof bytes);
        return nb::make_tuple(ring.header_of(where.slot) - buffer_.data(), ring.payload_of(where.slot) - buffer_.data(),
                              bytes);
    }

    HeldBuffer buffer_;
    Relay relay_;
};

}  // namespace

void bind_network(nb::module_& m) {
    m.attr("BATCH_MAGIC") = kBatchMagic;
    m.attr("BATCH_VERSION") = kBatchVersion;
    m.def(
        "header_check",
        [](nb::bytes header) {
            BatchHeader h;
            if (header.size() != sizeof h) throw nb::value_error("a batch header has 128 bytes");
            std::memcpy(&h, header.c_str(), sizeof h);
            return header_check(h);
        },
        nb::arg("header"), "What the `check` field of a batch header must be.");

    nb::class_<ReceiverCore>(m, "ReceiverCore",
                             "Brings a remote publisher's batches into a ring. One thread claims and commits; "
                             "wait_accepted() and interrupt() are for any thread.")
        .def(nb::init<nb::object, nb::handle, u32, int, u64, u64, u32, u32, bool>(), nb::arg("context"),
             nb::arg("buffer"), nb::arg("index"), nb::arg("lock_fd"), nb::arg("publisher_id"), nb::arg("incarnation"),
             nb::arg("quota"), nb::arg("ack"), nb::arg("timed"),
             nb::sig("def __init__(self, context: Any, buffer: Buffer, index: int, lock_fd: int, publisher_id: int, "
                     "incarnation: int, quota: int, ack: int, timed: bool) -> None"))
        .def("claim", &ReceiverCore::claim, nb::arg("timeout").none(),
             nb::sig("def claim(self, timeout: float | None) -> int | None"),
             "Claims a slot: the offset of its body. None at the timeout (seconds) or after interrupt().")
        .def("commit", &ReceiverCore::commit, nb::arg("header"), nb::arg("receive_ns"),
             "Commits the batch that was received into the slot.")
        .def("give_back", &ReceiverCore::give_back, "Gives the slot back: the batch did not come.")
        .def("wait_accepted", &ReceiverCore::wait_accepted, nb::arg("seq"), nb::arg("timeout").none(),
             "Waits until batch seq is accepted: how many are; fewer at the timeout (seconds) or after interrupt().")
        .def(
            "interrupt", [](ReceiverCore& r) { r.core.interrupt(); }, "Ends all waits, until resume().")
        .def("resume", [](ReceiverCore& r) { r.core.resume(); })
        .def("close", &ReceiverCore::close, "Gives the row back.")
        .def_prop_ro(
            "context", [](const ReceiverCore& r) { return r.context_; }, nb::sig("def context(self) -> Any"))
        .def_prop_ro("index", [](const ReceiverCore& r) { return r.core.index(); })
        .def_prop_ro("committed_seq", [](const ReceiverCore& r) { return r.core.committed_seq(); })
        .def_prop_ro("accepted_seq", [](const ReceiverCore& r) { return r.core.accepted_seq(); });

    nb::class_<RelayCore>(m, "RelayCore", "Takes batches out of a private ring. One thread calls next(), any the rest.")
        .def(nb::init<nb::handle, int, double, unsigned>(), nb::arg("buffer"), nb::arg("wait_mode"), nb::arg("spin_us"),
             nb::arg("cpus"),
             nb::sig("def __init__(self, buffer: Buffer, wait_mode: int, spin_us: float, cpus: int) -> None"))
        .def("next", &RelayCore::next, nb::arg("seq"), nb::arg("timeout").none(),
             nb::sig("def next(self, seq: int, timeout: float | None) -> tuple[int, int, int] | None"),
             "Waits for batch seq: offset of its header, offset and bytes of its body. None at the timeout (seconds), "
             "after wake(), or when it is acknowledged already.")
        .def("acknowledge", &RelayCore::acknowledge, nb::arg("seq"), "Releases the batches up to seq.")
        .def_prop_ro("acknowledged", &RelayCore::acknowledged)
        .def("wake", &RelayCore::wake, "Ends the present or next wait of next().")
        .def("abandon", &RelayCore::abandon, "Tells the publisher that nothing will be acknowledged any more.");
}

}  // namespace embar

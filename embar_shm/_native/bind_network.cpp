// ReceiverCore and RelayCore (receiver.hpp, relay.hpp) for Python: the two ends of a batch's way through a network.
#include "explain.hpp"
#include "network.hpp"
#include "relay.hpp"

namespace embar {
namespace {

class ReceiverCore {
public:
    // `context` explains errors: embar_shm.segment.Segment. It must not refer back to this object.
    ReceiverCore(nb::object context, nb::handle buffer, u32 index, int lock_fd, u64 publisher_id, u64 incarnation,
                 u32 quota, u32 ack, bool timed, std::optional<u64> committed)
        : context_(std::move(context)), buffer_(buffer, true),
          core(checked(buffer_, index, quota), index, lock_fd,
               row_options(publisher_id, incarnation, quota, ack, timed, committed), {WaitMode::Block, 0, 1}) {}

    // Where the body of a batch can be received: its offset in the buffer. None: timeout, or interrupt().
    nb::object claim(std::optional<double> timeout) {
        char* body = nullptr;
        Status s = core.claim(body);
        const u64 deadline = deadline_after(timeout);
        while (s == Status::NeedSlot) {
            {
                Unlocked unlocked;
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
        if (const Status s = core.commit(header_in(header), receive_ns); s != Status::Ok) raise_status(this, s, 0);
    }
    void give_back() { core.give_back(); }
    // The accepted batches; fewer than `seq` at the timeout, or after interrupt().
    u64 wait_accepted(u64 seq, std::optional<double> timeout) {
        const u64 deadline = deadline_after(timeout);
        for (;;) {
            {
                Unlocked unlocked;
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

    // Batches from a plain socket, natively: see bind_network().
    nb::tuple receive(int fd, u64 limit, u64 seq, double stall, double least_rate) {
        if (!(stall >= 0) || !(least_rate > 0)) throw nb::value_error("stall and least_rate must be positive");
        const Receiver::Patience patience{static_cast<u64>(std::min(stall, 1e9) * 1e9), 1e9 / least_rate};
        BatchHeader header;
        Receiver::Ended e{};
        {
            Unlocked unlocked;
            e = core.receive(fd, limit, patience, seq, header);
        }
        nb::object bytes = nb::none();
        if (e.why == Receiver::Ended::Header) bytes = nb::bytes(reinterpret_cast<const char*>(&header), sizeof header);
        return nb::make_tuple(seq, name(e), bytes, e.socket.bytes, e.wanted, e.socket.error, name(e.status));
    }
    nb::tuple send_acks(int fd, nb::bytes head, u64 acked) {
        if (head.size() != AckFrame::kHeadBytes) throw nb::value_error("the head of a frame has 16 bytes");
        Receiver::Ended e{};
        {
            Unlocked unlocked;
            e = core.send_acks(fd, head.c_str(), acked);
        }
        return nb::make_tuple(acked, name(e), e.socket.error, name(e.status));
    }
    // The Python error for what receive() or send_acks() said of the ring.
    nb::object ring_error(std::string status) { return status_error(this, status.c_str(), 0); }

    HeldObject context_;
    HeldBuffer buffer_;
    Receiver core;

private:
    static RowOptions row_options(u64 publisher_id, u64 incarnation, u32 quota, u32 ack, bool timed,
                                  std::optional<u64> committed) {
        RowOptions o{publisher_id, incarnation, quota, ack, timed};
        o.remote = true;
        o.taken_over = committed.has_value();
        o.committed = committed.value_or(0);
        return o;
    }
    static Ring checked(const HeldBuffer& b, u32 index, u32 quota) {
        const Ring ring = ring_in(b);
        if (index >= ring.geometry().max_publishers) throw nb::index_error("no such row in the publishers table");
        if (quota < 1) throw nb::value_error("quota must be at least 1");
        return ring;
    }
};

class RelayCore {
public:
    RelayCore(nb::handle buffer, int wait_mode, double spin_us, unsigned cpus, bool timed)
        : buffer_(buffer, true), relay_(ring_in(buffer_), spin_options(wait_mode, spin_us, cpus), timed) {}

    // Batches into a plain socket, natively: see bind_network().
    nb::tuple send(int fd, u64 sent, u64 last, bool forget) {
        Transferred t{};
        {
            Unlocked unlocked;
            t = relay_.send(fd, sent, last, forget);
        }
        return nb::make_tuple(sent, name(t), t.error);
    }
    nb::tuple read_acks(int fd, nb::bytes head) {
        if (head.size() != AckFrame::kHeadBytes) throw nb::value_error("the head of a frame has 16 bytes");
        AckFrame frame;
        u64 lie = 0;
        Transferred t{};
        {
            Unlocked unlocked;
            t = relay_.read_acks(fd, head.c_str(), frame, lie);
        }
        const std::size_t n = t.how == Transferred::Whole ? t.bytes : 0;
        return nb::make_tuple(lie ? "lie" : name(t), nb::bytes(reinterpret_cast<const char*>(&frame), n), t.bytes,
                              t.error, lie);
    }
    void record_send(u64 ns) { relay_.send_times().record(ns); }
    nb::dict send_times() { return as_dict(relay_.send_times()); }
    nb::dict socket_calls() { return as_dict(relay_.calls); }

    // Batch `seq`: offsets of its header and body in the buffer, bytes of its body. None: timeout, or wake().
    nb::object next(u64 seq, std::optional<double> timeout) {
        if (seq == 0) throw nb::value_error("batches are numbered from 1");
        const u64 deadline = deadline_after(timeout);
        for (;;) {
            Ring::Committed where;
            if (relay_.find(seq, where)) return place(seq, where);
            Wait w;
            {
                Unlocked unlocked;
                w = relay_.wait_committed(seq, std::min(deadline, now_ns() + kSliceNs));
            }
            check_signals();
            if (relay_.find(seq, where)) return place(seq, where);
            if (w == Wait::Ready || now_ns() >= deadline) {
                relay_.take_wake();
                return nb::none();
            }
        }
    }
    void acknowledge(u64 seq) {
        if (!relay_.acknowledge(seq)) throw nb::value_error("a batch was acknowledged that was never sent");
    }
    u64 acknowledged() { return relay_.acknowledged(); }
    void wake() { relay_.wake(); }
    void abandon() { relay_.abandon(); }

private:
    nb::object place(u64 seq, const Ring::Committed& where) {
        relay_.offer(seq);
        const Ring& ring = relay_.ring();
        return nb::make_tuple(ring.header_of(where.slot) - buffer_.data(), ring.payload_of(where.slot) - buffer_.data(),
                              relay_.body_bytes(where));
    }

    HeldBuffer buffer_;
    Relay relay_;
};

}  // namespace

void bind_network(nb::module_& m) {
    m.attr("BATCH_MAGIC") = kBatchMagic;
    m.attr("BATCH_VERSION") = kBatchVersion;
    m.attr("LOOK_AT_QUEUES_EVERY") = kLookAtQueuesEvery;
    m.def(
        "header_check", [](nb::bytes header) { return header_check(header_in(header)); }, nb::arg("header"),
        "What the `check` field of a batch header must be.");

    nb::class_<ReceiverCore>(m, "ReceiverCore",
                             "Brings a remote publisher's batches into a ring. One thread claims and commits; "
                             "wait_accepted() and interrupt() are for any thread.")
        .def(nb::init<nb::object, nb::handle, u32, int, u64, u64, u32, u32, bool, std::optional<u64>>(),
             nb::arg("context"), nb::arg("buffer"), nb::arg("index"), nb::arg("lock_fd"), nb::arg("publisher_id"),
             nb::arg("incarnation"), nb::arg("quota"), nb::arg("ack"), nb::arg("timed"),
             nb::arg("committed") = nb::none(),
             nb::sig("def __init__(self, context: Any, buffer: Buffer, index: int, lock_fd: int, publisher_id: int, "
                     "incarnation: int, quota: int, ack: int, timed: bool, committed: int | None = None) -> None"),
             "`committed`: the row is one of this publisher already, with so many batches. None: it is free.")
        .def("claim", &ReceiverCore::claim, nb::arg("timeout").none(),
             nb::sig("def claim(self, timeout: float | None) -> int | None"),
             "Claims a slot: the offset of its body. None at the timeout (seconds) or after interrupt().")
        .def("commit", &ReceiverCore::commit, nb::arg("header"), nb::arg("receive_ns"),
             "Commits the batch that was received into the slot.")
        .def("give_back", &ReceiverCore::give_back, "Gives the slot back: the batch did not come.")
        .def("wait_accepted", &ReceiverCore::wait_accepted, nb::arg("seq"), nb::arg("timeout").none(),
             "Waits until batch seq is accepted: how many are; fewer at the timeout (seconds) or after interrupt().")
        .def("receive", &ReceiverCore::receive, nb::arg("fd"), nb::arg("limit"), nb::arg("seq"), nb::arg("stall"),
             nb::arg("least_rate"),
             nb::sig("def receive(self, fd: int, limit: int, seq: int, stall: float, least_rate: float) "
                     "-> tuple[int, str, bytes | None, int, int, int, str]"),
             "Receives batches after `seq` from a plain socket until it cannot go on: the last seq; why: 'ended', "
             "'interrupted', 'header' (these 128 bytes are not the next batch's), 'closed', 'stalled' or 'failed' "
             "(after so many of so many bytes, errno), 'ring' (status, for ring_error()). A body has to come within "
             "`stall` seconds and its bytes / `least_rate`; the socket's own timeout ends what stands still.")
        .def("send_acks", &ReceiverCore::send_acks, nb::arg("fd"), nb::arg("head"), nb::arg("acked"),
             nb::sig("def send_acks(self, fd: int, head: bytes, acked: int) -> tuple[int, str, int, str]"),
             "Sends acknowledgements, which begin with `head`, of more than `acked` batches, until it cannot go on: "
             "the last seq, why (as in receive()), errno, status.")
        .def("ring_error", &ReceiverCore::ring_error, nb::arg("status"),
             nb::sig("def ring_error(self, status: str) -> Exception"), "The error for a status of the ring.")
        .def(
            "socket_calls", [](const ReceiverCore& r) { return as_dict(r.core.calls); },
            nb::sig("def socket_calls(self) -> dict[str, int]"),
            "What receive() and send_acks() did, by the names of `net.SocketCounters`.")
        .def(
            "interrupt", [](ReceiverCore& r) { r.core.interrupt(); }, "Ends all waits, until resume().")
        .def("resume", [](ReceiverCore& r) { r.core.resume(); })
        .def("close", &ReceiverCore::close, "Gives the row back.")
        .def_prop_ro(
            "context", [](const ReceiverCore& r) -> nb::object { return r.context_; },
            nb::sig("def context(self) -> Any"))
        .def_prop_ro("index", [](const ReceiverCore& r) { return r.core.index(); })
        .def_prop_ro("committed_seq", [](const ReceiverCore& r) { return r.core.committed_seq(); })
        .def_prop_ro("accepted_seq", [](const ReceiverCore& r) { return r.core.accepted_seq(); });

    nb::class_<RelayCore>(m, "RelayCore", "Takes batches out of a private ring. One thread calls next(), any the rest.")
        .def(nb::init<nb::handle, int, double, unsigned, bool>(), nb::arg("buffer"), nb::arg("wait_mode"),
             nb::arg("spin_us"), nb::arg("cpus"), nb::arg("timed"),
             nb::sig("def __init__(self, buffer: Buffer, wait_mode: int, spin_us: float, cpus: int, timed: bool) "
                     "-> None"))
        .def("send", &RelayCore::send, nb::arg("fd"), nb::arg("sent"), nb::arg("last"), nb::arg("forget"),
             nb::sig("def send(self, fd: int, sent: int, last: int, forget: bool) -> tuple[int, str, int]"),
             "Sends batches after the first `sent`; how many the kernel took whole, how it ended ('whole': woken, or "
             "`last` is sent; 'stalled', 'failed'), and errno. With `forget` they need no acknowledgement.")
        .def("read_acks", &RelayCore::read_acks, nb::arg("fd"), nb::arg("head"),
             nb::sig("def read_acks(self, fd: int, head: bytes) -> tuple[str, bytes, int, int, int]"),
             "Reads acknowledgements, which begin with `head`, until something else comes: how it ended ('whole': "
             "another frame; 'closed', 'failed', 'lie'), that frame's first bytes, how many, errno, and what was "
             "acknowledged though it was never sent.")
        .def("record_send", &RelayCore::record_send, nb::arg("ns"), "A send that was done elsewhere.")
        .def("send_times", &RelayCore::send_times, nb::sig("def send_times(self) -> dict[str, Any]"),
             "As in Monitor: count, sum, max, buckets.")
        .def("socket_calls", &RelayCore::socket_calls, nb::sig("def socket_calls(self) -> dict[str, int]"),
             "What send() and read_acks() did, by the names of `net.SocketCounters`.")
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

// FeedCore and IntakeCore (feed.hpp, intake.hpp) for Python: the two ends of a batch's way to a distant subscriber.
#include "explain.hpp"
#include "intake.hpp"
#include "network.hpp"

namespace embar {
namespace {

const char* name(Feed::Found f) {
    switch (f) {
        case Feed::Found::Batch: return "batch";
        case Feed::Found::Waited: return "waited";
        case Feed::Found::Interrupted: return "interrupted";
        case Feed::Found::End: return "end";
        case Feed::Found::Gone: return "gone";
        case Feed::Found::Damaged: return "damaged";
        case Feed::Found::Corrupt: return "corrupt";
        case Feed::Found::NoMemory: return "no_memory";
    }
    return "?";
}

const char* head_in(const nb::bytes& bytes) {
    if (bytes.size() != CreditFrame::kHeadBytes) throw nb::value_error("the head of a frame has 16 bytes");
    return bytes.c_str();
}

class FeedCore {
public:
    FeedCore(nb::handle buffer, u32 index, int lock_fd, const std::string& name, bool lossy, u32 start, u64 ticket,
             int wait_mode, double spin_us, unsigned cpus, std::pair<u64, u64> comes_back,
             std::optional<u64> resumes_at)
        : buffer_(buffer, true),
          feed_(checked(buffer_, index, start), index, lock_fd, name.c_str(),
                options(lossy, start, ticket, comes_back, resumes_at), spin_options(wait_mode, spin_us, cpus)) {}

    // Waits for the broker's answer: where in the log it begins.
    const char* join(double timeout, u64 wanted) {
        Subscriber& s = feed_.subscriber();
        const u64 deadline = deadline_after(timeout);
        for (;;) {
            const Subscriber::Joined joined = s.joined();
            if (joined == Subscriber::Joined::Yes) {
                feed_.begin(wanted);
                return "yes";
            }
            if (joined == Subscriber::Joined::No) return "no";
            if (const Subscriber::Peer peer = s.peer(); peer != Subscriber::Peer::Ok)
                return peer == Subscriber::Peer::Quarantined ? "quarantined"
                       : peer == Subscriber::Peer::Stopped   ? "stopped"
                                                             : "gone";
            if (now_ns() >= deadline) return "timeout";
            Unlocked unlocked;
            s.wait_joined(std::min(deadline, now_ns() + kSliceNs));
        }
    }
    bool resume(u64 ticket, u64 granted) { return feed_.resume(ticket, granted); }
    void interrupt() { feed_.interrupt(); }
    bool credit(u64 received, u64 granted) { return feed_.credit({received, granted}); }

    // Why, ticket (of the last batch, or the damaged one), how the socket failed, errno.
    nb::tuple send(int fd) {
        Feed::Ended e{};
        {
            Unlocked unlocked;
            e = feed_.send(fd);
        }
        return nb::make_tuple(name(e.why), e.ticket, embar::name(e.socket), e.socket.error);
    }
    // One batch for a connection that is encrypted elsewhere: why, ticket, header, body.
    nb::tuple next() {
        Subscriber::View view;
        Feed::Found found = Feed::Found::Waited;
        {
            Unlocked unlocked;
            while (found == Feed::Found::Waited) found = feed_.find(view);
        }
        nb::object header = nb::none(), body = nb::none();
        if (found == Feed::Found::Batch) {
            header = nb::bytes(reinterpret_cast<const char*>(&view.header), sizeof view.header);
            // Valid until the other side has received it, or (lossy) the next call; so while it is being sent.
            PyObject* memory = PyMemoryView_FromMemory(const_cast<char*>(view.body),
                                                       static_cast<Py_ssize_t>(view.header.body_bytes), PyBUF_READ);
            if (!memory) throw nb::python_error();
            body = nb::steal(memory);
        }
        return nb::make_tuple(name(found), view.ticket, header, body);
    }
    nb::tuple read_credits(int fd, nb::bytes head) {
        const char* const begin = head_in(head);
        CreditFrame frame;
        Transferred t{};
        {
            Unlocked unlocked;
            t = feed_.read_credits(fd, begin, frame);
        }
        const std::size_t n = t.how == Transferred::Whole ? t.bytes : 0;
        return nb::make_tuple(embar::name(t), nb::bytes(reinterpret_cast<const char*>(&frame), n), t.bytes, t.error);
    }
    nb::tuple known() {
        const Feed::Known k = feed_.known();
        return nb::make_tuple(k.credit.received, k.credit.granted, k.on_this, k.sent_to);
    }
    nb::dict socket_calls() { return as_dict(feed_.calls); }
    u32 index() { return feed_.subscriber().index(); }
    void close() { feed_.subscriber().leave(); }

private:
    static SubscriberOptions options(bool lossy, u32 start, u64 ticket, std::pair<u64, u64> comes_back,
                                     std::optional<u64> resumes_at) {
        SubscriberOptions o{lossy ? SubscribeMode::Lossy : SubscribeMode::Reliable, static_cast<Start>(start), ticket};
        o.remote_id = comes_back.first;
        o.remote_incarnation = comes_back.second;
        if (resumes_at) {
            if (lossy) throw nb::value_error("only the row of a reliable subscriber can be taken over");
            o.resumes_at = *resumes_at;
        }
        return o;
    }
    static Ring checked(const HeldBuffer& b, u32 index, u32 start) {
        const Ring ring = ring_in(b);
        if (index >= ring.geometry().max_subscribers) throw nb::index_error("no such row in the subscribers table");
        if (start > static_cast<u32>(Start::Ticket)) throw nb::value_error("no such start");
        return ring;
    }

    HeldBuffer buffer_;
    Feed feed_;
};

class IntakeCore {
public:
    IntakeCore(nb::object context, nb::handle buffer, bool reliable, u64 first)
        : context_(std::move(context)), buffer_(buffer, true),
          core(ring_in(buffer_), {0, 0, ring_in(buffer_).geometry().slots, 0, false}, reliable, first) {}

    u64 connect() { return core.connect(); }
    void disconnect() { core.disconnect(); }

    // As ReceiverCore.receive().
    nb::tuple receive(int fd, u64 limit, double stall, double least_rate, nb::bytes head) {
        if (!(stall >= 0) || !(least_rate > 0)) throw nb::value_error("stall and least_rate must be positive");
        const Receiver::Patience patience{static_cast<u64>(std::min(stall, 1e9) * 1e9), 1e9 / least_rate};
        const char* const begin = head_in(head);
        BatchHeader header;
        Receiver::Ended e{};
        {
            Unlocked unlocked;
            e = core.receive(fd, limit, patience, begin, header);
        }
        nb::object bytes = nb::none();
        if (e.why == Receiver::Ended::Header) bytes = nb::bytes(reinterpret_cast<const char*>(&header), sizeof header);
        return nb::make_tuple(embar::name(e), bytes, e.socket.bytes, e.wanted, e.socket.error, embar::name(e.status));
    }
    // For a connection that is encrypted elsewhere. None: the broker had no credit for another batch.
    nb::object claim() {
        char* body = nullptr;
        if (!core.has_slot()) return nb::none();
        if (const Status s = core.claim(body); s != Status::Ok) return nb::none();
        return nb::int_(static_cast<u64>(body - buffer_.data()));
    }
    void commit(nb::bytes header) {
        if (const Status s = core.commit(header_in(header)); s != Status::Ok) raise_status(this, s, 0);
    }
    void give_back() { core.give_back(); }
    nb::object next_credit(bool received) {
        Credit c;
        if (!core.next_credit(received, c)) return nb::none();
        return nb::make_tuple(c.received, c.granted);
    }
    void settle() {
        Unlocked unlocked;
        core.settle();
    }
    bool wait_credit() {
        Unlocked unlocked;
        return core.wait_credit();
    }
    nb::tuple send_credits(int fd, nb::bytes head) {
        const char* const begin = head_in(head);
        Transferred t{};
        {
            Unlocked unlocked;
            t = core.send_credits(fd, begin);
        }
        return nb::make_tuple(embar::name(t), t.error);
    }
    nb::dict socket_calls() { return as_dict(core.calls); }

    HeldObject context_;
    HeldBuffer buffer_;
    Intake core;
};

}  // namespace

void bind_feed(nb::module_& m) {
    nb::class_<FeedCore>(m, "FeedCore",
                         "Sends a ring's batches to a remote subscriber. One thread sends, another one reads credits.")
        .def(nb::init<nb::handle, u32, int, const std::string&, bool, u32, u64, int, double, unsigned,
                      std::pair<u64, u64>, std::optional<u64>>(),
             nb::arg("buffer"), nb::arg("index"), nb::arg("lock_fd"), nb::arg("name"), nb::arg("lossy"),
             nb::arg("start"), nb::arg("ticket"), nb::arg("wait_mode"), nb::arg("spin_us"), nb::arg("cpus"),
             nb::arg("comes_back") = std::pair<u64, u64>(0, 0), nb::arg("resumes_at") = nb::none(),
             nb::sig("def __init__(self, buffer: Buffer, index: int, lock_fd: int, name: str, lossy: bool, start: int, "
                     "ticket: int, wait_mode: int, spin_us: float, cpus: int, comes_back: tuple[int, int] = (0, 0), "
                     "resumes_at: int | None = None) -> None"),
             "`comes_back`: id and incarnation of a subscriber whose row outlives this process. `resumes_at`: the row "
             "is "
             "one of this subscriber already, at that ticket; it need not join.")
        .def("join", &FeedCore::join, nb::arg("timeout"), nb::arg("wanted") = ~0ULL,
             "Waits for the broker's answer: 'yes', 'no' (that place is not in the log), 'stopped' or 'gone' (the "
             "broker), 'timeout' (seconds). Tickets after `wanted` that are gone are a gap before the first batch.")
        .def("resume", &FeedCore::resume, nb::arg("ticket"), nb::arg("granted"),
             "A connection begins: what it has, and how many batches it may get. False: that cannot be.")
        .def("interrupt", &FeedCore::interrupt, "Ends send() and next(), until resume(). Any thread.")
        .def("credit", &FeedCore::credit, nb::arg("received"), nb::arg("granted"),
             "Takes note of a CREDIT. False: that cannot be.")
        .def("send", &FeedCore::send, nb::arg("fd"), nb::sig("def send(self, fd: int) -> tuple[str, int, str, int]"),
             "Sends batches into a plain socket until it cannot go on: why ('batch': the socket failed; "
             "'interrupted', 'end', 'gone', 'damaged', 'corrupt', 'no_memory'), ticket of the last batch, how the "
             "socket ended ('stalled', 'failed'), errno.")
        .def("next", &FeedCore::next, nb::sig("def next(self) -> tuple[str, int, bytes | None, memoryview | None]"),
             "Waits for the next batch to send: why (as in send(); 'batch': here it is), ticket, header, body. The "
             "body is valid until the next call, or until the other side has received it.")
        .def("read_credits", &FeedCore::read_credits, nb::arg("fd"), nb::arg("head"),
             nb::sig("def read_credits(self, fd: int, head: bytes) -> tuple[str, bytes, int, int]"),
             "Reads CREDIT frames, which begin with `head`, until something else comes: how it ended ('whole': "
             "another frame, or a CREDIT that cannot be; 'closed', 'stalled', 'failed'), that frame's first bytes, "
             "how many, errno.")
        .def("known", &FeedCore::known, nb::sig("def known(self) -> tuple[int, int, int, int]"),
             "Received up to this ticket, batches granted and sent on this connection, ticket after the last sent.")
        .def("socket_calls", &FeedCore::socket_calls, nb::sig("def socket_calls(self) -> dict[str, int]"),
             "What send() and read_credits() did, by the names of `net.SocketCounters`.")
        .def_prop_ro("index", &FeedCore::index)
        .def("close", &FeedCore::close, "Gives the row back.");

    nb::class_<IntakeCore>(m, "IntakeCore",
                           "Brings a distant broker's batches into a private ring. One thread receives, another one "
                           "tells the broker of slots that came free.")
        .def(nb::init<nb::object, nb::handle, bool, u64>(), nb::arg("context"), nb::arg("buffer"), nb::arg("reliable"),
             nb::arg("first"),
             nb::sig("def __init__(self, context: Any, buffer: Buffer, reliable: bool, first: int) -> None"))
        .def("connect", &IntakeCore::connect, "A connection begins: how many batches may come before the first CREDIT.")
        .def("disconnect", &IntakeCore::disconnect, "It ends, and with it the waits for credits. Any thread.")
        .def("settle", &IntakeCore::settle,
             "After disconnect(): waits until a CREDIT that receive() or send_credits() was sending is sent.")
        .def("receive", &IntakeCore::receive, nb::arg("fd"), nb::arg("limit"), nb::arg("stall"), nb::arg("least_rate"),
             nb::arg("head"),
             nb::sig("def receive(self, fd: int, limit: int, stall: float, least_rate: float, head: bytes) "
                     "-> tuple[str, bytes | None, int, int, int, str]"),
             "Receives batches from a plain socket until it cannot go on, and tells so in CREDIT frames, which begin "
             "with `head`: why, and what, as ReceiverCore.receive() says.")
        .def("claim", &IntakeCore::claim, nb::sig("def claim(self) -> int | None"),
             "Claims a slot: the offset of its body. None: the broker has no credit for another batch.")
        .def("commit", &IntakeCore::commit, nb::arg("header"), "Commits the batch that was received into the slot.")
        .def("give_back", &IntakeCore::give_back, "Gives the slot back: the batch did not come.")
        .def("next_credit", &IntakeCore::next_credit, nb::arg("received"),
             nb::sig("def next_credit(self, received: bool) -> tuple[int, int] | None"),
             "What a CREDIT should say now; None: there is nothing to tell. `received`: a batch came just now.")
        .def("wait_credit", &IntakeCore::wait_credit,
             "Waits until a slot came free that the broker waits for. False: disconnect().")
        .def("send_credits", &IntakeCore::send_credits, nb::arg("fd"), nb::arg("head"),
             nb::sig("def send_credits(self, fd: int, head: bytes) -> tuple[str, int]"),
             "The same in a loop, and tells the broker: how it ended ('whole': disconnect()), errno.")
        .def("socket_calls", &IntakeCore::socket_calls, nb::sig("def socket_calls(self) -> dict[str, int]"),
             "What receive() and send_credits() did, by the names of `net.SocketCounters`.")
        .def_prop_ro(
            "context", [](const IntakeCore& i) -> nb::object { return i.context_; },
            nb::sig("def context(self) -> Any"))
        .def_prop_ro("index", [](const IntakeCore& i) { return i.core.index(); })
        .def_prop_ro("next_ticket", [](const IntakeCore& i) { return i.core.next_ticket(); });
}

}  // namespace embar

// BrokerCore: broker.hpp for Python. Waits drop the GIL and let Python look at signals.
#include "bindings.hpp"
#include "broker.hpp"

namespace embar {
namespace {

const char* name(Verdict v) {
    switch (v) {
        case Verdict::Accepted: return "accepted";
        case Verdict::Duplicate: return "duplicate";
        case Verdict::OutOfOrder: return "out_of_order";
        case Verdict::BadHeader: return "bad_header";
    }
    return "?";
}

class BrokerCore {
public:
    BrokerCore(nb::handle buffer, int lock_fd, int wait_mode, double spin_us, unsigned cpus, bool stage_times)
        : buffer_(buffer, true),
          broker_(ring_in(buffer_), lock_fd, spin_options(wait_mode, spin_us, cpus), stage_times) {}

    // => "stopped": stop() was called. => "timeout". => "corrupt".
    std::string serve(std::optional<double> timeout) {
        const u64 deadline = deadline_after(timeout);
        for (;;) {
            Broker::Result r;
            {
                nb::gil_scoped_release unlocked;
                r = broker_.serve(std::min(deadline, now_ns() + kSliceNs));
            }
            if (r == Broker::Result::Corrupt) return "corrupt";
            check_signals();
            if (r == Broker::Result::Stopped) return "stopped";
            if (now_ns() >= deadline) return "timeout";
        }
    }
    // The next batch, still in its slot, or None.
    nb::object accept() {
        Accepted a;
        if (!broker_.accept(a)) return nb::none();
        broker_.announce(a.where.owner);
        nb::dict d;
        d["ticket"] = a.ticket;
        d["slot"] = a.where.slot;
        d["owner"] = a.where.owner;
        d["verdict"] = name(a.verdict);
        d["publisher_id"] = a.header.publisher_id;
        d["seq"] = a.header.seq;
        d["format"] = a.header.format;
        d["messages"] = a.header.messages;
        d["message_size"] = a.header.message_size;
        d["body_bytes"] = a.header.body_bytes;
        d["payload_bytes"] = a.header.payload_bytes;
        d["payload_offset"] = static_cast<u64>(broker_.ring().payload_of(a.where.slot) - buffer_.data());
        return d;
    }
    bool release() { return broker_.release_next(); }
    u32 reap() { return broker_.reap(); }
    bool reap_row(u32 i) {
        if (i >= broker_.ring().geometry().max_publishers) throw nb::index_error("no such row in the publishers table");
        return broker_.reap_row(i);
    }
    void stop() { broker_.stop(); }
    void resume() { broker_.resume(); }
    void retire() { broker_.retire(); }
    std::optional<std::string> corruption() const {
        return broker_.corruption() ? std::optional<std::string>(broker_.corruption()) : std::nullopt;
    }

private:
    HeldBuffer buffer_;
    Broker broker_;
};

}  // namespace

void bind_broker(nb::module_& m) {
    nb::class_<BrokerCore>(m, "BrokerCore", "The broker of one mapped ring. One thread at a time, but for stop().")
        .def(nb::init<nb::handle, int, int, double, unsigned, bool>(), nb::arg("buffer"), nb::arg("lock_fd"),
             nb::arg("wait_mode"), nb::arg("spin_us"), nb::arg("cpus"), nb::arg("stage_times") = true,
             nb::sig("def __init__(self, buffer: Buffer, lock_fd: int, wait_mode: int, spin_us: float, cpus: int, "
                     "stage_times: bool = True) -> None"))
        .def("serve", &BrokerCore::serve, nb::arg("timeout").none(),
             "Accepts, releases, reaps; 'stopped', 'timeout' (seconds) or 'corrupt'. Releases the GIL.")
        .def("accept", &BrokerCore::accept, nb::sig("def accept(self) -> dict[str, Any] | None"),
             "Accepts one batch and leaves it in its slot; None when there is none.")
        .def("release", &BrokerCore::release, "Releases the oldest accepted batch; False when there is none.")
        .def("reap", &BrokerCore::reap, "Frees what publishers that are gone left: how many rows.")
        .def("reap_row", &BrokerCore::reap_row, nb::arg("index"), "Frees one row whose owner is known to be gone.")
        .def("stop", &BrokerCore::stop, "Ends serve(), from any thread or signal handler.")
        .def("resume", &BrokerCore::resume, "Takes stop() back.")
        .def("retire", &BrokerCore::retire, "Tells all publishers that nothing will be accepted any more.")
        .def_prop_ro("corruption", &BrokerCore::corruption, "What is wrong with the segment, or None.");
}

}  // namespace embar

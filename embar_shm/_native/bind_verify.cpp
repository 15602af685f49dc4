// Stamping messages, checking them, and how old they are, for Python.
#include <nanobind/stl/map.h>

#include <array>

#include "bindings.hpp"
#include "latency.hpp"
#include "verify.hpp"

namespace embar {
namespace {

constexpr std::array<const char*, 4> kMisplaced = {"corrupt", "lost", "reordered", "duplicated"};

// Whole messages with stamps in a buffer.
class Messages {
public:
    Messages(nb::handle buffer, u64 message_size, bool writable) : held_(buffer, writable), size(message_size) {
        if (size < sizeof(Stamp)) throw nb::value_error("message_size must be at least 32: the size of a stamp");
        if (held_.size() % size) throw nb::value_error("the buffer is no whole number of messages");
        count = held_.size() / size;
    }
    char* data() const noexcept { return held_.data(); }

private:
    HeldBuffer held_;

public:
    u64 size;
    u64 count = 0;
};

void stamp_messages(nb::handle buffer, u64 message_size, u64 publisher, u64 first, u64 due_ns) {
    const Messages m(buffer, message_size, true);
    Unlocked unlocked;
    stamp(m.data(), m.size, m.count, publisher, first, due_ns);
}

void check_batch(Verifier& v, nb::handle body, u64 message_size, u64 publisher, u64 ticket, bool gap) {
    const Messages m(body, message_size, false);
    v.batch(m.data(), m.size, m.count, publisher, ticket, gap);
}

nb::object first_fault(const Verifier& v) {
    const auto found = v.first();
    if (!found) return nb::none();
    nb::dict d;
    d["kind"] = kMisplaced[static_cast<std::size_t>(found->kind)];
    d["publisher"] = found->publisher;
    d["expected"] = found->expected;
    d["found"] = found->found;
    d["ticket"] = found->ticket;
    return d;
}

nb::dict counts_of(const Verifier& v) {
    const Verifier::Counts& c = v.counts();
    nb::dict d;
    d["messages"] = c.messages;
    d["lost"] = c.lost;
    d["duplicated"] = c.duplicated;
    d["reordered"] = c.reordered;
    d["corrupt"] = c.corrupt;
    d["overrun"] = c.overrun;
    d["resent"] = c.resent;
    return d;
}

std::map<u64, u64> next_of(const Verifier& v) {
    std::map<u64, u64> next;
    for (const auto& [publisher, seen] : v.publishers()) next[publisher] = seen.high;
    return next;
}

std::map<u64, u64> skipped_of(const Verifier& v) {
    std::map<u64, u64> skipped;
    for (const auto& [publisher, seen] : v.publishers())
        if (seen.skipped) skipped[publisher] = seen.skipped;
    return skipped;
}

}  // namespace

void bind_verify(nb::module_& m) {
    m.attr("STAMP_BYTES") = sizeof(Stamp);
    m.def("stamp", &stamp_messages, nb::arg("messages"), nb::arg("message_size"), nb::arg("publisher"),
          nb::arg("first"), nb::arg("due_ns") = 0,
          nb::sig("def stamp(messages: Buffer, message_size: int, publisher: int, first: int, due_ns: int = 0) -> "
                  "None"),
          "Writes a stamp into the first 32 bytes of each message: checksum of the rest, `publisher`, the message's\n"
          "number (`first`, `first` + 1, ...) and `due_ns`. Raises ValueError for sizes that do not fit.");
    nb::class_<Verifier>(m, "Verifier", "Checks the stamps of everything that one subscriber reads.")
        .def(nb::init<>())
        .def("check", &check_batch, nb::arg("body"), nb::arg("message_size"), nb::arg("publisher"), nb::arg("ticket"),
             nb::arg("gap") = false,
             nb::sig("def check(self, body: Buffer, message_size: int, publisher: int, ticket: int, gap: bool = False) "
                     "-> None"),
             "The messages of the next batch. `gap`: batches before it were overrun, numbers may be skipped. Raises\n"
             "ValueError for sizes that do not fit; what is wrong with messages is found in `first` and `counts`.")
        .def("restart", &Verifier::restart,
             "Another log begins: publishers may begin anywhere, also with what they sent before.")
        .def_prop_ro("first", &first_fault, nb::sig("def first(self) -> dict[str, Any] | None"),
                     "The first fault: kind (corrupt, lost, reordered, duplicated), publisher, expected and found\n"
                     "number, ticket.")
        .def_prop_ro("counts", &counts_of, nb::sig("def counts(self) -> dict[str, int]"), "Messages, by what they are.")
        .def_prop_ro("next", &next_of, nb::sig("def next(self) -> dict[int, int]"),
                     "By publisher: one more than the highest number that came.")
        .def_prop_ro("skipped", &skipped_of, nb::sig("def skipped(self) -> dict[int, int]"),
                     "By publisher: numbers that were left out where that was excused; none is not named.");

    nb::class_<Delays>(m, "Delays", "A histogram of how late messages are, in ns; bounds at most 1/16 too high.")
        .def(nb::init<>())
        .def(
            "record", [](Delays& d, u64 due_ns) { d.record(due_ns, now_ns()); }, nb::arg("due_ns"),
            "A message that was due at `due_ns` (CLOCK_MONOTONIC) is where it should be.")
        .def(
            "record_batch",
            [](Delays& d, nb::handle body, u64 message_size) {
                const u64 now = now_ns();  // before all else
                const Messages m(body, message_size, false);
                d.record_batch(m.data(), m.size, m.count, now);
            },
            nb::arg("body"), nb::arg("message_size"),
            nb::sig("def record_batch(self, body: Buffer, message_size: int) -> None"),
            "The same for all messages of a batch, by their stamps.")
        .def(
            "as_dict", [](const Delays& d) { return as_dict(d.histogram()); },
            nb::sig("def as_dict(self) -> dict[str, Any]"), "count, sum, max and buckets, as `Monitor` gives them.");
    m.def(
        "wait_until",
        [](u64 deadline_ns, double spin_us) {
            const auto spin_ns = static_cast<u64>(std::max(spin_us, 0.0) * 1e3);
            for (;;) {
                {
                    Unlocked unlocked;
                    if (wait_until(deadline_ns, spin_ns)) return;
                }
                check_signals();
            }
        },
        nb::arg("deadline_ns"), nb::arg("spin_us"),
        "Waits until CLOCK_MONOTONIC is `deadline_ns`: sleeps, and spins for the last `spin_us` microseconds.\n\n"
        "Blocks without the GIL; signal handlers run meanwhile, and may raise.");
}

}  // namespace embar

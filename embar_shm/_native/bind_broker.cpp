// The methods of BrokerCore (broker_core.hpp) for Python.
#include "broker_core.hpp"

namespace embar {

void bind_broker(nb::module_& m) {
    nb::class_<BrokerCore>(m, "BrokerCore", "The broker of one mapped ring. One thread at a time, but for stop().")
        .def(nb::init<nb::handle, int, int, double, unsigned, bool, u32>(), nb::arg("buffer"), nb::arg("lock_fd"),
             nb::arg("wait_mode"), nb::arg("spin_us"), nb::arg("cpus"), nb::arg("stage_times") = true,
             nb::arg("retain") = 0,
             nb::sig("def __init__(self, buffer: Buffer, lock_fd: int, wait_mode: int, spin_us: float, cpus: int, "
                     "stage_times: bool = True, retain: int = 0) -> None"))
        .def("serve", &BrokerCore::serve, nb::arg("timeout").none(),
             "Accepts, releases, reaps; 'stopped', 'timeout' (seconds) or 'corrupt'. Releases the GIL.")
        .def("accept", &BrokerCore::accept, nb::sig("def accept(self) -> dict[str, Any] | None"),
             "Accepts one batch and leaves it in its slot; None when there is none.")
        .def(
            "release", [](BrokerCore& b) { return b.core.release_next(); },
            "Releases the oldest accepted batch; False when there is none, or a subscriber holds it.")
        .def(
            "release_passed", [](BrokerCore& b, bool wanted) { b.core.release(wanted); }, nb::arg("wanted"),
            "Releases what every subscriber has passed, but for what is retained while no slot is wanted.")
        .def(
            "admit", [](BrokerCore& b) { b.core.admit(); }, "Answers subscribers that are joining.")
        .def(
            "reap", [](BrokerCore& b) { return b.core.reap(); },
            "Frees what participants that are gone left: how many rows of publishers.")
        .def("reap_row", &BrokerCore::reap_row, nb::arg("index"), "Frees one row whose owner is known to be gone.")
        .def(
            "stop", [](BrokerCore& b) { b.core.stop(); }, "Ends serve(), from any thread or signal handler.")
        .def(
            "resume", [](BrokerCore& b) { b.core.resume(); }, "Takes stop() back.")
        .def(
            "retire", [](BrokerCore& b) { b.core.retire(); }, "Tells all that nothing will be accepted any more.")
        .def_prop_ro("recovered", &BrokerCore::recovered, nb::sig("def recovered(self) -> dict[str, int]"),
                     "What was found when it began: batches accepted (head), still unread and unaccepted, steps of the "
                     "broker before it that were finished, slots that were being filled from a network.")
        .def_prop_ro("first_accept_ns", &BrokerCore::first_accept_ns,
                     "CLOCK_MONOTONIC of the first batch it accepted, or None.")
        .def_prop_ro("adopted_publishers", &BrokerCore::adopted_publishers,
                     nb::sig("def adopted_publishers(self) -> list[dict[str, int]]"),
                     "Rows of publishers on a network, which the broker before it has left, and it keeps.")
        .def_prop_ro("adopted_subscribers", &BrokerCore::adopted_subscribers,
                     nb::sig("def adopted_subscribers(self) -> list[dict[str, int]]"), "The same for subscribers.")
        .def(
            "take_over_publisher", [](BrokerCore& b, u32 i, int fd) { return b.core.peers().take_over(i, fd); },
            nb::arg("index"), nb::arg("lock_fd"),
            "Moves the lock of a row it keeps to another descriptor, from any thread; False: it is not kept any more.")
        .def(
            "take_over_subscriber", [](BrokerCore& b, u32 i, int fd) { return b.core.gates().take_over(i, fd); },
            nb::arg("index"), nb::arg("lock_fd"), "The same for a subscriber's row.")
        .def_prop_ro("corruption", &BrokerCore::corruption, "What is wrong with the segment, or None.");
}

}  // namespace embar

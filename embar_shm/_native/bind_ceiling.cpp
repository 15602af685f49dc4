// The yardsticks of docs/performance.md: bare memory copy, bare sockets, an empty native method call, and what
// a stage time costs.
#include "bindings.hpp"
#include "calibration.hpp"
#include "ceiling.hpp"
#include "loopback.hpp"

namespace embar {
namespace {

// The memory of one batch at each of the offsets.
std::vector<char*> places_in(const HeldBuffer& buffer, const std::vector<std::uint64_t>& offsets,
                             std::uint64_t batch_bytes) {
    if (offsets.empty() || batch_bytes == 0) throw nb::value_error("batch_bytes and offsets must not be empty");
    std::vector<char*> places;
    for (const std::uint64_t o : offsets) {
        if (o > buffer.size() || batch_bytes > buffer.size() - o)
            throw nb::value_error("an offset is beyond the buffer");
        places.push_back(buffer.data() + o);
    }
    return places;
}

std::uint64_t ceiling(nb::handle target, const std::vector<std::uint64_t>& offsets, nb::handle source,
                      std::uint64_t batch_bytes, std::uint64_t batches, bool nontemporal) {
    HeldBuffer to(target, true), from(source, false);
    if (from.size() == 0) throw nb::value_error("source must not be empty");
    const std::vector<char*> places = places_in(to, offsets, batch_bytes);
    Unlocked unlocked;
    return memory_copy(places, from.data(), from.size(), batch_bytes, batches, nontemporal);
}

// Looks at signals when one has cut a call short and, for those that arrive between two calls, every 10 ms.
class SignalCheck {
public:
    // With the GIL released. Throws what a signal handler raises.
    void after(bool interrupted) {
        if (!interrupted && now_ns() < next_) return;
        LockedAgain locked;
        check_signals();
        next_ = now_ns() + 10'000'000;
    }

private:
    std::uint64_t next_ = now_ns() + 10'000'000;
};

[[noreturn]] void raise_errno(int number) {
    errno = number;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
}

std::uint64_t tcp_send_loop(int fd, nb::handle buffer, const std::vector<std::uint64_t>& offsets,
                            std::uint64_t batch_bytes, std::uint64_t batches) {
    HeldBuffer from(buffer, false);
    const std::vector<char*> places = places_in(from, offsets, batch_bytes);
    int failure = 0;
    const std::uint64_t begin = now_ns();
    {
        Unlocked unlocked;
        SignalCheck signals;
        for (std::uint64_t b = 0; b < batches && !failure; ++b) {
            Transfer batch{places[b % places.size()], batch_bytes};
            while (!batch.complete() && !failure) {
                if (send_rest(fd, batch) == Socket::Failed) failure = errno;
                signals.after(!batch.complete());
            }
        }
    }
    if (failure) raise_errno(failure);
    return now_ns() - begin;
}

std::uint64_t tcp_receive_loop(int fd, nb::handle buffer, const std::vector<std::uint64_t>& offsets,
                               std::uint64_t batch_bytes) {
    HeldBuffer to(buffer, true);
    const std::vector<char*> places = places_in(to, offsets, batch_bytes);
    std::uint64_t batches = 0;
    std::size_t torn = 0;
    int failure = 0;
    {
        Unlocked unlocked;
        SignalCheck signals;
        for (bool more = true; more;) {
            Transfer batch{places[batches % places.size()], batch_bytes};
            while (!batch.complete() && more) {
                const Socket how = receive_rest(fd, batch);
                if (how == Socket::Failed) failure = errno;
                more = how == Socket::Moved || how == Socket::Signal;
                signals.after(more && !batch.complete());
            }
            if (batch.complete())
                ++batches;
            else
                torn = batch.done;
        }
    }
    if (failure) raise_errno(failure);
    if (torn) {
        PyErr_Format(PyExc_EOFError, "the peer ended after %zu of the %zu bytes of a batch", torn,
                     static_cast<std::size_t>(batch_bytes));
        throw nb::python_error();
    }
    return batches * batch_bytes;
}

struct EmptyCall {};
PyObject* empty_call(PyObject*, PyObject*) { Py_RETURN_NONE; }
PyMethodDef empty_call_methods[] = {
    {"call", empty_call, METH_O,
     "call($self, argument, /)\n--\n\nDoes nothing, as cheaply as Python can call anything."},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot empty_call_slots[] = {{Py_tp_methods, empty_call_methods}, {0, nullptr}};

}  // namespace

void bind_ceiling(nb::module_& m) {
    m.def("memory_copy", &ceiling, nb::arg("target"), nb::arg("offsets"), nb::arg("source"), nb::arg("batch_bytes"),
          nb::arg("batches"), nb::arg("nontemporal"),
          nb::sig("def memory_copy(target: Buffer, offsets: Sequence[int], source: Buffer, batch_bytes: int, "
                  "batches: int, nontemporal: bool) -> int"),
          "Copies `source` repeatedly into batches at the given offsets of `target`, in turn: ns it took.");
    m.def("tcp_send_loop", &tcp_send_loop, nb::arg("fd"), nb::arg("buffer"), nb::arg("offsets"), nb::arg("batch_bytes"),
          nb::arg("batches"),
          nb::sig("def tcp_send_loop(fd: int, buffer: Buffer, offsets: Sequence[int], batch_bytes: int, "
                  "batches: int) -> int"),
          "Sends batches from the given offsets of `buffer`, in turn, into a blocking stream socket: ns it took.\n\n"
          "Blocks without the GIL while the peer does not read; signal handlers run meanwhile, and may raise. Raises "
          "OSError when the connection breaks, ValueError for an offset beyond the buffer.");
    m.def("tcp_receive_loop", &tcp_receive_loop, nb::arg("fd"), nb::arg("buffer"), nb::arg("offsets"),
          nb::arg("batch_bytes"),
          nb::sig("def tcp_receive_loop(fd: int, buffer: Buffer, offsets: Sequence[int], batch_bytes: int) -> int"),
          "Receives batches (MSG_WAITALL) into the given offsets of `buffer`, in turn, until the peer ends: bytes.\n\n"
          "Blocks without the GIL; signal handlers run meanwhile, and may raise. Raises OSError when the connection "
          "breaks, EOFError when it ends inside a batch, ValueError for an offset beyond the buffer.");
    m.def(
        "sample_costs",
        [] {
            Calibration calibration;
            const SampleCosts costs = calibration.measure();
            return std::pair{costs.clock_ns, costs.record_ns};
        },
        "Of taking a stage time: ns per reading of the clock, ns per histogram record.");
    nb::class_<EmptyCall>(m, "EmptyCall", nb::type_slots(empty_call_slots),
                          "Yardstick: a native method that does nothing.")
        .def(nb::init<>());
}

}  // namespace embar

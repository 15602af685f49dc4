// The two yardsticks of docs/performance.md: bare memory copy, and an empty native method call.
#include "bindings.hpp"
#include "ceiling.hpp"

namespace embar {
namespace {

std::uint64_t ceiling(nb::handle target, const std::vector<std::uint64_t>& offsets, nb::handle source,
                      std::uint64_t batch_bytes, std::uint64_t batches, bool nontemporal) {
    HeldBuffer to(target, true), from(source, false);
    if (offsets.empty() || from.size() == 0 || batch_bytes == 0)
        throw nb::value_error("source, batch_bytes and offsets must not be empty");
    std::vector<char*> places;
    for (const std::uint64_t o : offsets) {
        if (o > to.size() || batch_bytes > to.size() - o) throw nb::value_error("an offset is beyond the target");
        places.push_back(to.data() + o);
    }
    nb::gil_scoped_release unlocked;
    return memory_copy(places, from.data(), from.size(), batch_bytes, batches, nontemporal);
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
    nb::class_<EmptyCall>(m, "EmptyCall", nb::type_slots(empty_call_slots),
                          "Yardstick: a native method that does nothing.")
        .def(nb::init<>());
}

}  // namespace embar

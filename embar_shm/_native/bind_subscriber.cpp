// The methods of SubscriberCore, Batch and Messages for Python.
#include "batch.hpp"

namespace embar {
namespace {

// --- next, poll, iteration: called once per batch, so without the binding library in between ----------

template <class Function>
PyObject* guarded(Function&& f) noexcept {
    try {
        return f();
    } catch (nb::python_error& e) {
        e.restore();
    } catch (const std::exception& e) {
        PyErr_SetString(PyExc_RuntimeError, e.what());
    }
    return nullptr;
}

SubscriberCore* subscriber_of(PyObject* self) {
    if (nb::inst_ready(self)) return nb::inst_ptr<SubscriberCore>(self);
    PyErr_SetString(PyExc_TypeError, "the subscriber was never initialised");
    throw nb::python_error();
}

PyObject* new_batch(PyObject* self, SubscriberCore* s, const Subscriber::View& v, std::unique_ptr<char[]> copy) {
    static const nb::handle type = nb::type<Batch>();
    nb::object b;
    try {
        b = nb::inst_alloc(type);
    } catch (...) {  // no memory: it is taken, and nobody will release it
        if (!copy) s->pass(v.place);
        throw;
    }
    new (nb::inst_ptr<Batch>(b)) Batch(nb::borrow(self), s, v, std::move(copy));
    nb::inst_mark_ready(b);
    return b.release().ptr();
}

PyObject* next_batch(PyObject* self, SubscriberCore* s, std::optional<double> timeout, bool end_is_error) {
    Subscriber::View v;
    std::unique_ptr<char[]> copy;
    switch (s->next(v, copy, timeout)) {
        case SubscriberCore::Found::Batch: return new_batch(self, s, v, std::move(copy));
        case SubscriberCore::Found::Nothing: s->raise("interrupted");
        case SubscriberCore::Found::End: break;
    }
    if (end_is_error) s->raise("end");
    return nullptr;  // without an error: StopIteration
}

PyObject* iternext(PyObject* self) noexcept {
    return guarded([&] {
        SubscriberCore* s = subscriber_of(self);
        return next_batch(self, s, s->timeout_, false);
    });
}
PyObject* iter(PyObject* self) noexcept {
    Py_INCREF(self);
    return self;
}
// next(timeout=...): the only argument is the timeout, by whatever way it is given.
PyObject* next_method(PyObject* self, PyObject* const* args, Py_ssize_t positional, PyObject* keywords) noexcept {
    return guarded([&]() -> PyObject* {
        SubscriberCore* s = subscriber_of(self);
        std::optional<double> timeout = s->timeout_;
        const Py_ssize_t named = keywords ? PyTuple_Size(keywords) : 0;
        if (positional + named > 1 ||
            (named && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(keywords, 0), "timeout") != 0)) {
            PyErr_SetString(PyExc_TypeError, "next() takes one argument at most, timeout");
            throw nb::python_error();
        }
        PyObject* given = positional + named ? args[0] : nullptr;
        if (given == Py_None) {
            timeout = std::nullopt;
        } else if (given) {
            timeout = nb::cast<double>(call_python("embar_shm.options", "number", "timeout", nb::handle(given)));
        }
        return next_batch(self, s, timeout, true);
    });
}
PyObject* poll_method(PyObject* self, PyObject*) noexcept {
    return guarded([&]() -> PyObject* {
        SubscriberCore* s = subscriber_of(self);
        Subscriber::View v;
        std::unique_ptr<char[]> copy;
        switch (s->poll(v, copy)) {
            case SubscriberCore::Found::Batch: return new_batch(self, s, v, std::move(copy));
            case SubscriberCore::Found::Nothing: Py_RETURN_NONE;
            case SubscriberCore::Found::End: break;
        }
        s->raise("end");
    });
}

PyMethodDef subscriber_methods[] = {
    {"next", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(next_method)), METH_FASTCALL | METH_KEYWORDS,
     "next($self, timeout=...)\n--\n\nThe next batch; waits for it."},
    {"poll", poll_method, METH_NOARGS, "poll($self, /)\n--\n\nThe next batch, or None; never waits."},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot subscriber_slots[] = {{Py_tp_methods, subscriber_methods},
                                  {Py_tp_iter, reinterpret_cast<void*>(iter)},
                                  {Py_tp_iternext, reinterpret_cast<void*>(iternext)},
                                  {0, nullptr}};

// --- Batch ---------------------------------------------------------------------------------------------

// Of a handle, which the binding library has not looked into.
Batch* batch_of(nb::handle self) {
    if (!nb::inst_ready(self)) throw nb::type_error("the batch was never initialised");
    return nb::inst_ptr<Batch>(self);
}

int batch_get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
    if (!nb::inst_ready(self)) {
        PyErr_SetString(PyExc_BufferError, "the batch was never initialised");
        view->obj = nullptr;
        return -1;
    }
    return nb::inst_ptr<Batch>(self)->get_buffer(self, view, flags);
}
void batch_release_buffer(PyObject* self, Py_buffer*) noexcept { nb::inst_ptr<Batch>(self)->release_buffer(); }
PyType_Slot batch_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(batch_get_buffer)},
                             {Py_bf_releasebuffer, reinterpret_cast<void*>(batch_release_buffer)},
                             {0, nullptr}};

PyObject* messages_next(PyObject* self) noexcept {
    return guarded([&]() -> PyObject* {
        if (nb::inst_ready(self)) return nb::inst_ptr<Messages>(self)->next();
        PyErr_SetString(PyExc_TypeError, "these messages were never initialised");
        return nullptr;
    });
}
PyType_Slot messages_slots[] = {{Py_tp_iter, reinterpret_cast<void*>(iter)},
                                {Py_tp_iternext, reinterpret_cast<void*>(messages_next)},
                                {0, nullptr}};

}  // namespace

void bind_subscriber(nb::module_& m) {
    count_forks();
    nb::class_<SubscriberCore>(m, "SubscriberCore", nb::type_slots(subscriber_slots),
                               "One subscriber of a mapped ring.")
        .def(nb::init<nb::object, nb::handle, nb::handle, u32, int, const std::string&, int, int, u64, bool, int,
                      double, unsigned, std::optional<double>, nb::object, nb::object, double>(),
             nb::arg("context"), nb::arg("buffer"), nb::arg("slots").none(), nb::arg("index"), nb::arg("lock_fd"),
             nb::arg("name"), nb::arg("mode"), nb::arg("start"), nb::arg("ticket"), nb::arg("sole"),
             nb::arg("wait_mode"), nb::arg("spin_us"), nb::arg("cpus"), nb::arg("timeout").none(),
             nb::arg("broker").none(), nb::arg("on_left"), nb::arg("restart_timeout") = 0.0,
             nb::sig("def __init__(self, context: Any, buffer: Buffer, slots: Buffer | None, index: int, lock_fd: int, "
                     "name: str, mode: int, start: int, ticket: int, sole: bool, wait_mode: int, spin_us: float, "
                     "cpus: int, timeout: float | None, broker: BrokerCore | None, on_left: Callable[[], None], "
                     "restart_timeout: float = 0.0) -> None"))
        .def("join", &SubscriberCore::join, nb::arg("timeout"), "Waits until the broker says where to begin.")
        .def("wait", &SubscriberCore::wait, nb::arg("timeout").none(),
             "Waits until poll() has something to tell (True), for seconds at most (False).")
        .def("interrupt", &SubscriberCore::interrupt, "Ends wait() and next(), of any thread, once.")
        .def(
            "end", [](SubscriberCore& s) { s.core.end(); }, "A private ring: nothing more will come.")
        .def("close", &SubscriberCore::close, "Takes no more; the row is given back when no view is alive.")
        .def("settle", &SubscriberCore::settle, "Of a closed one: waits until no other thread is in a call.")
        .def_prop_ro(
            "context", [](const SubscriberCore& s) -> nb::object { return s.context_; },
            nb::sig("def context(self) -> Any"))
        .def_prop_ro("index", [](const SubscriberCore& s) { return s.core.index(); })
        .def_prop_ro(
            "position", [](const SubscriberCore& s) { return s.core.position(); },
            "The ticket after the last one taken.")
        .def_prop_ro(
            "next_place", [](const SubscriberCore& s) { return s.core.next(); }, "The same, in the ring that is read.")
        .def_prop_ro(
            "held", [](const SubscriberCore& s) { return s.core.held(); }, "Batches taken and not released.")
        .def_prop_ro("pinned", &SubscriberCore::pinned, "Batches with a live view.")
        .def_prop_ro("is_closed", &SubscriberCore::is_closed)
        .def_prop_ro("is_forked", &SubscriberCore::is_forked);

    nb::class_<Batch>(
        m, "Batch", nb::type_slots(batch_slots),
        "One batch of the log: a read-only buffer of its body, and its header.\n\n"
        "A context manager: leaving it releases the batch, or lets the last view or array of it do so.\n"
        "A batch that nothing refers to any more is released, too. Until then the bytes stay as they are.")
        .def_prop_ro(
            "ticket", [](const Batch& b) { return b.view().ticket; }, "Its place in the broker's log.")
        .def_prop_ro("publisher_id", [](const Batch& b) { return b.header().publisher_id; })
        .def_prop_ro(
            "incarnation", [](const Batch& b) { return b.header().incarnation; },
            "Of the publisher: each connection over shared memory has another.")
        .def_prop_ro(
            "seq", [](const Batch& b) { return b.header().seq; }, "1, 2, 3, ... per publisher.")
        .def_prop_ro(
            "count", [](const Batch& b) { return b.header().messages; }, "Number of messages.")
        .def_prop_ro(
            "message_size", [](const Batch& b) { return b.header().message_size; },
            "Bytes of each message; 0: each has a size of its own.")
        .def_prop_ro(
            "nbytes", [](const Batch& b) { return b.header().body_bytes; },
            "Bytes of the body: of the messages, with what stands between those that have sizes of their own.")
        .def_prop_ro(
            "payload_bytes", [](const Batch& b) { return b.header().payload_bytes; }, "Bytes of the messages.")
        .def_prop_ro(
            "opened_ns", [](const Batch& b) { return b.header().opened_ns; },
            "CLOCK_MONOTONIC of the publisher's machine at its first message, in ns.")
        .def_prop_ro(
            "committed_ns", [](const Batch& b) { return b.header().committed_ns; },
            "CLOCK_MONOTONIC of the commit into the broker's ring, in ns.")
        .def_prop_ro(
            "gap", [](const Batch& b) { return b.view().gap; },
            "Batches that were overwritten just before this one could be read (lossy subscribers).")
        .def_prop_ro("released", &Batch::released)
        .def("release", &Batch::release,
             "Gives the slot back. BufferError while a view or array of it is alive, ClosedError the second time.")
        .def(
            "messages",
            [](nb::handle_t<Batch> self) {
                Batch* b = batch_of(self);
                b->check();
                return new Messages(nb::borrow(self), b);
            },
            nb::rv_policy::take_ownership, nb::sig("def messages(self) -> Messages"),
            "Iterates over the messages, each a read-only memoryview. CorruptBatch when their framing is damaged.")
        .def(
            "array",
            [](nb::handle_t<Batch> self, nb::object dtype, nb::object shape) {
                batch_of(self)->check();
                return call_python("embar_shm.arrays", "array", self, dtype, shape);
            },
            nb::arg("dtype") = "u1", nb::arg("shape").none() = nb::none(),
            nb::sig(
                "def array(self, dtype: DTypeLike = 'u1', shape: int | Sequence[int] | None = None) -> NDArray[Any]"),
            "A read-only numpy array of the messages; nothing is copied.\n\n"
            "One number of `shape` may be -1. MisuseError when dtype and shape do not fit the batch, or when it has\n"
            "several messages with sizes of their own.")
        .def(
            "copy",
            [](const Batch& b) {
                b.check();
                return nb::bytes(b.view().body, b.header().body_bytes);
            },
            "The body as bytes of their own.")
        .def(
            "__enter__",
            [](nb::handle_t<Batch> self) {
                batch_of(self)->check();
                return nb::borrow(self);
            },
            nb::sig("def __enter__(self) -> Batch"))
        .def(
            "__exit__", [](Batch& b, nb::handle, nb::handle, nb::handle) { b.let_go(); }, nb::arg("kind").none(),
            nb::arg("error").none(), nb::arg("traceback").none(),
            nb::sig("def __exit__(self, kind: object, error: object, traceback: object) -> None"))
        .def("__repr__", [](const Batch& b) {
            return "<Batch ticket=" + std::to_string(b.view().ticket) + ", publisher " +
                   std::to_string(b.header().publisher_id) + " seq " + std::to_string(b.header().seq) + ", " +
                   std::to_string(b.header().messages) + " messages, " + std::to_string(b.header().payload_bytes) +
                   " bytes" + (b.released() ? ", released>" : ">");
        });
    nb::class_<Messages>(m, "Messages", nb::type_slots(messages_slots), "Iterator over the messages of a batch.")
        .def(
            "__iter__", [](nb::handle_t<Messages> self) { return nb::borrow(self); },
            nb::sig("def __iter__(self) -> Messages"))
        .def("__length_hint__", &Messages::left);
}

}  // namespace embar

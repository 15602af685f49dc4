// PublisherCore for Python.
//
// `publish` is a METH_O method of the type, not a nanobind function: it is called once per message, and
// nothing but the copy should be paid for.
#include "publisher_core.hpp"

namespace embar {
namespace {

// Does a format (PEP 3118) have object pointers in it? Field names stand between colons.
bool has_objects(const char* format) noexcept {
    bool name = false;
    for (; *format; ++format) {
        if (*format == ':') name = !name;
        if (*format == 'O' && !name) return true;
    }
    return false;
}

// A buffer of message bytes: contiguous, and of plain values.
class MessageBuffer {
public:
    MessageBuffer(nb::handle object, const char* expected) {
        try {
            get_buffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT);
        } catch (nb::python_error&) {
            PublisherCore::raise_buffer(object, expected);
        }
        if (view.format && has_objects(view.format)) {
            release_buffer(view);
            PublisherCore::raise_buffer(object, expected);
        }
    }
    ~MessageBuffer() { release_buffer(view); }
    MessageBuffer(const MessageBuffer&) = delete;
    MessageBuffer& operator=(const MessageBuffer&) = delete;
    Py_buffer view{};
};

void publish_many(PublisherCore& p, nb::handle messages, std::optional<u64> message_size) {
    static constexpr const char* kExpected =
        "a C-contiguous 2-D array of one message per row, or a buffer and message_size";
    MessageBuffer m(messages, kExpected);
    const auto bytes = static_cast<u64>(m.view.len);
    if (message_size && m.view.ndim == 2 && m.view.shape[0] &&
        *message_size != bytes / static_cast<u64>(m.view.shape[0]))
        PublisherCore::raise_buffer(messages, "a 2-D array whose rows have message_size bytes");
    u64 size = message_size.value_or(0);
    if (!message_size) {
        if (m.view.ndim == 2)
            size = static_cast<u64>(m.view.shape[1] * m.view.itemsize);
        else if (p.core.options().message_size)
            size = p.core.options().message_size;
        else
            PublisherCore::raise_buffer(messages, kExpected);
    }
    if (p.core.state() != Status::Ok) p.raise(p.core.state());
    if (bytes == 0 && m.view.ndim == 2 && m.view.shape[0] == 0) return;  // no messages
    if (size == 0) p.raise(Status::Empty);
    if (bytes % size) PublisherCore::raise_buffer(messages, "a buffer whose size is a multiple of message_size");
    const auto* data = static_cast<const char*>(m.view.buf);
    const u64 rows = bytes / size;
    u64 sent = 0;
    PublisherCore::Guard guard(p);
    const auto step = [&] {
        u64 done;
        const Status s = p.core.append_block(data + sent * size, rows - sent, size, done);
        sent += done;
        return s;
    };
    // Small copies are shorter than giving the GIL away and getting it back.
    static constexpr u64 kCopyUnderGil = 64 * 1024;
    try {
        if (bytes <= kCopyUnderGil) {
            p.run(step, size);
        } else {
            p.run(
                [&] {
                    Unlocked unlocked;
                    return step();
                },
                size);
        }
    } catch (nb::python_error& e) {
        e.value().attr("appended") = sent;  // so that the caller can go on from there
        throw;
    }
}

// --- publish, the short way -------------------------------------------------------------------------

const char* bytes_data(PyObject* bytes, u64& n) noexcept {
#if defined(Py_LIMITED_API)
    char* data = nullptr;
    Py_ssize_t size = 0;
    PyBytes_AsStringAndSize(bytes, &data, &size);  // cannot fail: the caller has checked the type
    n = static_cast<u64>(size);
    return data;
#else
    n = static_cast<u64>(PyBytes_GET_SIZE(bytes));
    return PyBytes_AS_STRING(bytes);
#endif
}

// Everything but the common case: another type, no slot, an error, a lock that is held.
[[gnu::noinline]] PyObject* publish_long_way(PublisherCore& p, PyObject* message) noexcept {
    try {
        if (PyBytes_CheckExact(message)) {
            u64 n;
            const char* data = bytes_data(message, n);
            p.publish(data, n);
        } else {
            MessageBuffer m(message, "bytes, or a C-contiguous buffer (bytearray, memoryview, numpy array)");
            p.publish(static_cast<const char*>(m.view.buf), static_cast<u64>(m.view.len));
        }
        Py_RETURN_NONE;
    } catch (nb::python_error& e) {
        e.restore();
    } catch (const std::exception& e) {
        PyErr_SetString(PyExc_RuntimeError, e.what());
    }
    return nullptr;
}

PyObject* publish_method(PyObject* self, PyObject* message) noexcept {
    if (!nb::inst_ready(self)) [[unlikely]] {
        PyErr_SetString(PyExc_TypeError, "the publisher was never initialised");
        return nullptr;
    }
    auto& p = *nb::inst_ptr<PublisherCore>(self);
    if (PyBytes_CheckExact(message) && p.core.lock.try_lock()) [[likely]] {
        u64 n;
        const char* data = bytes_data(message, n);
        const Status s = p.core.append(data, n);
        p.core.lock.unlock();
        if (s == Status::Ok) [[likely]]
            Py_RETURN_NONE;
    }
    return publish_long_way(p, message);
}

PyMethodDef publisher_methods[] = {
    {"publish", publish_method, METH_O,
     "publish($self, message, /)\n--\n\nAppends one message to the open batch; commits the batch when it is full."},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot publisher_slots[] = {{Py_tp_methods, publisher_methods}, {0, nullptr}};

}  // namespace

void bind_publisher(nb::module_& m) {
    nb::class_<PublisherCore>(m, "PublisherCore", nb::type_slots(publisher_slots), "One publisher on one mapped ring.")
        .def(nb::init<nb::object, nb::handle, u32, int, u64, u64, u64, u64, u32, u32, double, int, u32, int, double,
                      unsigned, std::optional<double>, double>(),
             nb::arg("context"), nb::arg("buffer"), nb::arg("index"), nb::arg("lock_fd"), nb::arg("publisher_id"),
             nb::arg("incarnation"), nb::arg("message_size"), nb::arg("batch_bytes"), nb::arg("quota"), nb::arg("ack"),
             nb::arg("linger_ms"), nb::arg("copy"), nb::arg("sample_every"), nb::arg("wait_mode"), nb::arg("spin_us"),
             nb::arg("cpus"), nb::arg("timeout").none(), nb::arg("restart_timeout") = 0.0,
             nb::sig("def __init__(self, context: Any, buffer: Buffer, index: int, lock_fd: int, publisher_id: int, "
                     "incarnation: int, message_size: int, batch_bytes: int, quota: int, ack: int, "
                     "linger_ms: float, copy: int, sample_every: int, wait_mode: int, spin_us: float, "
                     "cpus: int, timeout: float | None, restart_timeout: float = 0.0) -> None"))
        .def(
            "publish_many", &publish_many, nb::arg("messages").none(), nb::arg("message_size").none() = nb::none(),
            nb::sig("def publish_many(self, messages: Buffer | NDArray[Any], message_size: int | None = None) -> None"),
            "Appends one message per row of a 2-D array, or per message_size bytes of a buffer.")
        .def("flush", &PublisherCore::flush, "Commits the open batch: the seq of the last committed batch (0: none).")
        .def("wait_acked", &PublisherCore::wait_acked, nb::arg("timeout").none() = nb::none(),
             nb::arg("seq").none() = nb::none(), "Waits until batch seq (all so far) is in the log.")
        .def("wait", &PublisherCore::wait, nb::arg("space"), nb::arg("seq").none(), nb::arg("timeout").none(),
             "Waits until a call that was refused with WouldWait is worth another try (True): there may be a slot\n"
             "(`space`), batch `seq` is in the log, or the call would raise. False at the timeout, or by interrupt().")
        .def("interrupt", &PublisherCore::interrupt, "Ends a wait() of another thread, or else the next one.")
        .def_rw("blocking", &PublisherCore::blocking_, "False: calls that would have to wait raise WouldWait.")
        .def("drop_reservation", &PublisherCore::drop_reservation,
             "Drops the open reservation, if there is one. BufferError while a view of it is alive.")
        .def("begin_close", &PublisherCore::begin_close,
             "Refuses messages, as when it is closed: flush() and close(), which shall follow, wait for nobody long.")
        .def("close", &PublisherCore::close,
             "Gives the row back; False: that was done before. Flush first. When it raises, the publisher is open.")
        .def("after_fork_in_child", &PublisherCore::after_fork_in_child, "Makes this object raise in a forked child.")
        .def_prop_ro(
            "context", [](const PublisherCore& p) -> nb::object { return p.context_; },
            nb::sig("def context(self) -> Any"))
        .def_prop_ro("committed_seq", [](const PublisherCore& p) { return p.core.committed_seq(); })
        .def_prop_ro("accepted_seq", [](const PublisherCore& p) { return p.core.accepted_seq(); })
        .def_prop_ro("in_flight", [](const PublisherCore& p) { return p.core.in_flight_seen(); })
        .def_prop_ro("open_messages",
                     [](PublisherCore& p) {
                         PublisherCore::Guard guard(p, true);
                         return p.core.open_messages();
                     })
        .def_prop_ro("index", [](const PublisherCore& p) { return p.core.index(); })
        .def_prop_ro("message_size", [](const PublisherCore& p) { return p.core.options().message_size; })
        .def_prop_ro("batch_bytes", [](const PublisherCore& p) { return p.core.options().batch_bytes; })
        .def_prop_ro("quota", [](const PublisherCore& p) { return p.core.quota(); })
        .def_prop_ro("state", &PublisherCore::state, "'ok', 'closed', 'forked' or 'corrupt'.")
        .def_prop_ro("peer", &PublisherCore::peer, "'ok', 'broker_stopped', 'broker_gone' or 'faulted'.");
}

}  // namespace embar

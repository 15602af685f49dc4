// PublisherCore and Reservation: publisher.hpp for Python.
//
// `publish` is a METH_O method of the type, not a nanobind function: it is called once per message, and
// nothing but the copy should be paid for. Errors are explained in Python (embar_shm/diagnose.py).
#include "bindings.hpp"
#include "publisher.hpp"

namespace embar {
namespace {

const char* name(Status s) {
    switch (s) {
        case Status::Ok: return "ok";
        case Status::NeedSlot: return "need_slot";
        case Status::Empty: return "empty";
        case Status::TooLarge: return "too_large";
        case Status::WrongSize: return "wrong_size";
        case Status::Closed: return "closed";
        case Status::Forked: return "forked";
        case Status::InUse: return "in_use";
        case Status::Reserved: return "reserved";
        case Status::NotReserved: return "not_reserved";
        case Status::BrokerStopped: return "broker_stopped";
        case Status::BrokerGone: return "broker_gone";
        case Status::Faulted: return "faulted";
        case Status::Corrupt: return "corrupt";
    }
    return "?";
}

class PublisherCore {
public:
    // `context` explains errors: embar_shm.segment.Segment. It must not refer back to this object.
    PublisherCore(nb::object context, nb::handle buffer, u32 index, int lock_fd, u64 publisher_id, u64 incarnation,
                  u64 message_size, u64 batch_bytes, u32 quota, u32 ack, double linger_ms, int copy, u32 sample_every,
                  int wait_mode, double spin_us, unsigned cpus, std::optional<double> timeout)
        : context_(std::move(context)), buffer_(buffer, true), timeout_(timeout),
          core(checked(buffer_, index, batch_bytes, message_size, quota), index, lock_fd,
               options(publisher_id, incarnation, message_size, batch_bytes, quota, ack, linger_ms, copy, sample_every),
               spin_options(wait_mode, spin_us, cpus)) {}

    // Throws the Python error for `status`; `size` is the message or batch number it is about.
    [[noreturn]] void raise(Status status, u64 size = 0) {
        nb::object explain = nb::module_::import_("embar_shm.diagnose").attr("publisher_error");
        nb::object error = explain(nb::cast(this, nb::rv_policy::reference), name(status), size);
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
        throw nb::python_error();
    }
    [[noreturn]] void raise_timeout(const char* what, u64 seq, double waited) {
        nb::object explain = nb::module_::import_("embar_shm.diagnose").attr("publisher_timeout");
        nb::object error = explain(nb::cast(this, nb::rv_policy::reference), what, seq, waited);
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
        throw nb::python_error();
    }
    [[noreturn]] static void raise_buffer(nb::handle object, const char* expected) {
        PyErr_Clear();
        nb::object explain = nb::module_::import_("embar_shm.diagnose").attr("buffer_error");
        nb::object error = explain(object, expected);
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
        throw nb::python_error();
    }

    // Holds the publisher's lock. Waits for another thread without the GIL.
    class Guard {
    public:
        explicit Guard(PublisherCore& p) : p_(p) {
            if (p.core.lock.try_lock()) [[likely]] {
                p.owner_ = PyThread_get_thread_ident();
                return;
            }
            if (p.owner_ == PyThread_get_thread_ident()) p.raise(Status::InUse);  // from a signal handler
            const u64 begin = now_ns(), deadline = deadline_after(p.timeout_);
            while (!p.core.lock.try_lock()) {
                if (now_ns() >= deadline) p.raise_timeout("lock", 0, static_cast<double>(now_ns() - begin) / 1e9);
                {
                    nb::gil_scoped_release unlocked;
                    const timespec pause{0, 100'000};
                    nanosleep(&pause, nullptr);
                }
                check_signals();
            }
            p.owner_ = PyThread_get_thread_ident();
        }
        ~Guard() {
            p_.owner_ = 0;
            p_.core.lock.unlock();
        }
        Guard(const Guard&) = delete;
        Guard& operator=(const Guard&) = delete;

    private:
        PublisherCore& p_;
    };

    // Runs a step until it needs no slot; waits in between. Under the lock.
    template <class Step>
    void run(Step&& step, u64 size) {
        Status s = step();
        if (s == Status::Ok) [[likely]]
            return;
        if (s == Status::Reserved && abandoned_ && !exports_) {
            core.finish_reservation(false);
            abandoned_ = false;
            s = step();
        }
        u64 begin = now_ns(), deadline = deadline_after(timeout_), seq = core.committed_seq();
        while (s == Status::NeedSlot) {
            if (core.committed_seq() != seq) {  // a long call gets on: the timeout is for standing still
                seq = core.committed_seq();
                begin = now_ns(), deadline = deadline_after(timeout_);
            }
            Wait w;
            {
                nb::gil_scoped_release unlocked;
                w = core.wait_space(std::min(deadline, now_ns() + kSliceNs));
            }
            check_signals();
            s = step();
            if (s != Status::NeedSlot || w == Wait::Ready) continue;
            if (const Status peer = core.peer_status(); peer != Status::Ok) raise(peer);
            if (now_ns() >= deadline) raise_timeout("space", 0, static_cast<double>(now_ns() - begin) / 1e9);
        }
        if (s != Status::Ok) raise(s, size);
    }

    void publish(const char* data, u64 n) {
        Guard guard(*this);
        run([&] { return core.append(data, n); }, n);
    }
    void publish_many(nb::handle messages, std::optional<u64> message_size);
    u64 flush() {
        Guard guard(*this);
        run([&] { return core.flush(); }, 0);
        return core.committed_seq();
    }
    void wait_acked(std::optional<double> timeout, std::optional<u64> seq) {
        if (!seq) seq = flush();
        if (core.state() != Status::Ok) raise(core.state());
        const u64 begin = now_ns(), deadline = deadline_after(timeout ? timeout : timeout_);
        for (;;) {
            Wait w;
            {
                nb::gil_scoped_release unlocked;
                w = core.wait_acked(*seq, std::min(deadline, now_ns() + kSliceNs));
            }
            if (acked(*seq)) break;
            check_signals();
            // The broker may have accepted the batch as its last act: look once more after its end.
            if (const Status peer = core.peer_status(); peer != Status::Ok) {
                if (acked(*seq)) break;
                raise(peer);
            }
            if (w != Wait::Ready && now_ns() >= deadline)
                raise_timeout("ack", *seq, static_cast<double>(now_ns() - begin) / 1e9);
        }
        core.record_ack_wait(now_ns() - begin);
    }
    // Throws when another thread has closed the publisher: the row may be somebody else's by now.
    bool acked(u64 seq) {
        const bool found = core.accepted_seq() >= seq;
        if (core.state() != Status::Ok) raise(core.state());
        return found;
    }
    void close() {
        Guard guard(*this);
        if (core.has_reservation()) {
            if (exports_) throw nb::buffer_error(kViewAlive);
            core.finish_reservation(false);
        }
        core.close();
    }
    std::string state() const { return name(core.state()); }
    std::string peer() { return name(core.peer_status()); }

    static constexpr const char* kViewAlive =
        "a view or array of the reserved memory is still alive: it would change a batch that is committed. "
        "Delete it (del array) before the reservation ends; this message is dropped";

    nb::object context_;
    HeldBuffer buffer_;
    std::optional<double> timeout_;
    u64 exports_ = 0;  // live buffers of the open reservation
    u64 reservations_ = 0;
    std::atomic<unsigned long> owner_{0};  // the thread in a call that may run signal handlers
    bool abandoned_ = false;  // it never ended, or could not while views were alive: dropped when they are gone
    Publisher core;

private:
    static Ring checked(const HeldBuffer& b, u32 index, u64 batch_bytes, u64 message_size, u32 quota) {
        const Ring ring = ring_in(b);
        if (index >= ring.geometry().max_publishers) throw nb::index_error("no such row in the publishers table");
        if (batch_bytes < 16 || batch_bytes > ring.geometry().slot_bytes)
            throw nb::value_error("batch_bytes must be 16 bytes to the size of a slot");
        if (message_size > batch_bytes) throw nb::value_error("message_size is larger than batch_bytes");
        if (quota < 1) throw nb::value_error("quota must be at least 1");
        return ring;
    }
    static PublisherOptions options(u64 id, u64 incarnation, u64 message_size, u64 batch_bytes, u32 quota, u32 ack,
                                    double linger_ms, int copy, u32 sample_every) {
        if (copy < 0 || copy > 2) throw nb::value_error("copy must be 0 (auto), 1 (plain) or 2 (nontemporal)");
        PublisherOptions o;
        o.publisher_id = id;
        o.incarnation = incarnation;
        o.message_size = message_size;
        o.batch_bytes = batch_bytes;
        o.quota = quota;
        o.ack = ack;
        o.linger_ns = static_cast<u64>(std::clamp(linger_ms, 0.0, 1e9) * 1e6);
        o.copy = static_cast<CopyMode>(copy);
        o.sample_every = sample_every;
#if !defined(Py_GIL_DISABLED)
        o.turns = true;
#endif
        return o;
    }
};

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
        if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0)
            PublisherCore::raise_buffer(object, expected);
        if (view.format && has_objects(view.format)) {
            PyBuffer_Release(&view);
            PublisherCore::raise_buffer(object, expected);
        }
    }
    ~MessageBuffer() { PyBuffer_Release(&view); }
    MessageBuffer(const MessageBuffer&) = delete;
    MessageBuffer& operator=(const MessageBuffer&) = delete;
    Py_buffer view{};
};

void PublisherCore::publish_many(nb::handle messages, std::optional<u64> message_size) {
    static constexpr const char* kExpected =
        "a C-contiguous 2-D array of one message per row, or a buffer and message_size";
    MessageBuffer m(messages, kExpected);
    const auto bytes = static_cast<u64>(m.view.len);
    if (message_size && m.view.ndim == 2 && m.view.shape[0] &&
        *message_size != bytes / static_cast<u64>(m.view.shape[0]))
        raise_buffer(messages, "a 2-D array whose rows have message_size bytes");
    u64 size = message_size.value_or(0);
    if (!message_size) {
        if (m.view.ndim == 2)
            size = static_cast<u64>(m.view.shape[1] * m.view.itemsize);
        else if (core.options().message_size)
            size = core.options().message_size;
        else
            raise_buffer(messages, kExpected);
    }
    if (core.state() != Status::Ok) raise(core.state());
    if (bytes == 0 && m.view.ndim == 2 && m.view.shape[0] == 0) return;  // no messages
    if (size == 0) raise(Status::Empty);
    if (bytes % size) raise_buffer(messages, "a buffer whose size is a multiple of message_size");
    const auto* data = static_cast<const char*>(m.view.buf);
    const u64 rows = bytes / size;
    u64 sent = 0;
    Guard guard(*this);
    const auto step = [&] {
        u64 done;
        const Status s = core.append_block(data + sent * size, rows - sent, size, done);
        sent += done;
        return s;
    };
    // Small copies are shorter than giving the GIL away and getting it back.
    static constexpr u64 kCopyUnderGil = 64 * 1024;
    try {
        if (bytes <= kCopyUnderGil) {
            run(step, size);
        } else {
            run(
                [&] {
                    nb::gil_scoped_release unlocked;
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

// --- reservations -----------------------------------------------------------------------------------

class Reservation {
public:
    Reservation(nb::object publisher, u64 nbytes) : owner_(std::move(publisher)), p_(nb::cast<PublisherCore*>(owner_)) {
        PublisherCore::Guard guard(*p_);
        p_->run([&] { return p_->core.reserve(nbytes, place_); }, nbytes);
        size_ = nbytes;
        number_ = ++p_->reservations_;
        p_->exports_ = 0;
        p_->abandoned_ = false;
    }
    // Only when nothing refers to it any more, no view either: an open one can be dropped.
    ~Reservation() {
        if (open()) p_->abandoned_ = true;
    }
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;
    bool open() const { return p_->core.has_reservation() && number_ == p_->reservations_; }
    void end(bool keep) {
        PublisherCore::Guard guard(*p_);
        if (p_->core.state() == Status::Forked || p_->core.state() == Status::Closed) p_->raise(p_->core.state());
        if (!open()) p_->raise(Status::NotReserved);
        if (p_->exports_) {
            p_->abandoned_ = true;
            throw nb::buffer_error(PublisherCore::kViewAlive);
        }
        if (const Status s = p_->core.finish_reservation(keep); s != Status::Ok) p_->raise(s);
    }
    int get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
        if (!open()) {
            PyErr_SetString(PyExc_BufferError, "the reservation has ended");
            view->obj = nullptr;
            return -1;
        }
        if (PyBuffer_FillInfo(view, self, place_, static_cast<Py_ssize_t>(size_), 0, flags) != 0) return -1;
        ++p_->exports_;
        return 0;
    }
    // A buffer can only be released while its reservation is open: end() refuses otherwise.
    void release_buffer() noexcept {
        if (p_->exports_) --p_->exports_;
    }
    u64 size() const { return size_; }

private:
    nb::object owner_;
    PublisherCore* p_;
    char* place_ = nullptr;
    u64 size_ = 0;
    u64 number_ = 0;
};

int reservation_get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
    if (!nb::inst_ready(self)) {
        PyErr_SetString(PyExc_BufferError, "the reservation was never initialised");
        view->obj = nullptr;
        return -1;
    }
    return nb::inst_ptr<Reservation>(self)->get_buffer(self, view, flags);
}
void reservation_release_buffer(PyObject* self, Py_buffer*) noexcept {
    nb::inst_ptr<Reservation>(self)->release_buffer();
}
PyType_Slot reservation_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(reservation_get_buffer)},
                                   {Py_bf_releasebuffer, reinterpret_cast<void*>(reservation_release_buffer)},
                                   {0, nullptr}};

}  // namespace

void bind_publisher(nb::module_& m) {
    nb::class_<PublisherCore>(m, "PublisherCore", nb::type_slots(publisher_slots), "One publisher on one mapped ring.")
        .def(nb::init<nb::object, nb::handle, u32, int, u64, u64, u64, u64, u32, u32, double, int, u32, int, double,
                      unsigned, std::optional<double>>(),
             nb::arg("context"), nb::arg("buffer"), nb::arg("index"), nb::arg("lock_fd"), nb::arg("publisher_id"),
             nb::arg("incarnation"), nb::arg("message_size"), nb::arg("batch_bytes"), nb::arg("quota"), nb::arg("ack"),
             nb::arg("linger_ms"), nb::arg("copy"), nb::arg("sample_every"), nb::arg("wait_mode"), nb::arg("spin_us"),
             nb::arg("cpus"), nb::arg("timeout").none(),
             nb::sig("def __init__(self, context: Any, buffer: Buffer, index: int, lock_fd: int, publisher_id: int, "
                     "incarnation: int, message_size: int, batch_bytes: int, quota: int, ack: int, "
                     "linger_ms: float, copy: int, sample_every: int, wait_mode: int, spin_us: float, "
                     "cpus: int, timeout: float | None) -> None"))
        .def(
            "publish_many", &PublisherCore::publish_many, nb::arg("messages").none(),
            nb::arg("message_size").none() = nb::none(),
            nb::sig("def publish_many(self, messages: Buffer | NDArray[Any], message_size: int | None = None) -> None"),
            "Appends one message per row of a 2-D array, or per message_size bytes of a buffer.")
        .def("flush", &PublisherCore::flush, "Commits the open batch: the seq of the last committed batch (0: none).")
        .def("wait_acked", &PublisherCore::wait_acked, nb::arg("timeout").none() = nb::none(),
             nb::arg("seq").none() = nb::none(), "Waits until batch seq (all so far) is in the log.")
        .def("close", &PublisherCore::close, "Gives the row back. Flush first.")
        .def(
            "after_fork_in_child", [](PublisherCore& p) { p.core.after_fork_in_child(); },
            "Makes this object raise in a forked child.")
        .def_prop_ro(
            "context", [](const PublisherCore& p) { return p.context_; }, nb::sig("def context(self) -> Any"))
        .def_prop_ro("committed_seq", [](const PublisherCore& p) { return p.core.committed_seq(); })
        .def_prop_ro("accepted_seq", [](const PublisherCore& p) { return p.core.accepted_seq(); })
        .def_prop_ro("in_flight", [](const PublisherCore& p) { return p.core.in_flight_seen(); })
        .def_prop_ro("has_reservation", [](const PublisherCore& p) { return p.core.has_reservation(); })
        .def_prop_ro("open_messages",
                     [](PublisherCore& p) {
                         PublisherCore::Guard guard(p);
                         return p.core.open_messages();
                     })
        .def_prop_ro("index", [](const PublisherCore& p) { return p.core.index(); })
        .def_prop_ro("message_size", [](const PublisherCore& p) { return p.core.options().message_size; })
        .def_prop_ro("batch_bytes", [](const PublisherCore& p) { return p.core.options().batch_bytes; })
        .def_prop_ro("quota", [](const PublisherCore& p) { return p.core.options().quota; })
        .def_prop_ro("state", &PublisherCore::state, "'ok', 'closed', 'forked' or 'corrupt'.")
        .def_prop_ro("peer", &PublisherCore::peer, "'ok', 'broker_stopped', 'broker_gone' or 'faulted'.");

    nb::class_<Reservation>(m, "Reservation", nb::type_slots(reservation_slots),
                            "Writable memory for the next message, in the slot itself. A context manager.")
        .def(nb::init<nb::object, u64>(), nb::arg("publisher"), nb::arg("nbytes"),
             nb::sig("def __init__(self, publisher: PublisherCore, nbytes: int) -> None"))
        .def(
            "commit", [](Reservation& r) { r.end(true); }, "Appends what was written as a message.")
        .def(
            "abort", [](Reservation& r) { r.end(false); }, "Gives the memory back; nothing is appended.")
        .def_prop_ro("is_open", &Reservation::open)
        .def("__len__", &Reservation::size);
}

}  // namespace embar

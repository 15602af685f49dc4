// Reservation: writable memory for the next message, as a Python buffer.
#include "publisher_core.hpp"

namespace embar {
namespace {

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
        PublisherCore::Guard guard(*p_, true);
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
    HeldObject owner_;
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

void bind_reservation(nb::module_& m) {
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

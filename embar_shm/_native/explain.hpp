// Errors of a native object, explained in Python (embar_shm/diagnose.py) and raised from here.
#pragma once

#include "bindings.hpp"
#include "publisher_row.hpp"

namespace embar {

inline const char* name(Status s) {
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
        case Status::Quarantined: return "quarantined";
        case Status::Faulted: return "faulted";
        case Status::Corrupt: return "corrupt";
    }
    return "?";
}

[[noreturn]] inline void raise_object(const nb::object& error) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
    throw nb::python_error();
}

// The error of `self`, a PublisherCore or ReceiverCore, for a status; `size` is the message or batch it is about.
template <class Core>
nb::object status_error(Core* self, const char* status, u64 size) {
    return call_python("embar_shm.diagnose", "publisher_error", nb::cast(self, nb::rv_policy::reference), status, size);
}
template <class Core>
[[noreturn]] void raise_status(Core* self, Status status, u64 size) {
    raise_object(status_error(self, name(status), size));
}

}  // namespace embar

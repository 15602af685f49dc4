// What the binding files share: buffers held by native objects, signals, times.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "gil.hpp"
#include "ring.hpp"
#include "waiting.hpp"

namespace embar {

namespace nb = nanobind;

// PyObject_GetBuffer() and PyBuffer_Release(): both may call Python (__buffer__, unmapping an mmap) and drop the GIL.
inline void get_buffer(nb::handle object, Py_buffer& view, int flags) {
    if (stay_if_python_ends([&] { return PyObject_GetBuffer(object.ptr(), &view, flags); }) != 0)
        throw nb::python_error();
}
inline void release_buffer(Py_buffer& view) noexcept {
    stay_if_python_ends([&] { PyBuffer_Release(&view); });
}

// A Python buffer (an mmap, an array) that stays mapped for as long as this object lives.
class HeldBuffer {
public:
    HeldBuffer(nb::handle object, bool writable) {
        get_buffer(object, view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE);
    }
    ~HeldBuffer() { release_buffer(view_); }
    HeldBuffer(const HeldBuffer&) = delete;
    HeldBuffer& operator=(const HeldBuffer&) = delete;
    char* data() const noexcept { return static_cast<char*>(view_.buf); }
    std::size_t size() const noexcept { return static_cast<std::size_t>(view_.len); }

private:
    Py_buffer view_{};
};

// A Python object that a native one keeps. Whatever goes with it may drop the GIL.
class HeldObject : public nb::object {
public:
    explicit HeldObject(nb::object&& object) noexcept : nb::object(std::move(object)) {}
    ~HeldObject() {
        stay_if_python_ends([gone = release().ptr()] { Py_XDECREF(gone); });  // nanobind's own is noexcept
    }
    HeldObject(const HeldObject&) = delete;
    HeldObject& operator=(const HeldObject&) = delete;
};

// The ring in a buffer; throws ValueError when there is none. Without `with_slots` nobody looks into the slots.
inline Ring ring_in(const HeldBuffer& buffer, bool with_slots = true) {
    Geometry geometry;
    if (const char* why = Ring::unusable(buffer.data(), buffer.size(), geometry, with_slots))
        throw nb::value_error(why);
    return Ring(buffer.data(), geometry);
}

// CLOCK_MONOTONIC ns of a moment `seconds` from now; none: never.
inline std::uint64_t deadline_after(std::optional<double> seconds) noexcept {
    if (!seconds || std::isnan(*seconds) || *seconds > 1e9) return ~0ULL;
    return now_ns() + static_cast<std::uint64_t>(std::max(*seconds, 0.0) * 1e9);
}

inline std::uint64_t nanoseconds(double seconds) noexcept {
    return static_cast<std::uint64_t>(std::clamp(seconds, 0.0, 1e9) * 1e9);
}

// Lets Python run signal handlers, and from 3.12 on its garbage collection in any thread; throws what they raise.
inline void check_signals() {
    if (stay_if_python_ends([] { return PyErr_CheckSignals(); }) != 0) throw nb::python_error();
}

// For who waits for another thread of this process, and looks again: 100 us, without the GIL.
inline void nap() {
    Unlocked unlocked;
    const timespec pause{0, 100'000};
    nanosleep(&pause, nullptr);
}

inline SpinOptions spin_options(int wait_mode, double spin_us, unsigned cpus) {
    if (wait_mode < 0 || wait_mode > 2) throw nb::value_error("wait mode must be 0 (adaptive), 1 (spin) or 2 (block)");
    return {static_cast<WaitMode>(wait_mode), static_cast<std::uint64_t>(std::max(spin_us, 0.0) * 1e3), cpus};
}

// Calls a function of the package that is written in Python.
template <class... Arguments>
nb::object call_python(const char* module, const char* function, Arguments&&... arguments) {
    return stay_if_python_ends(
        [&] { return nb::object(nb::module_::import_(module).attr(function)(std::forward<Arguments>(arguments)...)); });
}

template <class T>
T value(const std::atomic<T>& word) {
    return word.load(std::memory_order_relaxed);  // statistics: any recent value
}

inline nb::dict as_dict(const Histogram& h) {
    nb::list buckets;
    for (std::size_t i = 0; i < Histogram::kBuckets; ++i)
        if (const u64 n = value(h.buckets[i])) buckets.append(nb::make_tuple(Histogram::upper_bound(i), n));
    nb::dict d;
    d["count"] = value(h.count);
    d["sum"] = value(h.sum);
    d["max"] = value(h.max);
    d["buckets"] = buckets;
    return d;
}

void bind_segment(nb::module_& m);
void bind_ring(nb::module_& m);
void bind_broker(nb::module_& m);
void bind_publisher(nb::module_& m);
void bind_reservation(nb::module_& m);
void bind_subscriber(nb::module_& m);
void bind_network(nb::module_& m);
void bind_feed(nb::module_& m);
void bind_ceiling(nb::module_& m);
void bind_yardsticks(nb::module_& m);
void bind_verify(nb::module_& m);
void bind_layout(nb::module_& m);

}  // namespace embar

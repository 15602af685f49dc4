// Giving the GIL away and taking it back, also in a daemon thread while the interpreter ends.
//
// A thread that takes the GIL when the interpreter is being finalized does not get it: CPython before 3.14 ends the
// thread with pthread_exit, which unwinds its stack (https://docs.python.org/3/c-api/init.html, "Cautions regarding
// runtime finalization"). The unwinding would run destructors that use Python objects without the GIL, and meets
// functions that are noexcept, which is std::terminate: the program that ended in good order is aborted. So whatever
// may take the GIL goes through `stay_if_python_ends`: there the thread stays until the process is gone, which is what
// CPython does itself from 3.14 on.
#pragma once

#include <cxxabi.h>
#include <nanobind/nanobind.h>
#include <unistd.h>

namespace embar {

// Calls `f`, which may take the GIL, and returns what it returns, throws what it throws.
template <class F>
decltype(auto) stay_if_python_ends(F&& f) {
    try {
        return f();
    } catch (abi::__forced_unwind&) {
        for (;;) pause();
    }
}

// While it lives, this thread is without the GIL.
class Unlocked {
public:
    Unlocked() noexcept : state_(PyEval_SaveThread()) { of_this_thread_ = state_; }
    ~Unlocked() {
        stay_if_python_ends([this] { PyEval_RestoreThread(state_); });
    }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

private:
    friend class LockedAgain;
    PyThreadState* state_;
    inline static thread_local PyThreadState* of_this_thread_ = nullptr;
};

// While it lives, this thread, which is Unlocked, has the GIL again. Not by PyGILState_Ensure(), which makes a new
// thread state when it finds none, also in an interpreter that is gone.
class LockedAgain {
public:
    LockedAgain() noexcept {
        stay_if_python_ends([] { PyEval_RestoreThread(Unlocked::of_this_thread_); });
    }
    ~LockedAgain() { Unlocked::of_this_thread_ = PyEval_SaveThread(); }
    LockedAgain(const LockedAgain&) = delete;
    LockedAgain& operator=(const LockedAgain&) = delete;
};

}  // namespace embar

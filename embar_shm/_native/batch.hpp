// Batch: one batch of the log as a Python object: a buffer of its body, its header's fields, its messages.
//
// A batch that is exported (memoryview, array) cannot be released, and its slot keeps its bytes; its views keep it
// alive. At the end of a with block it is let go: the last view gives the slot back. A batch nobody refers to any more
// releases itself.
#pragma once

#include <utility>

#include "subscriber_core.hpp"

namespace embar {

class Batch {
public:
    Batch(nb::object owner, SubscriberCore* subscriber, const Subscriber::View& view, std::unique_ptr<char[]> copy)
        : view_(view), owner_(std::move(owner)), subscriber_(subscriber), copied_(copy != nullptr),
          copy_(std::move(copy)) {}
    ~Batch() { end(); }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    const BatchHeader& header() const noexcept { return view_.header; }
    const Subscriber::View& view() const noexcept { return view_; }
    bool fixed() const noexcept { return header().format == static_cast<u16>(Format::Fixed); }
    bool released() const noexcept { return released_ || (!copied_ && subscriber_->is_closed()); }

    // Throws when the bytes may be another batch's by now.
    void check() const {
        if (released_) subscriber_->raise("released");
        if (released()) subscriber_->raise(subscriber_->is_forked() ? "forked" : "closed");
    }
    void release() {
        check();
        if (exports_)
            throw nb::buffer_error(
                "a view or array of this batch is still alive: it would change when the slot is used again. Delete it "
                "(del array) before release(); without release(), the batch ends with its last view");
        released_ = true;
        end();
    }
    // The same for who does not mind when: the last view gives the slot back.
    void let_go() noexcept {
        if (released()) return;
        released_ = true;
        if (!exports_) end();
    }

    // The part of the body that the next buffer is of; memoryviews of single messages are made this way.
    struct Window {
        const Batch* batch = nullptr;
        const char* data = nullptr;
        u64 bytes = 0;
    };
    static Window& window() noexcept {
        static thread_local Window w;
        return w;
    }
    // A read-only memoryview of `bytes` at `data` in the body, which keeps the batch alive. New reference, or null.
    PyObject* view_of(PyObject* self, const char* data, u64 bytes) const noexcept {
        const int collecting = PyGC_Disable();  // a finalizer that reads messages would use up the window
        window() = {this, data, bytes};
        PyObject* v = PyMemoryView_FromObject(self);
        window() = {};
        if (collecting) PyGC_Enable();
        return v;
    }
    int get_buffer(PyObject* self, Py_buffer* buffer, int flags) noexcept {
        const Window w = window().batch == this ? window() : Window{this, view_.body, header().body_bytes};
        window() = {};
        if (released() || (!copied_ && exports_ == 0 && !subscriber_->pin())) {
            PyErr_SetString(PyExc_BufferError, "the batch is released, or its subscriber closed");
            buffer->obj = nullptr;
            return -1;
        }
        if (PyBuffer_FillInfo(buffer, self, const_cast<char*>(w.data), static_cast<Py_ssize_t>(w.bytes), 1, flags) !=
            0) {
            if (!copied_ && exports_ == 0) subscriber_->unpin();
            buffer->obj = nullptr;
            return -1;
        }
        ++exports_;
        return 0;
    }
    void release_buffer() noexcept {
        if (--exports_ != 0) return;
        if (released_) end();
        if (!copied_) subscriber_->unpin();
    }

private:
    void end() noexcept {
        if (std::exchange(ended_, true)) return;
        if (copied_)
            subscriber_->give_spare(std::move(copy_));
        else
            subscriber_->pass(view_.place);
    }

    Subscriber::View view_;
    HeldObject owner_;
    SubscriberCore* subscriber_;
    const bool copied_;
    std::unique_ptr<char[]> copy_;
    std::atomic<u32> exports_{0};
    bool released_ = false;  // nobody gets another view
    bool ended_ = false;     // the slot is given back
};

// The messages of a batch, one memoryview after the other.
class Messages {
public:
    Messages(nb::object owner, Batch* batch) : owner_(std::move(owner)), batch_(batch) {}

    PyObject* next() {
        if (done_ == batch_->header().messages) return nullptr;
        batch_->check();
        const char* at = batch_->view().body + offset_;
        u64 bytes = batch_->header().message_size;
        if (!batch_->fixed()) {
            const u64 left = batch_->header().body_bytes - offset_;
            u32 length = 0;
            if (left >= kFrameHeader) std::memcpy(&length, at, sizeof length);  // the one copy
            if (length == 0 || framed_size(length) > left) damaged();
            bytes = length;
            at += kFrameHeader;
            offset_ += framed_size(length);
        } else {
            offset_ += bytes;
        }
        ++done_;
        PyObject* view = batch_->view_of(owner_.ptr(), at, bytes);
        if (!view) throw nb::python_error();
        return view;
    }
    u32 left() const noexcept { return batch_->header().messages - done_; }

private:
    [[noreturn]] void damaged() {
        raise_object(call_python("embar_shm.diagnose_subscriber", "bad_framing", owner_, done_, offset_));
    }

    HeldObject owner_;
    Batch* batch_;
    u64 offset_ = 0;
    u32 done_ = 0;
};

}  // namespace embar

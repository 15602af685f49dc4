// Puts explore.hpp in the place of std::atomic and of what else the threads of a ring share. To be included before the
// headers under test, and after every header of the standard library that they need.
#pragma once

#include "explore.hpp"

// The standard forbids additions to its namespace; here they stand in for what is there.
namespace std {

template <class T>
class weak_atomic {
    static_assert(sizeof(T) <= 8 && is_trivially_copyable_v<T>);

public:
    static constexpr bool is_always_lock_free = true;
    weak_atomic() noexcept = default;
    constexpr weak_atomic(T value) noexcept : value_(value) {}
    weak_atomic(const weak_atomic&) = delete;
    weak_atomic& operator=(const weak_atomic&) = delete;

    T load(memory_order order = memory_order_seq_cst, source_location at = source_location::current()) const noexcept {
        auto* x = modelled(at);
        return x ? from(x->load(self(), sizeof(T), raw(), order, site(at))) : value_;
    }
    void store(T value, memory_order order = memory_order_seq_cst,
               source_location at = source_location::current()) noexcept {
        if (auto* x = modelled(at))
            x->store(this, sizeof(T), raw(), raw(value), order, site(at));
        else
            value_ = value;
    }
    T exchange(T value, memory_order order = memory_order_seq_cst,
               source_location at = source_location::current()) noexcept {
        return update([value](T) { return value; }, order, at);
    }
    T fetch_add(T n, memory_order order = memory_order_seq_cst,
                source_location at = source_location::current()) noexcept {
        return update([n](T old) { return static_cast<T>(old + n); }, order, at);
    }
    T fetch_sub(T n, memory_order order = memory_order_seq_cst,
                source_location at = source_location::current()) noexcept {
        return update([n](T old) { return static_cast<T>(old - n); }, order, at);
    }
    T fetch_or(T n, memory_order order = memory_order_seq_cst,
               source_location at = source_location::current()) noexcept {
        return update([n](T old) { return static_cast<T>(old | n); }, order, at);
    }
    bool compare_exchange_strong(T& expected, T desired, memory_order success, memory_order failure,
                                 source_location at = source_location::current()) noexcept {
        if (auto* x = modelled(at)) {
            bool done = false;
            const std::uint64_t want = raw(expected);
            const std::uint64_t old = x->update(
                this, sizeof(T), raw(), [desired](std::uint64_t) { return raw(desired); }, &want, success, failure,
                site(at), done);
            expected = from(old);
            return done;
        }
        if (value_ == expected) {
            value_ = desired;
            return true;
        }
        expected = value_;
        return false;
    }
    bool compare_exchange_strong(T& expected, T desired, memory_order order = memory_order_seq_cst,
                                 source_location at = source_location::current()) noexcept {
        const memory_order failure = order == memory_order_acq_rel   ? memory_order_acquire
                                     : order == memory_order_release ? memory_order_relaxed
                                                                     : order;
        return compare_exchange_strong(expected, desired, order, failure, at);
    }

private:
    std::uint64_t raw() const noexcept { return raw(value_); }
    void* self() const noexcept { return const_cast<weak_atomic*>(this); }
    static std::uint64_t raw(T value) noexcept {
        std::uint64_t r = 0;
        __builtin_memcpy(&r, &value, sizeof value);
        return r;
    }
    static T from(std::uint64_t r) noexcept {
        T value;
        __builtin_memcpy(&value, &r, sizeof value);
        return value;
    }
    static weak::Site site(const source_location& at) noexcept {
        return {at.file_name(), at.function_name(), at.line(), at.column(), 0};
    }
    // Statistics have one writer and are read by people; the spin policy is a heuristic.
    weak::Explorer* modelled(const source_location& at) const noexcept {
        weak::Explorer* x = weak::Explorer::instance();
        if (!x || !x->modelled(this) || std::strstr(at.file_name(), "histogram.hpp") ||
            std::strstr(at.function_name(), "SpinPolicy"))
            return nullptr;
        return x;
    }
    template <class F>
    T update(F&& change, memory_order order, const source_location& at) noexcept {
        if (auto* x = modelled(at)) {
            bool done = false;
            return from(x->update(
                this, sizeof(T), raw(), [&](std::uint64_t old) { return raw(change(from(old))); }, nullptr, order,
                order, site(at), done));
        }
        const T old = value_;
        value_ = change(old);
        return old;
    }

    T value_;
};

inline void weak_atomic_thread_fence(memory_order order, source_location at = source_location::current()) noexcept {
    if (auto* x = weak::Explorer::instance())
        x->fence(order, {at.file_name(), at.function_name(), at.line(), at.column(), 0});
}

inline void* weak_memcpy(void* to, const void* from, size_t n) noexcept {
    auto* x = weak::Explorer::instance();
    if (x && x->modelled(from)) {
        x->read(to, from, n);
        return to;
    }
    if (x && x->modelled(to)) {
        x->write(to, from, n);
        return to;
    }
    return __builtin_memcpy(to, from, n);
}
inline void* weak_memset(void* to, int value, size_t n) noexcept {
    auto* x = weak::Explorer::instance();
    if (!x || !x->modelled(to)) return __builtin_memset(to, value, n);
    const std::vector<char> bytes(n, static_cast<char>(value));
    x->write(to, bytes.data(), n);
    return to;
}
inline char* weak_strncpy(char* to, const char* from, size_t n) noexcept {
    std::vector<char> bytes(n, 0);
    __builtin_memcpy(bytes.data(), from, std::min(n, __builtin_strlen(from)));
    weak_memcpy(to, bytes.data(), n);
    return to;
}

}  // namespace std

namespace weak {

// Lock bytes of the segment's file, by their offset: what the kernel holds for those that live.
inline std::uint64_t lock_bytes[4096];

}  // namespace weak

template <class... Rest>
long weak_syscall(long number, std::uint32_t* word, int what, std::uint32_t value, Rest...) noexcept {
    auto* x = weak::Explorer::instance();
    const std::uint64_t raw = *word;
    if (number != SYS_futex || !x) std::abort();
    if (x->running() < 0) {  // before the threads run nobody sleeps, and nobody must
        if (what != FUTEX_WAKE) std::abort();
        return 0;
    }
    if (what == FUTEX_WAKE) {
        x->wake(word, sizeof *word, raw);
        return 0;
    }
    if (x->sleep(word, sizeof *word, raw, value)) return 0;
    errno = EAGAIN;
    return -1;
}
// Time stands still: nothing ever runs out, and who is not woken sleeps to the end.
inline int weak_clock_gettime(int, timespec* t) noexcept {
    t->tv_sec = 1000;
    t->tv_nsec = 0;
    return 0;
}
// The kernel hands a byte over in order: what its holder did is before what its next holder does.
inline int weak_fcntl(int, int command, struct flock* f) noexcept {
    auto* x = weak::Explorer::instance();
    std::uint64_t& byte = weak::lock_bytes[f->l_start];
    errno = EAGAIN;
    if (!x || x->running() < 0) {  // before the threads run
        return -1;                 // nobody is found dead
    }
    const weak::Site kernel{"the kernel", "fcntl", 0, 0, 0};
    if (command == F_OFD_GETLK) {
        if (!x->load(&byte, sizeof byte, byte, std::memory_order_acquire, kernel)) f->l_type = F_UNLCK;
        return 0;
    }
    if (f->l_type == F_UNLCK) {
        x->store(&byte, sizeof byte, byte, 0, std::memory_order_release, kernel);
        return 0;
    }
    const std::uint64_t free = 0;
    bool done = false;
    x->update(
        &byte, sizeof byte, byte, [](std::uint64_t) { return std::uint64_t{1}; }, &free, std::memory_order_acq_rel,
        std::memory_order_relaxed, kernel, done);
    return done ? 0 : -1;
}
// A process is gone: the kernel drops its locks.
inline void weak_death(std::uint64_t offset) noexcept {
    std::uint64_t& byte = weak::lock_bytes[offset];
    weak::Explorer::instance()->store(&byte, sizeof byte, byte, 0, std::memory_order_release,
                                      {"the kernel", "exit", 0, 0, 0});
}

#define atomic weak_atomic
#define atomic_thread_fence weak_atomic_thread_fence
#define memcpy weak_memcpy
#define memset weak_memset
#define strncpy weak_strncpy
#define syscall weak_syscall
#define clock_gettime weak_clock_gettime
#define fcntl weak_fcntl

// How old messages are: from the moment they were due to now.
#pragma once

#include <errno.h>
#include <time.h>

#include <memory>

#include "histogram.hpp"
#include "verify.hpp"
#include "waiting.hpp"

namespace embar {

class Delays {
public:
    Delays() { histogram_->reset(); }

    // A message that was due at `due_ns` is here. (Due later: clocks do not go backwards, so it was never late.)
    void record(std::uint64_t due_ns, std::uint64_t now) noexcept {
        histogram_->record(now > due_ns ? now - due_ns : 0);
    }

    // All messages of a batch, by their stamps.
    void record_batch(const char* body, std::size_t size, std::size_t count, std::uint64_t now) noexcept {
        for (std::size_t i = 0; i < count; ++i, body += size) {
            Stamp s;
            std::memcpy(&s, body, sizeof s);
            record(s.due_ns, now);
        }
    }
    const Histogram& histogram() const noexcept { return *histogram_; }

private:
    std::unique_ptr<Histogram> histogram_{new Histogram};
};

// Sleeps until `spin_ns` before the deadline, then spins. => false: a signal arrived before.
inline bool wait_until(std::uint64_t deadline_ns, std::uint64_t spin_ns) noexcept {
    std::uint64_t now = now_ns();
    if (deadline_ns > now && deadline_ns - now > spin_ns) {
        const std::uint64_t until = deadline_ns - spin_ns;
        const timespec t{static_cast<time_t>(until / 1'000'000'000ULL), static_cast<long>(until % 1'000'000'000ULL)};
        if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) == EINTR) return false;
    }
    while (now_ns() < deadline_ns) cpu_relax();
    return true;
}

}  // namespace embar

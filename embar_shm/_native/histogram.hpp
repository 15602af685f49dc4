// A log-linear histogram of nanoseconds in shared memory.
//
// Buckets: 0..31 exactly, then 16 equal buckets per power of two up to 2^40 ns (18 minutes), so a reported
// value is at most 1/16 above the true one. The scheme is HdrHistogram's (G. Tene) with one significant hex
// digit. One writer, any number of readers: the writer uses relaxed load + store, not a read-modify-write;
// a reader may see a sample in `count` before it sees it in its bucket, and must tolerate that.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace embar {

struct alignas(64) Histogram {
    static constexpr unsigned kSubBits = 4;
    static constexpr unsigned kMaxExponent = 40;
    static constexpr std::size_t kLinear = 2U << kSubBits;
    static constexpr std::size_t kBuckets = kLinear + (kMaxExponent - kSubBits - 1) * (1U << kSubBits);

    std::atomic<std::uint64_t> count;
    std::atomic<std::uint64_t> sum;
    std::atomic<std::uint64_t> max;
    std::atomic<std::uint64_t> buckets[kBuckets];

    static constexpr std::size_t index(std::uint64_t value) noexcept {
        if (value < kLinear) return static_cast<std::size_t>(value);
        const unsigned exponent = static_cast<unsigned>(std::bit_width(value)) - 1;
        if (exponent >= kMaxExponent) return kBuckets - 1;
        const std::uint64_t sub = (value >> (exponent - kSubBits)) & ((1U << kSubBits) - 1);
        return kLinear + (exponent - kSubBits - 1) * (1U << kSubBits) + static_cast<std::size_t>(sub);
    }

    // The largest value that falls into bucket i.
    static constexpr std::uint64_t upper_bound(std::size_t i) noexcept {
        if (i < kLinear) return i;
        const std::size_t k = i - kLinear;
        const unsigned exponent = static_cast<unsigned>(k >> kSubBits) + kSubBits + 1;
        const std::uint64_t sub = k & ((1U << kSubBits) - 1);
        return (((1ULL << kSubBits) + sub + 1) << (exponent - kSubBits)) - 1;
    }

    void record(std::uint64_t value) noexcept {
        add(count, 1);
        add(sum, value);
        if (value > max.load(std::memory_order_relaxed)) max.store(value, std::memory_order_relaxed);
        add(buckets[index(value)], 1);
    }

    // A counter with a single writer. Relaxed: readers only want a recent value.
    static void add(std::atomic<std::uint64_t>& counter, std::uint64_t n) noexcept {
        counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    }

    void reset() noexcept {
        count.store(0, std::memory_order_relaxed);
        sum.store(0, std::memory_order_relaxed);
        max.store(0, std::memory_order_relaxed);
        for (auto& b : buckets) b.store(0, std::memory_order_relaxed);
    }
};

static_assert(Histogram::index(31) == 31 && Histogram::index(32) == 32 && Histogram::index(33) == 32);
static_assert(Histogram::upper_bound(Histogram::index(32)) == 33 && Histogram::upper_bound(31) == 31);
static_assert(Histogram::index((1ULL << Histogram::kMaxExponent) - 1) == Histogram::kBuckets - 1);
static_assert(Histogram::upper_bound(Histogram::kBuckets - 1) == (1ULL << Histogram::kMaxExponent) - 1);

}  // namespace embar

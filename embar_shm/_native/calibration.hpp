// What taking a stage time costs here: reading the clock, and recording into a histogram.
#pragma once

#include <array>
#include <memory>

#include "histogram.hpp"
#include "waiting.hpp"

namespace embar {

struct SampleCosts {
    double clock_ns;
    double record_ns;
};

class Calibration {
public:
    // Takes some 5 ms.
    SampleCosts measure() noexcept {
        for (unsigned i = 0; i < kHistograms; ++i) histograms_[i].reset();
        const double clocks = median_ns([](unsigned) {
            const std::uint64_t begin = now_ns();
            return now_ns() - begin;
        });
        const double sample = median_ns([this](unsigned i) {
            const std::uint64_t begin = now_ns();
            histograms_[i * kStep % kHistograms].record(now_ns() - begin);
            return std::uint64_t{0};
        });
        return {clocks / 2, std::max(sample - clocks, 0.0)};
    }

private:
    static constexpr unsigned kBlocks = 501, kBlock = 64;
    // So many that they are not in the first-level cache: a run's are not either, copying pushes them out.
    static constexpr unsigned kHistograms = 512, kStep = 211;  // no common divisor: every one in turn

    // The median of blocks: one in which another process had the CPU does not count.
    template <class Step>
    static double median_ns(Step&& step) noexcept {
        std::array<std::uint64_t, kBlocks> took;
        std::uint64_t sum = 0;
        unsigned n = 0;
        for (auto& block : took) {
            const std::uint64_t begin = now_ns();
            for (unsigned i = 0; i < kBlock; ++i) sum += step(n++);
            block = now_ns() - begin;
        }
        [[maybe_unused]] static volatile std::uint64_t used;
        used = sum;
        std::nth_element(took.begin(), took.begin() + kBlocks / 2, took.end());
        return static_cast<double>(took[kBlocks / 2]) / kBlock;
    }

    std::unique_ptr<Histogram[]> histograms_{new Histogram[kHistograms]};
};

}  // namespace embar

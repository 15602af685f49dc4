// Copying message bytes into a slot, with plain or with non-temporal stores.
//
// Plain stores are the fastest while the ring fits into the last-level cache; beyond that each store
// first reads the line from memory, and non-temporal stores, which do not, win. First-fit reuse makes
// the footprint visible: a publisher gets slot i only while slots 0..i-1 are in use, so a batch goes
// non-temporal when the end of its slot lies beyond the last-level cache. docs/performance.md has the
// measurement behind the rule; `tools/bench_copy` repeats it.
//
// Non-temporal stores are weakly ordered: copy_fence() must come before the commit that publishes them.
#pragma once

#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace embar {

enum class CopyMode : int { Auto = 0, Plain = 1, NonTemporal = 2 };

#if defined(__SSE2__)
inline constexpr bool kHasNonTemporal = true;

inline void copy_nontemporal(void* to, const void* from, std::size_t n) noexcept {
    auto* d = static_cast<char*>(to);
    auto* s = static_cast<const char*>(from);
    const std::size_t head = (64 - (reinterpret_cast<std::uintptr_t>(d) & 63)) & 63;
    if (n < 128 + head) {
        std::memcpy(d, s, n);
        return;
    }
    std::memcpy(d, s, head);
    d += head, s += head, n -= head;
    for (; n >= 64; d += 64, s += 64, n -= 64) {
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s));
        const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + 16));
        const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + 32));
        const __m128i e = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + 48));
        _mm_stream_si128(reinterpret_cast<__m128i*>(d), a);
        _mm_stream_si128(reinterpret_cast<__m128i*>(d + 16), b);
        _mm_stream_si128(reinterpret_cast<__m128i*>(d + 32), c);
        _mm_stream_si128(reinterpret_cast<__m128i*>(d + 48), e);
    }
    std::memcpy(d, s, n);
}
inline void copy_fence() noexcept { _mm_sfence(); }
#else
inline constexpr bool kHasNonTemporal = false;
inline void copy_nontemporal(void* to, const void* from, std::size_t n) noexcept { std::memcpy(to, from, n); }
inline void copy_fence() noexcept {}
#endif

inline void copy_bytes(void* to, const void* from, std::size_t n, bool nontemporal) noexcept {
    if (nontemporal)
        copy_nontemporal(to, from, n);
    else
        std::memcpy(to, from, n);
}

// Size in bytes of the last-level cache of CPU 0, from sysfs (cpu/cpu0/cache/index3/size, "32768K"); 32 MiB where
// it is not known. Not sysconf(_SC_LEVEL3_CACHE_SIZE): in some virtual machines it adds up all of the host's.
inline std::uint64_t last_level_cache() noexcept {
    static const std::uint64_t size = [] {
        std::uint64_t kib = 0;
        for (const char* path :
             {"/sys/devices/system/cpu/cpu0/cache/index3/size", "/sys/devices/system/cpu/cpu0/cache/index2/size"}) {
            if (FILE* file = std::fopen(path, "re")) {
                if (std::fscanf(file, "%" SCNu64 "K", &kib) != 1) kib = 0;
                std::fclose(file);
            }
            if (kib) break;
        }
        return kib ? kib * 1024 : 32ULL << 20;
    }();
    return size;
}

// `slot_end`: distance of the slot's last byte from the first slot of the ring.
inline bool use_nontemporal(CopyMode mode, std::uint64_t slot_end) noexcept {
    if (!kHasNonTemporal || mode == CopyMode::Plain) return false;
    return mode == CopyMode::NonTemporal || slot_end > last_level_cache();
}

}  // namespace embar

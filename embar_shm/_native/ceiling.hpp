// What the machine can do at best: the same copies as a publisher, and nothing else.
#pragma once

#include <algorithm>
#include <vector>

#include "copy.hpp"
#include "waiting.hpp"

namespace embar {

// Copies `chunk` bytes from `source` again and again into batches of `batch` bytes, which go to `places` in
// turn; `batches` batches in all. => ns it took.
inline std::uint64_t memory_copy(const std::vector<char*>& places, const char* source, std::size_t chunk,
                                 std::size_t batch, std::uint64_t batches, bool nontemporal) noexcept {
    const std::uint64_t begin = now_ns();
    std::size_t next = 0;
    for (std::uint64_t b = 0; b < batches; ++b) {
        char* to = places[next];
        if (++next == places.size()) next = 0;
        for (std::size_t at = 0; at < batch; at += chunk)
            copy_bytes(to + at, source, std::min(chunk, batch - at), nontemporal);
        copy_fence();
    }
    return now_ns() - begin;
}

}  // namespace embar

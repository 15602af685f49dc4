// What writers and readers of one log reach at best: copies into shared memory, reads of every byte, and the barest
// way to hand batches over. No broker, no headers, no checks, nobody may die.
//
// Writers copy batches into places of their own, in turn. A full place gets the next ticket; `entry[ticket]` says
// which it is. Every reader reads every ticket, in order; the last reader of a place gives it back to its writer.
// Tickets in use are a contiguous range and never more than there are places, so as many entries suffice.
#pragma once

#include "copy.hpp"
#include "layout.hpp"
#include "waiting.hpp"

namespace embar {

// Reads all of it: the sum of its words, so that no compiler leaves a byte out.
inline u64 read_words(const char* data, std::size_t size) noexcept {
    u64 lanes[8] = {}, word;
    std::size_t at = 0;
    for (; size - at >= 64; at += 64)
        for (unsigned i = 0; i < 8; ++i) {
            std::memcpy(&word, data + at + 8 * i, 8);
            lanes[i] += word;
        }
    for (; at < size; at += 8) {
        word = 0;
        std::memcpy(&word, data + at, std::min<std::size_t>(8, size - at));
        lanes[0] += word;
    }
    u64 sum = 0;
    for (const u64 lane : lanes) sum += lane;
    return sum;
}

class CopyAndRead {
public:
    struct Shape {
        u32 writers, places, readers;  // places: of each writer
        u64 batch;

        u32 all_places() const noexcept { return writers * places; }
        u64 stride() const noexcept { return Geometry::round_up(batch, kPage); }
        u64 places_offset() const noexcept { return Geometry::round_up(sizeof(Words) + entries_bytes(), kPage); }
        u64 bytes() const noexcept { return places_offset() + all_places() * stride(); }
        u64 entries_bytes() const noexcept { return all_places() * (sizeof(Entry) + sizeof(Place)); }
    };

    // Zeroed memory of shape.bytes() is a new one. Waits are those of a ring with as many processes.
    CopyAndRead(char* base, const Shape& shape, const SpinOptions& spin) noexcept
        : base_(base), shape_(shape), spin_(spin), words_(reinterpret_cast<Words*>(base)),
          places_(reinterpret_cast<Place*>(base + sizeof(Words))),
          entries_(reinterpret_cast<Entry*>(base + sizeof(Words) + shape.all_places() * sizeof(Place))) {}

    template <class Check>
    void write(u32 writer, const char* source, std::size_t chunk, u64 batches, bool nontemporal, Check&& check) {
        for (u64 b = 0; b < batches; ++b) {
            const u32 place = writer * shape_.places + static_cast<u32>(b % shape_.places);
            Place& mine = places_[place];
            await([&] { return mine.readers.load(std::memory_order_seq_cst) == 0; }, mine.event, mine.sleeping, check);
            char* to = data_of(place);
            for (std::size_t at = 0; at < shape_.batch; at += chunk)
                copy_bytes(to + at, source, std::min<std::size_t>(chunk, shape_.batch - at), nontemporal);
            copy_fence();
            mine.readers.store(shape_.readers, std::memory_order_relaxed);  // published with the entry
            const u64 t = words_->tail.fetch_add(1, std::memory_order_relaxed);
            // seq_cst: releases the batch, and orders before the look at `sleeping`.
            entries_[t % shape_.all_places()].store(entry_of(t, place), std::memory_order_seq_cst);
            wake_if_sleeping(words_->event, words_->sleeping);
        }
    }

    template <class Check>
    u64 read(u64 batches, Check&& check) {
        u64 sum = 0;
        for (u64 b = 0; b < batches; ++b, ++next_) {
            const Entry& entry = entries_[next_ % shape_.all_places()];
            u64 e = 0;
            await(
                [&] {
                    e = entry.load(std::memory_order_seq_cst);
                    return e >> kPlaceBits == next_ + 1;
                },
                words_->event, words_->sleeping, check);
            const u32 place = static_cast<u32>(e & ((1U << kPlaceBits) - 1));
            sum += read_words(data_of(place), shape_.batch);
            Place& read = places_[place];
            if (read.readers.fetch_sub(1, std::memory_order_seq_cst) == 1) wake_if_sleeping(read.event, read.sleeping);
        }
        return sum;
    }

    static constexpr unsigned kPlaceBits = 20;

private:
    using Entry = std::atomic<u64>;  // ticket + 1, place
    struct Place {
        alignas(kLine) std::atomic<u32> readers;  // that have not read it; 0: the writer's
        std::atomic<u32> event;
        std::atomic<u32> sleeping;
    };
    struct Words {
        alignas(kLine) std::atomic<u64> tail;
        alignas(kLine) std::atomic<u32> event;  // of the readers
        std::atomic<u32> sleeping;
    };

    static u64 entry_of(u64 t, u32 place) noexcept { return (t + 1) << kPlaceBits | place; }
    char* data_of(u32 place) const noexcept { return base_ + shape_.places_offset() + place * shape_.stride(); }

    template <class Ready, class Check>
    void await(Ready&& ready, std::atomic<u32>& event, std::atomic<u32>& sleeping, Check& check) {
        if (ready()) return;
        bool missed = false;
        for (;;) {
            const u64 spin_ns = spin_.budget_ns(shape_.writers + shape_.readers);
            const Wait w = sleep_unless(ready, event, sleeping, now_ns() + kSliceNs, spin_ns, kMaxSleepNs, missed);
            spin_.outcome(w == Wait::Ready);
            if (w == Wait::Ready) return;
            check();
        }
    }

    char* base_;
    Shape shape_;
    SpinPolicy spin_;
    Words* words_;
    Place* places_;
    Entry* entries_;
    u64 next_ = 0;  // of this reader
};

}  // namespace embar

// The bytes of a segment: which words exist, where they are, and who writes them.
//
// A segment is one POSIX shared memory object, used by one broker, many publishers and many subscribers:
//
//   offset 0      SegmentHeader     one page; constant once `magic` is set
//   +4096         Control           the broker's words: tail, head, released, event, statistics
//   publishers    PublisherEntry[max_publishers]
//   subscribers   SubscriberEntry[max_subscribers]
//   tickets       atomic<u64>[tickets]          tickets is a power of two >= slots
//   slot words    SlotWord[slots]
//   slots         slots x slot_stride           one page for the BatchHeader, then slot_bytes; subscribers
//                                               map it read-only
//
// Everything in here may have been written by a broken process. Code that reads a word copies it once,
// checks the copy, and uses only the copy. Nothing in this file allocates, waits or throws.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "histogram.hpp"

namespace embar {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

inline constexpr u64 kMagic = 0x314d485352424d45ULL;  // "EMBRSHM1", little endian
inline constexpr u32 kLayoutVersion = 3;
inline constexpr u64 kFeatures = 0;        // features a reader must understand; none exist yet
inline constexpr std::size_t kLine = 128;  // two cache lines: the adjacent-line prefetcher pairs them
inline constexpr std::size_t kPage = 4096;
inline constexpr u32 kMaxSlots = 4096;       // 12 bits in a ticket entry
inline constexpr u32 kMaxPublishers = 1000;  // owner index: 15 bits in a slot word
inline constexpr u32 kMaxSubscribers = 1000;
inline constexpr u32 kLogOwner = 0x7fff;          // owns what is in the log while its publisher is gone
inline constexpr u64 kMaxSlotBytes = 1ULL << 31;  // message counts and sizes are 32-bit in a BatchHeader

static_assert(std::atomic<u64>::is_always_lock_free && std::atomic<u32>::is_always_lock_free,
              "words in shared memory must be lock-free: a lock would live in one process only");
static_assert(sizeof(std::atomic<u64>) == 8 && sizeof(std::atomic<u32>) == 4,
              "an atomic word must be exactly its value");

// --- Ticket entry: FREE(lap) or USED(lap, slot, generation), one 64-bit word -------------------------
//
//   bit 63     used
//   62..51     slot index                (0 when free)
//   bit 50     refused: the broker did not accept the batch, nobody reads it
//   49..32     low 18 bits of the slot's generation (0 when free)
//   31..0      lap = ticket / tickets    the same entry serves ticket, ticket + tickets, ...
namespace ticket {
inline constexpr u64 kUsed = 1ULL << 63;
inline constexpr u64 kRefused = 1ULL << 50;
inline constexpr u32 kGenerationMask = (1U << 18) - 1;
constexpr u64 free(u32 lap) noexcept { return lap; }
constexpr u64 used(u32 lap, u32 slot, u64 generation) noexcept {
    return kUsed | (u64{slot} << 51) | ((generation & kGenerationMask) << 32) | lap;
}
constexpr bool is_used(u64 e) noexcept { return (e & kUsed) != 0; }
constexpr bool is_refused(u64 e) noexcept { return (e & kRefused) != 0; }
constexpr u32 lap(u64 e) noexcept { return static_cast<u32>(e); }
constexpr u32 slot(u64 e) noexcept { return static_cast<u32>(e >> 51) & (kMaxSlots - 1); }
constexpr u32 generation(u64 e) noexcept { return static_cast<u32>(e >> 32) & kGenerationMask; }
}  // namespace ticket

// --- Slot word: {generation, owner, owned}, one 64-bit word ----------------------------------------
//
//   63..16     generation, +1 each time the slot is freed
//   15..1      owner: index into the publishers table (0 when free)
//   bit 0      owned
namespace slot_word {
constexpr u64 free(u64 generation) noexcept { return generation << 16; }
constexpr u64 owned(u64 generation, u32 owner) noexcept { return (generation << 16) | (u64{owner} << 1) | 1; }
constexpr bool is_owned(u64 w) noexcept { return (w & 1) != 0; }
constexpr u32 owner(u64 w) noexcept { return static_cast<u32>(w >> 1) & 0x7fff; }
constexpr u64 generation(u64 w) noexcept { return w >> 16; }
}  // namespace slot_word

struct alignas(kLine) SlotWord {
    std::atomic<u64> word;         // CAS by publishers (claim), stored by the broker (release, reap)
    std::atomic<u64> owned_since;  // CLOCK_MONOTONIC ns; written by the owner; only diagnoses
};
static_assert(sizeof(SlotWord) == kLine);

// --- Batch header: the first 128 bytes of a slot, the same bytes on every transport ----------------
enum class Format : u16 {
    Fixed = 0,     // messages of message_size bytes, back to back
    Variable = 1,  // per message: u32 length, u32 zero, the bytes, zero padding to 8
};
inline constexpr u32 kBatchMagic = 0x48425245;  // "ERBH"
inline constexpr u16 kBatchVersion = 1;
inline constexpr std::size_t kFrameHeader = 8;  // length prefix of a message in a Variable batch
constexpr u64 framed_size(u64 message) noexcept { return kFrameHeader + ((message + 7) & ~u64{7}); }

struct BatchHeader {
    u32 magic;
    u16 version;
    u16 format;
    u64 publisher_id;
    u64 incarnation;  // of the publisher: restarts get a new one
    u64 seq;          // 1, 2, 3, ... per publisher and broker
    u32 messages;
    u32 message_size;   // Fixed only, else 0
    u64 body_bytes;     // bytes used in the slot after the header page
    u64 payload_bytes;  // message bytes only, without framing
    u64 opened_ns;      // CLOCK_MONOTONIC of the first message
    u64 committed_ns;   // CLOCK_MONOTONIC of the commit
    u64 ticket;  // 0 in a slot, where the ticket entry tells it; its place in the log when it travels to a subscriber
    u64 gap;     // 0 in a slot; batches a lossy subscriber missed before this one when it travels
    u64 reserved[4];
    u64 check;  // header_check() of the words above
};
static_assert(sizeof(BatchHeader) == 128 && offsetof(BatchHeader, check) == 120);

// Detects a damaged or half-written header (it is no protection against a hostile writer).
// splitmix64 finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), folded.
inline u64 header_check(const BatchHeader& h) noexcept {
    const auto* words = reinterpret_cast<const unsigned char*>(&h);
    u64 sum = 0x9e3779b97f4a7c15ULL;
    for (std::size_t i = 0; i < offsetof(BatchHeader, check); i += 8) {
        u64 w;
        __builtin_memcpy(&w, words + i, 8);
        sum = (sum ^ w) * 0xbf58476d1ce4e5b9ULL;
        sum ^= sum >> 31;
    }
    return sum;
}

// --- Segment header --------------------------------------------------------------------------------
struct SegmentHeader {
    std::atomic<u64> magic;  // stored last by the creator (release), loaded first on attach (acquire)
    u32 layout_version;
    u32 header_bytes;  // sizeof(SegmentHeader)
    u64 features;
    u64 total_bytes;
    u64 slot_bytes;   // capacity for messages, per slot
    u64 slot_stride;  // distance of two slots
    u32 slots;
    u32 tickets;
    u32 max_publishers;
    u32 max_subscribers;
    u64 publishers_offset;
    u64 subscribers_offset;
    u64 tickets_offset;
    u64 slot_words_offset;
    u64 slots_offset;
    u64 created_unix_ns;
    char boot_id[40];  // /proc/sys/kernel/random/boot_id: a segment never outlives a boot
    char name[136];    // cluster/broker: at most 64 + 1 + 64 characters
    char damage[216];  // what was wrong when a broker quarantined the segment; written once, before that state
    unsigned char reserved[kPage - 504];
};
static_assert(sizeof(SegmentHeader) == kPage);
static_assert(offsetof(SegmentHeader, boot_id) == 112 && offsetof(SegmentHeader, name) == 152);

// Does a header, copied once, describe messages that fit into `slot_bytes`?
inline bool well_formed(const BatchHeader& h, u64 slot_bytes) noexcept {
    if (h.magic != kBatchMagic || h.version != kBatchVersion || h.check != header_check(h)) return false;
    if (h.messages == 0 || h.body_bytes > slot_bytes) return false;
    const u64 n = h.messages;
    switch (static_cast<Format>(h.format)) {
        case Format::Fixed:
            return h.message_size != 0 && n * h.message_size == h.body_bytes && h.payload_bytes == h.body_bytes;
        case Format::Variable:
            return h.message_size == 0 && h.body_bytes % 8 == 0 && h.payload_bytes >= n &&
                   h.payload_bytes <= h.body_bytes && h.body_bytes - h.payload_bytes >= n * kFrameHeader;
    }
    return false;
}

// --- Control: written by the broker, but for `tail` and the flags others set -------------------------
enum class BrokerState : u32 {
    Starting = 0,
    Serving = 1,
    Stopping = 2,     // accepts what is committed; nobody may begin another batch
    Stopped = 3,      // accepts nothing any more
    Quarantined = 4,  // the words made no sense to a broker: nobody uses them any more, until an operator has looked
};

struct Control {
    alignas(kLine) std::atomic<u64> tail;  // next ticket to commit; advanced by anybody (helping)
    alignas(kLine) std::atomic<u64> head;  // next ticket to accept; broker only
    std::atomic<u64> released;             // oldest ticket that can still be read; broker only
    std::atomic<u64> releasing;            // journal of a release: the entry of ticket `released` as it was before
    // Eventcount of the broker. `sleeping` is set by the broker, taken back by whoever wakes it.
    alignas(kLine) std::atomic<u32> event;
    std::atomic<u32> sleeping;
    alignas(kLine) std::atomic<u32> space_waiters;  // publishers waiting for any free slot
    std::atomic<u32> look_around;                   // set by publishers that left, or gave a slot back
    alignas(kLine) std::atomic<u32> state;          // BrokerState
    std::atomic<u32> epoch;
    std::atomic<u32> broker_pid;
    std::atomic<u32> attached;  // publishers in the table
    // Eventcount of all subscribers: each of them sleeps until `head` moves, so none is woken for nothing.
    alignas(kLine) std::atomic<u32> news;
    std::atomic<u32> news_sleepers;
    // Row + 1 of the one subscriber whose release the broker waits for (0: none); only that one wakes the broker.
    std::atomic<u32> slowest;
    std::atomic<u32> subscribers;  // in the table
    // The broker sleeps with news that it has not told yet: a publisher about to wait for its quota wakes it.
    alignas(kLine) std::atomic<u32> news_held_back;
    std::atomic<u32> quota_waiters;  // publishers that wait for it; too many (one died) only cost wake-ups
    // Statistics, broker only.
    alignas(kLine) std::atomic<u64> batches;
    std::atomic<u64> messages;
    std::atomic<u64> payload_bytes;
    std::atomic<u64> duplicated;    // seq already accepted: dropped
    std::atomic<u64> out_of_order;  // seq beyond the next one: refused, publisher faulted
    std::atomic<u64> corrupt;       // header failed a check: refused, publisher faulted
    std::atomic<u64> reaped_publishers;
    std::atomic<u64> reaped_slots;
    std::atomic<u64> reaped_subscribers;
    std::atomic<u64> sleeps;
    std::atomic<u64> wakes_sent;
    std::atomic<u64> missed_wakeups;  // waits that ran out although there was work: must stay 0
    Histogram validate;               // ns: header copied, checked, deduplicated
    Histogram queue;                  // ns: commit to accept
    Histogram release;                // ns: entry recycled, slot freed, publisher woken
};

// --- Publisher entry: one row of the participants table ----------------------------------------------
enum class EntryState : u32 {
    Free = 0,    // may be taken by whoever gets the liveness lock of this index
    Active = 1,  // taken; the owner holds the lock, or is dead
    Closed = 2,  // owner left in order; the broker frees the row once all its batches are released
};
enum class Fault : u32 { None = 0, BadHeader = 1, OutOfOrder = 2 };

struct PublisherEntry {
    // Identity: written by the holder of the liveness lock; `state` also by the broker (to Free).
    alignas(kLine) std::atomic<u32> state;  // EntryState, stored last (release)
    std::atomic<u32> pid;
    std::atomic<u64> publisher_id;
    std::atomic<u64> incarnation;
    std::atomic<u64> attached_ns;
    std::atomic<u32> quota;
    std::atomic<u32> ack;
    std::atomic<u32> remote;  // the broker's process holds the row for a publisher on a network: it outlives the broker
    // Written by the broker.
    alignas(kLine) std::atomic<u64> accepted_seq;  // every batch 1..accepted_seq is wholly in the log
    std::atomic<u64> released_batches;             // that every subscriber has passed: no longer in flight
    std::atomic<u64> accepted_messages;
    std::atomic<u64> accepted_bytes;
    // The same, but once at most: the publisher looks at it for every batch, so it shares no line with the above.
    alignas(kLine) std::atomic<u32> fault;  // Fault
    std::atomic<u64> fault_seq;
    // Eventcount of the publisher: set by its threads, taken back by the broker.
    alignas(kLine) std::atomic<u32> event;
    std::atomic<u32> sleeping;
    std::atomic<u32> wants_any_slot;
    // Written by the publisher.
    alignas(kLine) std::atomic<u64> committed_seq;
    std::atomic<u64> messages;
    std::atomic<u64> payload_bytes;
    std::atomic<u64> space_waits;
    std::atomic<u64> ack_waits;
    std::atomic<u64> wakes_sent;
    std::atomic<u64> missed_wakeups;
    std::atomic<u64> nontemporal_batches;
    Histogram buffer_write;  // ns per message, sampled
    Histogram get_buffer;    // ns: claim of a slot, waiting not included
    Histogram send_payload;  // ns: header, commit, wake
    Histogram wait_space;    // ns per batch waited for a slot (0 when none was needed)
    Histogram wait_ack;      // ns per wait_acked call
    Histogram receive;       // ns to receive a batch's body from a network into the slot
};

// --- Subscriber entry: one row of the other participants table ----------------------------------------
enum class SubscriberState : u32 {
    Free = 0,     // may be taken by whoever gets the liveness lock of this index
    Joining = 1,  // taken: `mode`, `start` and `start_ticket` are a request to the broker
    Active = 2,   // the broker has set `cursor`, where it begins
    Refused = 3,  // that place is not in the log
    Closed = 4,   // left in order; the broker frees the row
};
enum class SubscribeMode : u32 { Reliable = 0, Lossy = 1 };
enum class Start : u32 { Latest = 0, Earliest = 1, Ticket = 2 };

struct SubscriberEntry {
    // Identity: written by the holder of the liveness lock; `state` also by the broker.
    alignas(kLine) std::atomic<u32> state;  // SubscriberState, stored last (release)
    std::atomic<u32> pid;
    std::atomic<u32> mode;
    std::atomic<u32> start;
    std::atomic<u64> start_ticket;
    std::atomic<u64> attached_ns;
    std::atomic<u64> remote_id;           // of a subscriber on a network that comes back, for which the broker's
    std::atomic<u64> remote_incarnation;  // process holds the row: it outlives the broker. Else 0
    char name[64];
    // Written by the subscriber, but for the broker's answer to a request.
    alignas(kLine) std::atomic<u64> cursor;  // every ticket below it is released by this subscriber
    std::atomic<u64> next;                   // next ticket to read
    std::atomic<u64> moved_ns;               // CLOCK_MONOTONIC when `cursor` moved last
    std::atomic<u64> batches;
    std::atomic<u64> messages;
    std::atomic<u64> payload_bytes;
    std::atomic<u64> lost;     // overrun before they were read; lossy only
    std::atomic<u64> corrupt;  // damaged after the broker had accepted them
    std::atomic<u64> waits;
    std::atomic<u64> missed_wakeups;
};
static_assert(sizeof(Control) % kLine == 0 && sizeof(PublisherEntry) % kLine == 0 &&
              sizeof(SubscriberEntry) % kLine == 0);

// --- Where everything is, from the four numbers a user chooses ---------------------------------------
struct Geometry {
    u32 slots = 0;
    u32 max_publishers = 0;
    u32 max_subscribers = 0;
    u32 tickets = 0;
    u64 slot_bytes = 0;
    u64 publishers_offset = 0;
    u64 subscribers_offset = 0;
    u64 tickets_offset = 0;
    u64 slot_words_offset = 0;
    u64 slots_offset = 0;
    u64 slot_stride = 0;
    u64 total_bytes = 0;

    // The caller has checked the limits (error() is null).
    static constexpr Geometry plan(u32 slots, u64 slot_bytes, u32 max_publishers, u32 max_subscribers) noexcept {
        Geometry g;
        g.slots = slots;
        g.max_publishers = max_publishers;
        g.max_subscribers = max_subscribers;
        g.slot_bytes = slot_bytes;
        g.tickets = 1;
        while (g.tickets < slots) g.tickets *= 2;
        g.publishers_offset = round_up(sizeof(SegmentHeader) + sizeof(Control), kPage);
        g.subscribers_offset = round_up(g.publishers_offset + u64{max_publishers} * sizeof(PublisherEntry), kPage);
        g.tickets_offset = round_up(g.subscribers_offset + u64{max_subscribers} * sizeof(SubscriberEntry), kPage);
        g.slot_words_offset = round_up(g.tickets_offset + u64{g.tickets} * sizeof(std::atomic<u64>), kPage);
        g.slots_offset = round_up(g.slot_words_offset + u64{slots} * sizeof(SlotWord), kPage);
        g.slot_stride = kPage + round_up(slot_bytes, kPage);
        g.total_bytes = g.slots_offset + u64{slots} * g.slot_stride;
        return g;
    }
    static constexpr const char* error(u64 slots, u64 slot_bytes, u64 max_publishers, u64 max_subscribers) noexcept {
        if (slots < 1 || slots > kMaxSlots) return "slots must be 1 to 4096";
        if (slot_bytes < 64 || slot_bytes > kMaxSlotBytes) return "slot_size must be 64 bytes to 2 GiB";
        if (max_publishers < 1 || max_publishers > kMaxPublishers) return "max_publishers must be 1 to 1000";
        if (max_subscribers < 1 || max_subscribers > kMaxSubscribers) return "max_subscribers must be 1 to 1000";
        return nullptr;
    }
    static constexpr u64 round_up(u64 n, u64 to) noexcept { return (n + to - 1) / to * to; }
    bool operator==(const Geometry&) const = default;
};

}  // namespace embar

// The ring: slots that are owned, tickets that are committed with one CAS.
//
// Nouns.  A *slot* is a piece of memory for one batch. A *ticket* is a batch's place in the log: 0, 1, 2, ...
// Ticket t lives in entry t mod tickets, in lap t / tickets. A *publisher* claims a slot, fills it, commits
// it to the next ticket. The *broker* accepts tickets in order, and releases them in order, each after every
// reliable *subscriber* has passed it (gates.hpp, subscriber.hpp).
//
// Words, and who writes them:
//   slot word     FREE(g) -> OWNED(g, p)       claim     publisher p, CAS
//                 OWNED(g, p) -> FREE(g+1)     release   broker, after the ticket; or reap, once p is gone
//                                              give back p itself, if it never committed the slot
//                 OWNED(g, p) -> OWNED(g, log) inherit   broker, once p is gone and its batch is in the log
//   ticket entry  FREE(lap) -> USED(lap, s, g) commit    any publisher, CAS
//                 USED -> USED + refused       refuse    broker, before `head` passes it
//                 USED(lap, ..) -> FREE(lap+1) release   broker
//   tail          t -> t+1                     help      anybody who saw that entry t is no longer FREE(lap)
//   head, released, releasing                            broker
//
// Invariants.
//   I1  A slot has one owner; only the owner writes its bytes, and only between claim and commit.
//   I2  Entry t is USED only if all tickets below t were committed: publishers only try the entry at `tail`,
//       and `tail` moves past t only when t is committed. So the log has no holes, at any instant.
//   I3  Unreleased tickets refer to distinct slots, hence there are at most `slots` <= `tickets` of them, and
//       the entry at `tail` is never one that still waits for its release: commit never waits.
//   I4  A publisher's batches are committed in the order of its seq (it commits one at a time).
//
// Why no claim-ordered ring?  Filling a batch takes long enough to be preempted or killed in it, and in a
// ring that orders by claim everybody behind waits. Here the place in the log is taken by the commit itself:
// before its CAS a publisher has no place, after it the batch is complete. There is nothing in between.
//
// Death.  Whatever instruction a publisher dies at, what it leaves is (a) nothing, (b) a slot it owns and no
// ticket refers to: the broker frees it after the kernel dropped the owner's lock (liveness.hpp), or (c) a
// committed batch, with `tail` perhaps not moved: the next committer moves it. A broker that dies leaves the
// ring as it is; the next one finishes what it had begun (log.hpp: recover()).
//
// ABA.  A publisher that sleeps between reading an entry and its CAS finds FREE(lap) again only after 2^32
// laps. A claim's CAS is guarded by 48 bits of generation.
//
// Order.  For each pair of words: who stores, who loads, and what breaks if one of the two is weaker. Each is a program
// in tests/native/litmus_pairs.hpp (its name in brackets), tried in every way C++ allows; docs/memory-order.md says
// how.
//
//   entry, commit      CAS seq_cst       accept's look, acquire: it reads what the publisher wrote; else a torn batch
//                                        [commit-accept]. seq_cst: also a condition, see below [commit-wakes]
//   slot, release      store seq_cst     claim's CAS, acquire: the next owner writes after the broker has read; else
//                                        the broker reads the next batch's bytes [release-claim]. And it finds its
//                                        entry recycled, as that is stored before: commit never waits [next-lap]
//   slot, give back    store seq_cst     the same between two publishers [give-back-claim]
//   slot, claim        fence release     the fence in Subscriber::take(): a lossy copy with a byte of the next
//                                        owner sees that the entry has changed; else a mixture of two batches
//                                        [lossy-copy]
//   tail, help         CAS acq_rel       commit's load, acquire: who sees t + 1 sees entry t. The entry's own CAS
//                                        decides, so a stale or early value costs another try, never a ticket
//                                        [two-commits]
//   entry, refuse      or, relaxed       ordered by the store of `head` behind it [refused-take]
//   head               store release     take's load, seq_cst: entry, header and bytes of all tickets below, the
//                                        publisher's own writes included, through the broker; else a torn batch
//                                        [head-take]
//   subscriber.cursor  store seq_cst     Gates::lowest(): its last reads come before the slot is free [cursor-release]
//   *.state, Closed    store release     reap's load, acquire: the leaver's last reads and writes come before
//                                        [leave-reap, leave-release]; after a death the kernel's lock does that
//                                        [death-reap]
//   *.state, Free      store release     the load of whoever takes the row, acquire: his words are not cleared
//                                        [row-again]
//   subscriber.state   release, seq_cst  admit() reads the request, the subscriber its answer [join-admit]
//   accepted_seq       store seq_cst     wait_acked(): only a condition, as it is read for its own value [ack-wakes]
//   released_batches   store seq_cst     in_flight(): the slot was freed before, so a claim finds it [quota-told]
//   fault              store seq_cst     refused(): with it `fault_seq` [fault-told]
//   control.state      store seq_cst     no_more_acks(): the last acknowledgement came before [stop-acked]
//
// Conditions.  The word that ends a sleep is stored before `sleeping` is loaded, and loaded after `sleeping` was stored
// (waiting.hpp). That is store, then load, on both sides: only seq_cst for all four orders it, else both see the old
// value and a wake-up is lost. So are commit's CAS, each store that frees a slot, head, cursor, slowest, accepted_seq,
// released_batches, fault, state, look_around, space_waiters, quota_waiters and news_held_back [the pairs that end in
// -wakes, held-back-told, retained-given-up].
//
// Relaxed is what has one writer and is read by people, what is ordered by another word named beside it, and the loads
// that a CAS confirms.
#pragma once

#include <bit>
#include <cstring>
#include <new>

#include "layout.hpp"

namespace embar {

inline constexpr u64 kNoTicket = ~0ULL;

// A view of a mapped segment: pointers and a private copy of the geometry. Owns nothing.
class Ring {
public:
    // Why these bytes are not a ring this code can use, or null; then `out` is its geometry, from the one and only
    // look at the header: what that says later does not matter. (segment.py gives the long answer.)
    // Without `with_slots` the slots need not be in the buffer: they are mapped elsewhere, or not looked at.
    static const char* unusable(const void* base, std::size_t bytes, Geometry& out, bool with_slots = true) noexcept {
        if (reinterpret_cast<std::uintptr_t>(base) % kLine) return "the buffer is not aligned to 128 bytes";
        if (bytes < sizeof(SegmentHeader)) return "the buffer is smaller than a segment header";
        const auto& h = *static_cast<const SegmentHeader*>(base);
        if (h.magic.load(std::memory_order_acquire) != kMagic) return "the magic is wrong";  // pairs with publish()
        u32 version, slots, publishers, subscribers;
        u64 slot_bytes;
        std::memcpy(&version, &h.layout_version, sizeof version);
        std::memcpy(&slots, &h.slots, sizeof slots);
        std::memcpy(&publishers, &h.max_publishers, sizeof publishers);
        std::memcpy(&subscribers, &h.max_subscribers, sizeof subscribers);
        std::memcpy(&slot_bytes, &h.slot_bytes, sizeof slot_bytes);
        std::atomic_signal_fence(std::memory_order_seq_cst);  // the copies are made once, not again below
        if (version != kLayoutVersion) return "the layout version differs";
        if (const char* why = Geometry::error(slots, slot_bytes, publishers, subscribers)) return why;
        out = Geometry::plan(slots, slot_bytes, publishers, subscribers);
        if ((with_slots ? out.total_bytes : out.slots_offset) > bytes) return "the buffer is truncated";
        return nullptr;
    }

    // `base` and `geometry` have been checked with unusable(). `slots`: where the slots are, if not behind the rest.
    Ring(void* base, const Geometry& geometry, const void* slots = nullptr) noexcept
        : base_(static_cast<char*>(base)),
          slots_(slots ? static_cast<char*>(const_cast<void*>(slots)) : base_ + geometry.slots_offset),
          geometry_(geometry), mask_(geometry.tickets - 1),
          shift_(static_cast<unsigned>(std::countr_zero(geometry.tickets))) {}

    // Writes the header of a new segment into zeroed memory: all-zero control words are an empty ring.
    static void format(void* base, const Geometry& g, const char* name, const char* boot_id, u64 unix_ns) noexcept {
        auto* h = static_cast<SegmentHeader*>(base);
        h->layout_version = kLayoutVersion;
        h->header_bytes = sizeof(SegmentHeader);
        h->features = kFeatures;
        h->total_bytes = g.total_bytes;
        h->slot_bytes = g.slot_bytes;
        h->slot_stride = g.slot_stride;
        h->slots = g.slots;
        h->tickets = g.tickets;
        h->max_publishers = g.max_publishers;
        h->max_subscribers = g.max_subscribers;
        h->publishers_offset = g.publishers_offset;
        h->subscribers_offset = g.subscribers_offset;
        h->tickets_offset = g.tickets_offset;
        h->slot_words_offset = g.slot_words_offset;
        h->slots_offset = g.slots_offset;
        h->created_unix_ns = unix_ns;
        std::strncpy(h->boot_id, boot_id, sizeof h->boot_id - 1);
        std::strncpy(h->name, name, sizeof h->name - 1);
    }
    // Makes the segment attachable. Release: whoever sees the magic sees everything before it.
    static void publish(void* base) noexcept {
        static_cast<SegmentHeader*>(base)->magic.store(kMagic, std::memory_order_release);
    }

    const Geometry& geometry() const noexcept { return geometry_; }
    SegmentHeader* segment_header() const noexcept { return reinterpret_cast<SegmentHeader*>(base_); }
    Control& control() const noexcept { return *reinterpret_cast<Control*>(base_ + sizeof(SegmentHeader)); }
    PublisherEntry& publisher(u32 i) const noexcept {
        return reinterpret_cast<PublisherEntry*>(base_ + geometry_.publishers_offset)[i];
    }
    SubscriberEntry& subscriber(u32 i) const noexcept {
        return reinterpret_cast<SubscriberEntry*>(base_ + geometry_.subscribers_offset)[i];
    }
    std::atomic<u64>& entry(u64 t) const noexcept {
        return reinterpret_cast<std::atomic<u64>*>(base_ + geometry_.tickets_offset)[t & mask_];
    }
    SlotWord& slot(u32 s) const noexcept { return reinterpret_cast<SlotWord*>(base_ + geometry_.slot_words_offset)[s]; }
    char* header_of(u32 s) const noexcept { return slots_ + u64{s} * geometry_.slot_stride; }
    char* payload_of(u32 s) const noexcept { return header_of(s) + kPage; }
    u32 lap_of(u64 t) const noexcept { return static_cast<u32>(t >> shift_); }

    // --- publisher side ---

    // Claims the first free slot for `owner`.
    // => true: `slot` and `generation` are set. => false: no slot is free.
    bool try_claim(u32 owner, u32& slot_out, u64& generation_out) const noexcept {
        for (u32 s = 0; s < geometry_.slots; ++s) {
            u64 w = slot(s).word.load(std::memory_order_relaxed);  // the CAS decides
            if (slot_word::is_owned(w)) continue;
            const u64 g = slot_word::generation(w);
            // Acquire: pairs with the release store in release() and reap_slots().
            if (slot(s).word.compare_exchange_strong(w, slot_word::owned(g, owner), std::memory_order_acquire,
                                                     std::memory_order_relaxed)) {
                // Who copies these bytes without holding them, and sees what is written from now on, shall see that
                // the ticket is not theirs any more: pairs with the fence in Subscriber::take(). (The acquire above
                // orders the two for this thread; without a release nothing hands that on.)
                std::atomic_thread_fence(std::memory_order_release);
                slot_out = s;
                generation_out = g;
                return true;
            }
        }
        return false;
    }
    // Frees a slot that was claimed and not committed. seq_cst: as in release().
    void give_back(u32 s, u64 generation) const noexcept {
        slot(s).word.store(slot_word::free(generation + 1), std::memory_order_seq_cst);
    }
    // Is any slot free? seq_cst: the condition of an eventcount, pairs with the stores that free a slot.
    bool any_free() const noexcept {
        for (u32 s = 0; s < geometry_.slots; ++s)
            if (!slot_word::is_owned(slot(s).word.load(std::memory_order_seq_cst))) return true;
        return false;
    }

    // Commits slot `s` to the next ticket.
    // => the ticket. => kNoTicket: the entries make no sense (damaged memory); nothing was committed.
    u64 commit(u32 s, u64 generation) const noexcept {
        std::atomic<u64>& tail = control().tail;
        for (u32 tries = 0; tries < kMaxCommitTries; ++tries) {
            const u64 t = tail.load(std::memory_order_acquire);  // pairs with help()
            const u32 lap = lap_of(t);
            u64 e = ticket::free(lap);
            // seq_cst: releases the batch to accept(), and orders before the look at `sleeping`.
            if (entry(t).compare_exchange_strong(e, ticket::used(lap, s, generation), std::memory_order_seq_cst,
                                                 std::memory_order_acquire)) {
                help(t);
                return t;
            }
            // Somebody committed t (and perhaps it is released already): `tail` is behind.
            const auto ahead = static_cast<std::int32_t>(ticket::lap(e) - lap);
            if (ahead > 0 || (ahead == 0 && ticket::is_used(e))) help(t);
            // Else the entry still belongs to an earlier lap: impossible (I3) unless `tail` just moved or
            // memory is damaged; the bound on tries tells the two apart.
        }
        return kNoTicket;
    }
    // Moves `tail` past the committed ticket t, if nobody has yet. Release: pairs with the load in commit().
    void help(u64 t) const noexcept {
        control().tail.compare_exchange_strong(t, t + 1, std::memory_order_acq_rel, std::memory_order_relaxed);
    }

    // --- broker side ---

    struct Committed {
        u32 slot;
        u32 owner;
        u64 generation;
    };
    enum class Look { Empty, Committed, Corrupt };

    // Is a batch committed to t? While t - tickets is not released, that one is in the entry of t. seq_cst: the
    // condition of an eventcount.
    bool holds(u64 t) const noexcept {
        const u64 e = entry(t).load(std::memory_order_seq_cst);
        return ticket::is_used(e) && ticket::lap(e) == lap_of(t);
    }
    // What is in ticket t, the oldest the broker has not accepted? Every value is checked before use.
    Look look(u64 t, Committed& out) const noexcept {
        const u64 e = entry(t).load(std::memory_order_acquire);  // pairs with the CAS in commit()
        if (ticket::lap(e) != lap_of(t)) return Look::Corrupt;   // it was FREE(lap) when t - tickets was released
        if (!ticket::is_used(e)) return Look::Empty;
        const u32 s = ticket::slot(e);
        if (s >= geometry_.slots) return Look::Corrupt;
        const u64 w = slot(s).word.load(std::memory_order_relaxed);  // ordered by the acquire above
        const u64 g = slot_word::generation(w);
        if (!slot_word::is_owned(w) || slot_word::owner(w) >= geometry_.max_publishers ||
            (g & ticket::kGenerationMask) != ticket::generation(e))
            return Look::Corrupt;
        out = {s, slot_word::owner(w), g};
        return Look::Committed;
    }
    // The same for a ticket that was accepted, at the start of a broker. Its slot may be the log's.
    bool look_again(u64 t, Committed& out) const noexcept {
        const u64 e = entry(t).load(std::memory_order_acquire);
        const u32 s = ticket::slot(e);
        if (ticket::lap(e) != lap_of(t) || !ticket::is_used(e) || s >= geometry_.slots) return false;
        const u64 w = slot(s).word.load(std::memory_order_relaxed), g = slot_word::generation(w);
        out = {s, slot_word::owner(w), g};
        return slot_word::is_owned(w) && (g & ticket::kGenerationMask) == ticket::generation(e) &&
               (out.owner < geometry_.max_publishers || out.owner == kLogOwner);
    }
    bool is_refused(u64 t) const noexcept { return ticket::is_refused(entry(t).load(std::memory_order_relaxed)); }
    // Tells everybody that the batch in ticket t, which `head` has not passed, is not for reading.
    void refuse(u64 t) const noexcept {
        entry(t).fetch_or(ticket::kRefused, std::memory_order_relaxed);  // ordered by the store of `head`
    }
    // Takes over the slot of a batch in the log whose publisher is gone.
    void inherit(const Committed& c) const noexcept {
        slot(c.slot).word.store(slot_word::owned(c.generation, kLogOwner), std::memory_order_release);
    }
    // Recycles ticket t, which is `released`, and frees its slot, in this order: a slot that is free has no ticket.
    // What it takes to finish that is written down first: Broker::recover() does when the broker dies in between.
    // (Whoever looks has the dead broker's lock, so sees its stores; they must only be made in this order.)
    void release(u64 t, const Committed& c) const noexcept {
        const u32 lap = lap_of(t);
        control().releasing.store(ticket::used(lap, c.slot, c.generation), std::memory_order_relaxed);
        entry(t).store(ticket::free(lap + 1), std::memory_order_release);                       // pairs with commit()
        slot(c.slot).word.store(slot_word::free(c.generation + 1), std::memory_order_seq_cst);  // with try_claim()
    }
    // Does a committed ticket at or after `from` refer to a slot of `owner`?
    bool has_committed(u32 owner, u64 from) const noexcept {
        Committed c;
        for (u64 t = from; t < from + geometry_.tickets; ++t) {
            const Look l = look(t, c);
            if (l == Look::Empty) return false;  // I2: nothing beyond
            if (l == Look::Committed && c.owner == owner) return true;
        }
        return false;
    }
    // Frees every slot of an owner that is gone and has no committed ticket. => how many.
    u32 reap_slots(u32 owner) const noexcept {
        u32 n = 0;
        for (u32 s = 0; s < geometry_.slots; ++s) {
            const u64 w = slot(s).word.load(std::memory_order_acquire);
            if (!slot_word::is_owned(w) || slot_word::owner(w) != owner) continue;
            slot(s).word.store(slot_word::free(slot_word::generation(w) + 1), std::memory_order_seq_cst);
            ++n;
        }
        return n;
    }

private:
#if defined(EMBAR_FUZZING)  // `tail` is damaged all the time
    static constexpr u32 kMaxCommitTries = 64;
#else
    static constexpr u32 kMaxCommitTries = 1U << 20;
#endif

    char* base_;
    char* slots_;
    Geometry geometry_;
    u64 mask_;
    unsigned shift_;
};

}  // namespace embar

// What must hold between the words of a ring, whoever died at whatever instruction (ring.hpp: I1 to I4).
//
//   check_structure   control words, ticket entries, and the slot words they refer to: what a broker relies on. It does
//                     not go on without.
//   check_contents    slots that nobody will free, rows of the tables, headers of accepted batches: what
//                     one participant damaged, and a broker can live with
//
// Both only read. Who keeps the broker from moving (it holds the broker's lock, or is the broker) finds nothing in a
// sound ring, even while publishers publish.
//
// Beside a broker at work the words of one look (inspection/copies.py) are of different moments, and much of what it
// finds is not so. But three looks, one after the other, that find the same with the same words (Finding::words) are
// right: the words that are compared take no value twice, as sequence numbers, tickets and generations only grow, and a
// row taken again was attached at another time. So a word that is the same at two looks was so all the time between
// them, and what is read between them is of the same moment. (Why three: what a release that is slow leaves between its
// two stores is told by the journal, which is sure to be that release's only in the look after the first that meets
// it.)
//
// A release that was cut short is not a fault: Broker::recover() finishes it. Here it counts as finished or not
// begun.
#pragma once

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <utility>
#include <vector>

#include "ring.hpp"

namespace embar {

// One thing that is wrong: which word, with what is found there and what could be there.
struct Finding {
    char field[48] = "";
    char text[160] = "";
    // The words that make it so and have to be the same in each look at a ring at work. None: all are in the text. (A
    // text may tell words, too, that move and make no difference: how far the log is.)
    u64 words[3] = {};
    u32 word_count = 0;

    explicit operator bool() const noexcept { return field[0] != 0; }
    [[gnu::format(printf, 3, 4)]] void set(const char* name, const char* format, ...) noexcept {
        std::snprintf(field, sizeof field, "%s", name);
        va_list values;
        va_start(values, format);
        std::vsnprintf(text, sizeof text, format, values);
        va_end(values);
    }
    template <class... Words>
    Finding&& of(Words... them) && noexcept {
        static_assert(sizeof...(them) <= 3);
        ((words[word_count++] = them), ...);
        return std::move(*this);
    }
};

// The words of a ring, each read once: `released` counts a release as done whose entry is recycled.
struct LogBounds {
    u64 tail = 0, head = 0, released = 0;
    bool release_cut_short = false;  // entry `released` - 1 is recycled, its slot perhaps not free
    u64 journal = 0;                 // then: that entry as it was
};

class Invariants {
public:
    explicit Invariants(const Ring& ring) : ring_(ring), referred_(ring.geometry().slots, kNobody) {}

    // A slot that is owned, and of no ticket: its publisher fills it, or nobody will ever free it.
    struct Unfinished {
        u32 slot, owner;
        u64 word;
    };

    // => false when something was wrong; `sink(Finding)` was told each.
    template <class Sink>
    bool check_structure(Sink&& sink) {
        bool sound = true;
        const auto wrong = [&](const Finding& f) {
            sound = false;
            sink(f);
        };
        bounded_ = check_bounds(wrong);
        if (!bounded_) return false;  // without them there is no log to look at
        check_entries(wrong);
        return sound;
    }
    // After check_structure(). Where that was false, what it found may be the cause of what is found here.
    template <class Sink>
    void check_contents(Sink&& sink) {
        if (!bounded_) return;
        check_slots(sink);
        check_batches(sink);
        check_publishers(sink);
        check_subscribers(sink);
    }
    // After check_structure(). Nothing where there is no log to look at.
    std::vector<Unfinished> unfinished() {
        std::vector<Unfinished> found;
        if (!bounded_) return found;
        for (u32 s = 0; s < ring_.geometry().slots; ++s) {
            const u64 w = ring_.slot(s).word.load(std::memory_order_acquire);
            if (!slot_word::is_owned(w) || referred_[s] != kNobody) continue;
            if (bounds_.release_cut_short && ticket::slot(bounds_.journal) == s &&
                (slot_word::generation(w) & ticket::kGenerationMask) == ticket::generation(bounds_.journal))
                continue;
            found.push_back({s, slot_word::owner(w), w});
        }
        // Some may have been committed since their entries were looked at; a publisher does that before it claims
        // another. (In a copy of a ring at work an entry may be of a lap that was not looked for.)
        for (u64 t = 0; t < ring_.geometry().tickets; ++t) {
            const u64 e = ring_.entry(t).load(std::memory_order_acquire);
            if (ticket::is_used(e) && ticket::slot(e) < referred_.size()) referred_[ticket::slot(e)] = t;
        }
        std::erase_if(found, [this](const Unfinished& u) { return referred_[u.slot] != kNobody; });
        return found;
    }
    const LogBounds& bounds() const noexcept { return bounds_; }

private:
    static constexpr u64 kNobody = ~0ULL;  // no ticket refers to this slot

    template <class... Values>
    [[gnu::noinline]] static Finding finding(const char* field, const char* format, Values... values) {
        Finding f;
        f.set(field, format, values...);
        return f;
    }
    struct Place {  // "tickets[12]"
        char name[48];
        Place(const char* table, u64 index, const char* member = "") {
            std::snprintf(name, sizeof name, "%s[%" PRIu64 "]%s", table, index, member);
        }
    };

    template <class Sink>
    bool check_bounds(Sink&& wrong) {
        const Control& c = ring_.control();
        const u64 slots = ring_.geometry().slots;
        LogBounds b;
        b.released = c.released.load(std::memory_order_acquire);
        b.head = c.head.load(std::memory_order_acquire);
        b.tail = c.tail.load(std::memory_order_acquire);
        const u32 state = c.state.load(std::memory_order_relaxed);
        if (state > static_cast<u32>(BrokerState::Quarantined))
            wrong(finding("control.state", "%u: there are the states 0 to 4", state));
        if (b.released > b.head || b.head - b.released > slots) {
            wrong(finding("control.released",
                          "%" PRIu64 ", but head is %" PRIu64 ": at most %" PRIu64 " batches can be in %" PRIu64
                          " slots",
                          b.released, b.head, slots, slots));
            return false;
        }
        if (b.released < b.head) {
            const u64 e = ring_.entry(b.released).load(std::memory_order_acquire);
            b.release_cut_short = ticket::lap(e) == ring_.lap_of(b.released) + 1;
            if (b.release_cut_short) {
                const u64 journal = c.releasing.load(std::memory_order_relaxed);
                if (!ticket::is_used(journal) || ticket::lap(journal) != ring_.lap_of(b.released) ||
                    ticket::slot(journal) >= slots)
                    wrong(finding("control.releasing",
                                  "%#" PRIx64 ": no batch of ticket %" PRIu64
                                  ", whose entry is recycled and whose release is not done",
                                  journal, b.released));
                b.journal = journal;
                ++b.released;
            }
        }
        // Publishers advance it after the commit: it may be one behind what the broker has accepted.
        if (b.tail + 1 < b.head || b.tail > b.released + slots) {
            wrong(finding("control.tail",
                          "%" PRIu64 ": with head %" PRIu64 " and released %" PRIu64 " it is %" PRIu64 " to %" PRIu64,
                          b.tail, b.head, b.released, b.head ? b.head - 1 : 0, b.released + slots));
            return false;
        }
        bounds_ = b;
        return true;
    }

    // Tickets `released` to `head` - 1 are committed; so are those before the first free one; all refer to slots of
    // their own.
    template <class Sink>
    void check_entries(Sink&& wrong) {
        u64 hole = kNoTicket;
        for (u64 t = bounds_.released; t < bounds_.released + ring_.geometry().tickets; ++t) {
            const u64 e = ring_.entry(t).load(std::memory_order_acquire);
            const Place place("tickets", t & (ring_.geometry().tickets - 1));
            const bool used = ticket::is_used(e);
            if (ticket::lap(e) != ring_.lap_of(t)) {
                wrong(finding(place.name, "%#" PRIx64 ": lap %u, but ticket %" PRIu64 " has lap %u", e, ticket::lap(e),
                              t, ring_.lap_of(t)));
                continue;
            }
            if (!used) {
                if (t < bounds_.head)
                    wrong(finding(place.name,
                                  "%#" PRIx64 ": free, but ticket %" PRIu64 " was accepted (head is %" PRIu64 ")", e, t,
                                  bounds_.head));
                else if (e != ticket::free(ring_.lap_of(t)))
                    wrong(finding(place.name, "%#" PRIx64 ": free, with a slot", e));
                else if (hole == kNoTicket)
                    hole = t;
                continue;
            }
            // Publishers try the first free ticket only. (It may have been committed since we looked.)
            if (hole != kNoTicket && !ticket::is_used(ring_.entry(hole).load(std::memory_order_acquire)))
                wrong(
                    finding(place.name, "ticket %" PRIu64 " is committed, and %" PRIu64 " before it is not", t, hole));
            check_reference(t, e, place, wrong);
        }
        // `tail` moves past committed tickets only (I2), and was read before them.
        if (hole < bounds_.tail && !ticket::is_used(ring_.entry(hole).load(std::memory_order_acquire)))
            wrong(finding("control.tail", "%" PRIu64 ": ticket %" PRIu64 " is not committed", bounds_.tail, hole));
    }
    template <class Sink>
    void check_reference(u64 t, u64 e, const Place& place, Sink&& wrong) {
        const u32 s = ticket::slot(e);
        if (s >= ring_.geometry().slots) {
            wrong(finding(place.name, "slot %u of ticket %" PRIu64 ": there are %u", s, t, ring_.geometry().slots));
            return;
        }
        if (referred_[s] != kNobody) {
            wrong(finding(place.name, "slot %u of ticket %" PRIu64 " is that of ticket %" PRIu64 ", too", s, t,
                          referred_[s]));
            return;
        }
        referred_[s] = t;
        const u64 w = ring_.slot(s).word.load(std::memory_order_acquire);
        const u32 owner = slot_word::owner(w);
        if (!slot_word::is_owned(w))
            wrong(finding(place.name, "slot %u of ticket %" PRIu64 " is free (slot_words[%u] is %#" PRIx64 ")", s, t, s,
                          w));
        else if ((slot_word::generation(w) & ticket::kGenerationMask) != ticket::generation(e))
            wrong(finding(place.name,
                          "ticket %" PRIu64 " has generation %u of slot %u (slot_words[%u] is %#" PRIx64 ")", t,
                          ticket::generation(e), s, s, w));
        else if (owner >= ring_.geometry().max_publishers && (owner != kLogOwner || t >= bounds_.head))
            wrong(finding(place.name, "slot %u of ticket %" PRIu64 " has owner %u, who does not exist", s, t, owner));
    }

    // --- contents ---

    // A slot that no ticket refers to is free, or a publisher fills it: one at a time.
    template <class Sink>
    void check_slots(Sink&& wrong) {
        for (u32 s = 0; s < ring_.geometry().slots; ++s) {
            const u64 w = ring_.slot(s).word.load(std::memory_order_acquire);
            if (!slot_word::is_owned(w) && w != slot_word::free(slot_word::generation(w)))
                wrong(
                    finding(Place("slot_words", s).name, "%#" PRIx64 ": free, with owner %u", w, slot_word::owner(w)));
        }
        std::vector<const Unfinished*> filling(ring_.geometry().max_publishers);
        const auto all = unfinished();
        for (const Unfinished& u : all) {
            const Place place("slot_words", u.slot);
            if (u.owner >= filling.size())
                wrong(
                    finding(place.name, "owner %u, and no ticket refers to it: the slot is lost", u.owner).of(u.word));
            else if (ring_.publisher(u.owner).state.load(std::memory_order_acquire) ==
                     static_cast<u32>(EntryState::Free))
                wrong(finding(place.name, "owned by publisher %u, which is not connected: the slot is lost", u.owner)
                          .of(u.word));
            else if (const Unfinished* other = std::exchange(filling[u.owner], &u))
                wrong(finding(place.name,
                              "publisher %u owns it and slot %u, and has committed neither: one of them is lost",
                              u.owner, other->slot)
                          .of(u.word, other->word));
        }
    }

    template <class Sink>
    void check_batches(Sink&& wrong) {
        std::vector<u64> last(ring_.geometry().max_publishers);  // seq of each publisher's batch before
        for (u64 t = bounds_.released; t < bounds_.head; ++t) {
            const u64 e = ring_.entry(t).load(std::memory_order_acquire);
            // (In a copy of a ring at work it may be of the next lap by now.)
            if (ticket::lap(e) != ring_.lap_of(t) || ticket::is_refused(e)) continue;
            const u32 s = ticket::slot(e) % ring_.geometry().slots;
            const u32 owner = slot_word::owner(ring_.slot(s).word.load(std::memory_order_acquire));
            BatchHeader h;
            std::memcpy(&h, ring_.header_of(s), sizeof h);
            const Place place("slots", s, ".header");
            if (!well_formed(h, ring_.geometry().slot_bytes)) {
                wrong(finding(place.name, "the batch of ticket %" PRIu64 " was changed after it was accepted", t));
                continue;
            }
            if (owner >= last.size()) continue;  // its publisher is gone
            const PublisherEntry& row = ring_.publisher(owner);
            const u64 accepted = row.accepted_seq.load(std::memory_order_relaxed);
            if (h.publisher_id != row.publisher_id.load(std::memory_order_relaxed) ||
                h.incarnation != row.incarnation.load(std::memory_order_relaxed))
                wrong(finding(place.name,
                              "ticket %" PRIu64 ": the batch of publisher id %" PRIu64
                              " is in a slot of publisher %u, whose id is another one",
                              t, h.publisher_id, owner));
            else if (h.seq > accepted + (t + 1 == bounds_.head))
                wrong(finding(place.name,
                              "ticket %" PRIu64 ": batch %" PRIu64
                              " is in the log, and publishers[%u] was told %" PRIu64,
                              t, h.seq, owner, accepted));
            else if (last[owner] && h.seq != last[owner] + 1)
                wrong(finding(place.name,
                              "ticket %" PRIu64 ": batch %" PRIu64 " of publisher %u comes after batch %" PRIu64, t,
                              h.seq, owner, last[owner]));
            else
                last[owner] = h.seq;
        }
    }
    template <class Sink>
    void check_publishers(Sink&& wrong) {
        for (u32 i = 0; i < ring_.geometry().max_publishers; ++i) {
            const PublisherEntry& row = ring_.publisher(i);
            const u32 state = row.state.load(std::memory_order_acquire);
            if (state > static_cast<u32>(EntryState::Closed))
                wrong(finding(Place("publishers", i, ".state").name, "%u: there are the states 0 to 2", state));
            const u32 fault = row.fault.load(std::memory_order_relaxed);
            if (fault > static_cast<u32>(Fault::OutOfOrder))
                wrong(finding(Place("publishers", i, ".fault").name, "%u: there are the faults 0 to 2", fault));
            if (state != static_cast<u32>(EntryState::Active)) continue;
            const u64 accepted = row.accepted_seq.load(std::memory_order_acquire);
            const u64 committed = row.committed_seq.load(std::memory_order_acquire);
            if (accepted > committed + 1)  // it is told after the commit
                wrong(finding(Place("publishers", i, ".accepted_seq").name, "%" PRIu64 ": %" PRIu64 " are committed",
                              accepted, committed)
                          .of(accepted, committed, row.attached_ns.load(std::memory_order_relaxed)));
        }
    }
    template <class Sink>
    void check_subscribers(Sink&& wrong) {
        for (u32 i = 0; i < ring_.geometry().max_subscribers; ++i) {
            const SubscriberEntry& row = ring_.subscriber(i);
            const u32 state = row.state.load(std::memory_order_acquire);
            if (state > static_cast<u32>(SubscriberState::Closed))
                wrong(finding(Place("subscribers", i, ".state").name, "%u: there are the states 0 to 4", state));
            const u32 mode = row.mode.load(std::memory_order_relaxed);
            if (mode > static_cast<u32>(SubscribeMode::Lossy))
                wrong(finding(Place("subscribers", i, ".mode").name, "%u: there are the modes 0 and 1", mode));
            if (state != static_cast<u32>(SubscriberState::Active)) continue;
            const u64 cursor = row.cursor.load(std::memory_order_acquire);
            const bool gate = mode == static_cast<u32>(SubscribeMode::Reliable);
            if (cursor > bounds_.head || (gate && cursor < bounds_.released))
                wrong(finding(Place("subscribers", i, ".cursor").name,
                              "%" PRIu64 ": the log holds %" PRIu64 " to %" PRIu64, cursor, bounds_.released,
                              bounds_.head)
                          .of(cursor, row.attached_ns.load(std::memory_order_relaxed)));
        }
    }

    Ring ring_;
    LogBounds bounds_;
    bool bounded_ = false;
    std::vector<u64> referred_;  // by slot: the ticket that refers to it
};

}  // namespace embar

// The broker's log: what it knows of one ring, of which it is the sole consumer and the sole reaper.
//
//   accept    look at the next ticket, copy the header once, check it, drop duplicates, acknowledge
//   pass      every subscriber is done with the ticket: it no longer counts against its publisher's quota
//   release   recycle the ticket, free the slot, wake whoever waits for it
//   reap      free what publishers and subscribers that are gone left behind (gates.hpp: subscribers)
//   recover   go on where the broker before this one was killed, whatever it was about to store
//
// An acknowledgement (`accepted_seq`) is absolute, and only ever the number of batches that form an unbroken
// prefix of the publisher's sequence, each wholly in the log: it is stored after the batch's own ticket was
// accepted, and a batch that would leave a gap is refused.
//
// released <= passed <= head. What lies between `released` and `passed` is retained for subscribers that come
// late or are lossy; it is given up as soon as a publisher finds no free slot.
//
// What the next step depends on is kept in private memory and only published to the segment: nobody can make the broker
// acknowledge, release or skip by writing there. A new broker believes the segment once, after it has checked it.
#pragma once

#include <vector>

#include "gates.hpp"
#include "invariants.hpp"
#include "peers.hpp"

namespace embar {

struct Accepted {
    u64 ticket;
    Ring::Committed where;
    BatchHeader header;
    Verdict verdict;
};

// One thread at a time, but for first_accept_ns().
class Log {
public:
    // What was found when it began.
    struct Recovered {
        u64 head = 0;                  // batches that were accepted before
        u64 unread = 0;                // of them still in the ring
        u64 unaccepted = 0;            // committed since, and accepted from now on
        bool release = false;          // was cut short, and is finished
        bool acknowledgement = false;  // the same
        u32 slots = 0;                 // that were being filled from a network, and are free again
    };

    // `lock_fd`: an open file description of the segment on which the broker's byte is locked; -1 on a
    // plain buffer (tests), where nobody is ever found dead. Without `stage_times` no clock is read for them.
    // `retain`: batches that stay readable after everybody has read them.
    // When corruption() tells something afterwards, the segment is quarantined.
    Log(Ring ring, int lock_fd, bool stage_times, u32 retain)
        : ring_(ring), stage_times_(stage_times), gates_(ring, lock_fd, retain), peers_(ring, lock_fd),
          accepted_(ring.geometry().tickets), held_(ring.geometry().slots) {
        recover();
    }

    const Ring& ring() const noexcept { return ring_; }
    // What is wrong with the segment, if anything.
    const Finding& corruption() const noexcept { return corruption_; }
    const Recovered& recovered() const noexcept { return recovered_; }
    Peers& peers() noexcept { return peers_; }
    Gates& gates() noexcept { return gates_; }
    struct Position {
        u64 released, passed, head;
    };
    Position position() const noexcept { return {released_, passed_, head_}; }
    // CLOCK_MONOTONIC of the first batch it accepted, 0: there was none yet. Any thread.
    u64 first_accept_ns() const noexcept { return first_accept_ns_.load(std::memory_order_relaxed); }

    // Accepts the next committed ticket.
    // => true: `out` tells what it was; it holds its slot until release_next(). => false: there is none, or
    // the segment is corrupt (corruption() says what).
    bool accept(Accepted& out) noexcept {
        if (head_ - released_ >= ring_.geometry().tickets) return false;  // everything waits for its release
        const Ring::Look look = ring_.look(head_, out.where);
        if (look == Ring::Look::Empty) return false;
        if (look == Ring::Look::Corrupt) {
            diagnose("a ticket entry and its slot word do not belong together");
            return false;
        }
        if (held_[out.where.slot]) {
            diagnose("two tickets refer to one slot");
            return false;
        }
        held_[out.where.slot] = true;
        const u64 begin = clock();
        Control& c = ring_.control();
        std::memcpy(&out.header, ring_.header_of(out.where.slot), sizeof out.header);  // the one copy
        out.ticket = head_;
        out.verdict = peers_.judge(out.header, out.where.owner);
        switch (out.verdict) {
            case Verdict::Accepted:
                Histogram::add(c.batches, 1);
                Histogram::add(c.messages, out.header.messages);
                Histogram::add(c.payload_bytes, out.header.payload_bytes);
                break;
            case Verdict::Duplicate: Histogram::add(c.duplicated, 1); break;
            case Verdict::OutOfOrder: Histogram::add(c.out_of_order, 1); break;
            case Verdict::BadHeader: Histogram::add(c.corrupt, 1); break;
        }
        if (out.verdict != Verdict::Accepted) ring_.refuse(head_);
        accepted_[head_ % accepted_.size()] = {out.where, peers_.record(out.header, out.where.owner, out.verdict)};
        ++head_;
        c.head.store(head_, std::memory_order_release);  // pairs with Subscriber::take()
        peers_.acknowledge(out.where.owner);             // after `head`: see recover()
        if (first_accept_ns_.load(std::memory_order_relaxed) == 0) [[unlikely]]
            first_accept_ns_.store(now_ns(), std::memory_order_relaxed);
        if (stage_times_) {
            c.validate.record(now_ns() - begin);
            if (out.verdict == Verdict::Accepted && out.header.committed_ns <= begin)
                c.queue.record(begin - out.header.committed_ns);
        }
        return true;
    }

    // Passes and releases what every subscriber has passed, and wakes who waits for it. Keeps as much as is to be
    // retained, unless a slot is `wanted` and none is free.
    void release(bool wanted) noexcept {
        const u64 gate = gates_.lowest(head_), keep = gates_.retained();
        // A slot is free before its publisher hears that it may claim another one.
        for (; passed_ < gate; pass_next())
            while (released_ + keep <= passed_) free_next();
        while (released_ + keep < std::min(passed_, gate)) free_next();
        if (wanted)
            while (released_ < std::min(passed_, gate) && !ring_.any_free()) free_next();
    }
    // Releases the oldest accepted ticket, retained or not. => false: there is none, or a subscriber holds it.
    bool release_next() noexcept {
        if (released_ >= gates_.lowest(head_)) return false;
        free_next();
        if (passed_ < released_) pass_next();
        return true;
    }

    // Frees what participants that are gone left behind. => rows of publishers.
    u32 reap() noexcept {
        gates_.reap();
        return peers_.reap(head_, [this](u32 i) { inherit(i); });
    }
    // The same for one publisher whose owner is known to be gone. => false: come back after the next accept.
    bool reap_row(u32 i) noexcept {
        return peers_.reap_row(i, head_, [this](u32 row) { inherit(row); });
    }

    // Has anybody written where only the broker writes, or committed where nobody can? Each step depends on private
    // memory alone, but who reads these words is misled: publishers may wait for ever at a `tail` that was changed.
    // Some loads per row and ticket. => false: corruption() says what.
    bool audit() noexcept {
        const Control& c = ring_.control();
        const u64 head = c.head.load(std::memory_order_relaxed), released = c.released.load(std::memory_order_relaxed);
        const u32 state = c.state.load(std::memory_order_relaxed);
        constexpr const char* kOther = "%" PRIu64 ": the broker has stored %" PRIu64;
        if (corruption_) return false;
        if (head != head_)
            corruption_.set("control.head", kOther, head, head_);
        else if (released != released_)
            corruption_.set("control.released", kOther, released, released_);
        else if (state != static_cast<u32>(BrokerState::Serving))
            corruption_.set("control.state", "%u: the broker serves, which is %u", state,
                            static_cast<u32>(BrokerState::Serving));
        else if (peers_.audit(corruption_))
            find_damage();
        return !corruption_;
    }

protected:
    void end(BrokerState state) noexcept {
        ring_.control().state.store(static_cast<u32>(state), std::memory_order_seq_cst);
        peers_.wake_all();
        gates_.tell();
    }
    // The end of a segment whose words make no sense: nobody uses it any more, and it stays for whoever looks into it.
    [[gnu::cold]] void quarantine() noexcept {
        auto* header = ring_.segment_header();
        if (header->damage[0] == 0)
            std::snprintf(header->damage, sizeof header->damage, "%s: %s", corruption_.field, corruption_.text);
        end(BrokerState::Quarantined);
    }

    struct InLog {
        Ring::Committed where;
        u64 batches;  // for Peers::pass()
    };

    Ring ring_;
    bool stage_times_;
    Gates gates_;
    Peers peers_;
    std::vector<InLog> accepted_;  // by ticket: what its release needs, out of others' reach
    std::vector<bool> held_;       // by slot: accepted and not released
    u64 head_ = 0;
    u64 passed_ = 0;    // the oldest ticket that a subscriber has not passed
    u64 released_ = 0;  // the oldest ticket that holds its slot
    Finding corruption_;

private:
    u64 clock() const noexcept { return stage_times_ ? now_ns() : 0; }

    // Every subscriber has passed the oldest ticket that was not passed.
    void pass_next() noexcept {
        const InLog& batch = accepted_[passed_ % accepted_.size()];
        ++passed_;
        peers_.pass(batch.where.owner, batch.batches);
    }
    void free_next() noexcept {
        const u64 begin = clock();
        const Ring::Committed where = accepted_[released_ % accepted_.size()].where;
        held_[where.slot] = false;
        ring_.release(released_, where);
        ++released_;
        ring_.control().released.store(released_, std::memory_order_release);
        if (ring_.control().space_waiters.load(std::memory_order_seq_cst)) peers_.wake_one_space_waiter();
        if (stage_times_) ring_.control().release.record(now_ns() - begin);
    }
    // The slots of publisher i's batches that are in the log are the log's from now on.
    void inherit(u32 i) noexcept {
        for (u64 t = released_; t < head_; ++t) {
            Ring::Committed& where = accepted_[t % accepted_.size()].where;
            if (where.owner != i) continue;
            where.owner = kLogOwner;
            ring_.inherit(where);
        }
    }

    // Some word cannot be: which? `otherwise`: what to say when all words look right by now.
    [[gnu::cold]] void diagnose(const char* otherwise) noexcept {
        find_damage();
        if (!corruption_) corruption_.set("tickets", "ticket %" PRIu64 ": %s", head_, otherwise);
    }
    LogBounds find_damage() noexcept {
        Invariants invariants(ring_);
        invariants.check_structure([this](const Finding& f) {
            if (!corruption_) corruption_ = f;
        });
        return invariants.bounds();
    }

    // --- restart ---

    // In a new segment there is nothing to recover.
    void recover() {
        if (ring_.control().state.load(std::memory_order_acquire) == static_cast<u32>(BrokerState::Quarantined)) {
            corruption_.set("control.state", "%u: a broker has quarantined it",
                            static_cast<u32>(BrokerState::Quarantined));
            return;
        }
        const LogBounds bounds = find_damage();
        if (!corruption_) recover_log(bounds);
        if (corruption_) quarantine();
    }
    void recover_log(const LogBounds& found) {
        if (found.release_cut_short) finish_release(found);
        released_ = found.released;
        head_ = recovered_.head = found.head;
        recovered_.unread = head_ - released_;
        if (!peers_.recover(corruption_)) return;
        Ring::Committed where;
        BatchHeader h;
        for (u64 t = released_; t < head_; ++t) {
            if (!ring_.look_again(t, where) || held_[where.slot]) return diagnose("it changed while it was looked at");
            held_[where.slot] = true;
            std::memcpy(&h, ring_.header_of(where.slot), sizeof h);  // the one copy
            const u64 batches = ring_.is_refused(t)
                                    ? 0
                                    : peers_.recover_batch(h, where.owner, t + 1 == head_, recovered_.acknowledgement);
            accepted_[t % accepted_.size()] = {where, batches};
        }
        peers_.recover_passed();
        gates_.recover(released_, head_);
        passed_ = released_;
        for (const u64 gate = gates_.lowest(head_); passed_ < gate;) pass_next();
        for (u64 t = head_; t < released_ + ring_.geometry().tickets && ring_.holds(t); ++t) ++recovered_.unaccepted;
        peers_.adopt([&](auto&& batch) {
            for (u64 t = head_; t < head_ + recovered_.unaccepted; ++t) {
                if (ring_.look(t, where) != Ring::Look::Committed) continue;  // accept() will tell
                std::memcpy(&h, ring_.header_of(where.slot), sizeof h);
                batch(h, where.owner);
            }
        });
        free_half_received();
    }
    // The slot may be free already, and even be somebody else's: then its generation is another one.
    void finish_release(const LogBounds& found) noexcept {
        std::atomic<u64>& word = ring_.slot(ticket::slot(found.journal)).word;
        const u64 w = word.load(std::memory_order_acquire), g = slot_word::generation(w);
        if (slot_word::is_owned(w) && (g & ticket::kGenerationMask) == ticket::generation(found.journal))
            word.store(slot_word::free(g + 1), std::memory_order_seq_cst);
        ring_.control().released.store(found.released, std::memory_order_release);
        recovered_.release = true;
    }
    // The slots that the process of the broker before was filling from a network: those of rows that are kept, and of
    // no ticket.
    void free_half_received() {
        std::vector<bool> committed = held_;
        for (u64 t = head_; t < head_ + recovered_.unaccepted; ++t) {
            const u32 s = ticket::slot(ring_.entry(t).load(std::memory_order_acquire));
            if (s < committed.size()) committed[s] = true;
        }
        for (u32 s = 0; s < committed.size(); ++s) {
            const u64 w = ring_.slot(s).word.load(std::memory_order_acquire);
            if (committed[s] || !slot_word::is_owned(w) || !peers_.is_kept(slot_word::owner(w))) continue;
            ring_.slot(s).word.store(slot_word::free(slot_word::generation(w) + 1), std::memory_order_seq_cst);
            ++recovered_.slots;
        }
    }

    std::atomic<u64> first_accept_ns_{0};
    Recovered recovered_;
};

}  // namespace embar

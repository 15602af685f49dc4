// The publishers of a ring, as its broker sees them: what they may send, what they are told, who is gone.
//
//   judge       is this the next batch of its publisher?
//   record      it was accepted, or refused
//   acknowledge tell that it is in the log
//   pass        it is no longer in flight: every subscriber is done with it
//   reap        free the slots and rows of those that left or died
//   recover     go on where the broker before this one was killed
//
// Sequence numbers are kept in private memory and only published to the segment: nobody can make the broker
// acknowledge or skip by writing there.
#pragma once

#include <vector>

#include "invariants.hpp"
#include "kept.hpp"
#include "ring.hpp"
#include "waiting.hpp"

namespace embar {

enum class Verdict { Accepted, Duplicate, OutOfOrder, BadHeader };

class Peers {
public:
    // Of a publisher on a network whose row the broker keeps.
    struct Adopted {
        u32 index;
        u64 publisher_id;
        u64 incarnation;
        u64 received_seq;  // every batch up to this one is committed
        u32 quota;
        u32 ack;
    };

    // `lock_fd` -1: a plain buffer, where nobody is ever found dead.
    Peers(Ring ring, int lock_fd)
        : ring_(ring), lock_fd_(lock_fd), peers_(ring.geometry().max_publishers),
          kept_(lock_fd, ring.geometry().max_publishers, publisher_lock) {}

    // --- batches ---

    Verdict judge(const BatchHeader& h, u32 owner) const noexcept {
        const PublisherEntry& row = ring_.publisher(owner);
        if (!well_formed(h, ring_.geometry().slot_bytes) || !is_of(h, row)) return Verdict::BadHeader;
        const u64 last = peers_[owner].accepted_seq;
        if (h.seq <= last) return Verdict::Duplicate;
        return h.seq == last + 1 ? Verdict::Accepted : Verdict::OutOfOrder;
    }
    // => what pass() is to tell once this one is passed: how many of its publisher's batches there were up to it. That
    // is its number, unless some were refused.
    u64 record(const BatchHeader& h, u32 owner, Verdict verdict) noexcept {
        Peer& peer = peers_[owner];
        PublisherEntry& row = ring_.publisher(owner);
        switch (verdict) {
            case Verdict::Accepted:
                Histogram::add(row.accepted_messages, h.messages);
                Histogram::add(row.accepted_bytes, h.payload_bytes);
                peer.accepted_seq = h.seq;
                peer.batches = std::max(peer.batches + 1, h.seq);
                return peer.batches;
            case Verdict::Duplicate: break;
            case Verdict::OutOfOrder: accuse(row, Fault::OutOfOrder, h.seq); break;
            case Verdict::BadHeader: accuse(row, Fault::BadHeader, peer.accepted_seq + 1); break;
        }
        return ++peer.batches;
    }
    // seq_cst: the condition of the publisher's eventcount.
    void acknowledge(u32 owner) noexcept {
        ring_.publisher(owner).accepted_seq.store(peers_[owner].accepted_seq, std::memory_order_seq_cst);
    }
    // `batches`: what record() returned. seq_cst: the condition of the publisher's eventcount.
    void pass(u32 owner, u64 batches) noexcept {
        if (owner >= peers_.size()) return;  // its publisher is gone
        Peer& peer = peers_[owner];
        if (batches <= peer.passed) return;  // after a restart: it was told
        peer.passed = batches;
        ring_.publisher(owner).released_batches.store(batches, std::memory_order_seq_cst);
        wake(owner);
    }

    // Do the rows say what the broker has told? => false: somebody else wrote there, `found` says where.
    bool audit(Finding& found) const noexcept {
        for (u32 i = 0; i < peers_.size() && !found; ++i) {
            const PublisherEntry& row = ring_.publisher(i);
            const u64 accepted = row.accepted_seq.load(std::memory_order_relaxed);
            const u64 passed = row.released_batches.load(std::memory_order_relaxed);
            if (accepted != peers_[i].accepted_seq)
                wrong(found, i, "accepted_seq", accepted, "accepted", peers_[i].accepted_seq);
            // It is free only after a reap, which forgets what came before.
            const u32 state = row.state.load(std::memory_order_relaxed);
            if (state == static_cast<u32>(EntryState::Free) && peers_[i].batches)
                wrong(found, i, "state", state, "accepted", peers_[i].batches);
            if (passed != peers_[i].passed) wrong(found, i, "released_batches", passed, "passed", peers_[i].passed);
        }
        return !found;
    }

    // --- waking ---

    bool wake(u32 owner) noexcept {
        if (owner >= peers_.size()) return false;
        PublisherEntry& row = ring_.publisher(owner);
        if (!wake_if_sleeping(row.event, row.sleeping)) return false;
        Histogram::add(ring_.control().wakes_sent, 1);
        return true;
    }
    void wake_all() noexcept {
        for (u32 i = 0; i < peers_.size(); ++i) wake(i);
    }
    // At the start of a broker, whatever their flags say: the one before it may have taken them back, and not come to
    // the wake-up.
    void rouse_all() noexcept {
        for (u32 i = 0; i < peers_.size(); ++i) {
            PublisherEntry& row = ring_.publisher(i);
            if (row.state.load(std::memory_order_acquire) == static_cast<u32>(EntryState::Free)) continue;
            // Whoever begins to wait after this look sets both words itself, this one first.
            if (row.wants_any_slot.load(std::memory_order_seq_cst))
                ring_.control().space_waiters.store(1, std::memory_order_seq_cst);
            wake_whoever_sleeps(row.event, row.sleeping);
        }
    }
    // One slot came free, one waiter is woken; one that is awake looks for itself and does not count. The flag
    // is taken back before the search: a publisher that starts to wait after we passed its row sets it again.
    void wake_one_space_waiter() noexcept {
        Control& c = ring_.control();
        c.space_waiters.store(0, std::memory_order_seq_cst);  // pairs with PublisherRow::wait_space()
        const auto rows = static_cast<u32>(peers_.size());
        for (u32 k = 0; k < rows; ++k) {
            const u32 i = (next_waiter_ + k) % rows;
            if (ring_.publisher(i).wants_any_slot.load(std::memory_order_seq_cst) == 0) continue;
            c.space_waiters.store(1, std::memory_order_seq_cst);  // there may be more
            if (!wake(i)) continue;
            next_waiter_ = (i + 1) % rows;
            return;
        }
    }

    // --- death ---

    // Frees the slots and rows of publishers that are gone. `inherit(i)` makes the slots of i's batches that are in the
    // log the log's. => rows freed.
    template <class Inherit>
    u32 reap(u64 head, Inherit&& inherit) noexcept {
        if (lock_fd_ < 0) return 0;
        u32 rows = 0, attached = 0;
        kept_.give_up_old();
        for (u32 i = 0; i < peers_.size(); ++i) {
            const auto state = static_cast<EntryState>(ring_.publisher(i).state.load(std::memory_order_acquire));
            if (state == EntryState::Free) continue;  // pairs with the release store that ends an attach
            ++attached;
            if (state == EntryState::Closed) {  // pairs with the store in PublisherRow::leave()
                // The owner's own word that it will not touch anything again.
                if (reap_row(i, head, inherit)) ++rows, --attached;
                continue;
            }
            if (kept_.has(i)) continue;
            // Else only the kernel's word counts. While we hold the byte, nobody can take the row.
            if (!try_lock_byte(lock_fd_, publisher_lock(i))) continue;
            if (reap_row(i, head, inherit)) ++rows, --attached;
            unlock_byte(lock_fd_, publisher_lock(i));
        }
        ring_.control().attached.store(attached, std::memory_order_relaxed);
        return rows;
    }
    // Frees row i and its slots if it has no batch that is not accepted; those that are in the log already are the
    // log's from now on. The caller knows that the owner is gone. => false: come back after the next accept.
    // Whatever store it is cut short at: the row is not Free before the last, and everything is done again.
    template <class Inherit>
    bool reap_row(u32 i, u64 head, Inherit&& inherit) noexcept {
        if (ring_.has_committed(i, head)) return false;
        PublisherEntry& row = ring_.publisher(i);
        Control& c = ring_.control();
        inherit(i);
        // Acquire: if it left in order since reap() looked, this orders its last writes before.
        if (row.state.load(std::memory_order_acquire) == static_cast<u32>(EntryState::Active))
            Histogram::add(c.reaped_publishers, 1);
        const u32 slots = ring_.reap_slots(i);
        Histogram::add(c.reaped_slots, slots);
        peers_[i] = Peer{};
        clear(row);
        row.state.store(static_cast<u32>(EntryState::Free), std::memory_order_release);
        // One more than it had slots: it may have been woken for a free one, and died with that.
        for (u32 n = 0; n <= slots && c.space_waiters.load(std::memory_order_seq_cst); ++n) wake_one_space_waiter();
        return true;
    }

    // --- restart ---

    // What the rows say: up to where batches were acknowledged, and passed. => false: one cannot be, `found` says
    // which.
    bool recover(Finding& found) noexcept {
        for (u32 i = 0; i < peers_.size(); ++i) {
            const PublisherEntry& row = ring_.publisher(i);
            if (row.state.load(std::memory_order_acquire) == static_cast<u32>(EntryState::Free)) continue;
            const u64 accepted = row.accepted_seq.load(std::memory_order_relaxed);
            const u64 passed = row.released_batches.load(std::memory_order_relaxed);
            peers_[i] = {accepted, std::max(accepted, passed), passed, 0};
            // What is believed here is told the publisher. It stores this after the commit: one may be missing.
            const u64 committed = row.committed_seq.load(std::memory_order_acquire);
            if (accepted && accepted - 1 > committed) wrong(found, i, "accepted_seq", accepted, "committed", committed);
            if (passed && passed - 1 > committed) wrong(found, i, "released_batches", passed, "committed", committed);
        }
        return !found;
    }
    // A batch in the log, in the order of the tickets, `last` or not. => as record(). The last one may have been
    // accepted without its acknowledgement: `redone` is set then.
    u64 recover_batch(const BatchHeader& h, u32 owner, bool last, bool& redone) noexcept {
        if (owner >= peers_.size() || !well_formed(h, ring_.geometry().slot_bytes) || !is_of(h, ring_.publisher(owner)))
            return 0;
        Peer& peer = peers_[owner];
        if (last && h.seq == peer.accepted_seq + 1) {
            peer.accepted_seq = h.seq;
            peer.batches = std::max(peer.batches, h.seq);
            acknowledge(owner);
            redone = true;
        }
        if (!peer.first_in_log) peer.first_in_log = h.seq;
        return h.seq;
    }
    // After the last of them: what is in the log no more was passed, and the broker before may not have come to
    // telling.
    void recover_passed() noexcept {
        for (u32 i = 0; i < peers_.size(); ++i)
            pass(i, peers_[i].first_in_log ? peers_[i].first_in_log - 1 : peers_[i].accepted_seq);
    }
    // Keeps the rows of publishers on a network, whose place was held by the process of the broker before this one.
    // `log`: what is not accepted yet, (header, owner) by ticket.
    template <class Unaccepted>
    void adopt(Unaccepted&& unaccepted) {
        for (u32 i = 0; i < peers_.size(); ++i) {
            PublisherEntry& row = ring_.publisher(i);
            if (row.state.load(std::memory_order_acquire) != static_cast<u32>(EntryState::Active) ||
                row.remote.load(std::memory_order_relaxed) == 0 || !kept_.keep(i))
                continue;
            Adopted a{i,
                      row.publisher_id.load(std::memory_order_relaxed),
                      row.incarnation.load(std::memory_order_relaxed),
                      peers_[i].accepted_seq,
                      row.quota.load(std::memory_order_relaxed),
                      row.ack.load(std::memory_order_relaxed)};
            unaccepted([&](const BatchHeader& h, u32 owner) {
                if (owner == i && is_of(h, row) && h.seq == a.received_seq + 1) ++a.received_seq;
            });
            adopted_.push_back(a);
        }
    }
    const std::vector<Adopted>& adopted() const noexcept { return adopted_; }
    bool is_kept(u32 owner) const noexcept { return owner < peers_.size() && kept_.has(owner); }
    // Any thread.
    bool take_over(u32 i, int lock_fd) noexcept { return i < peers_.size() && kept_.take_over(i, lock_fd); }

private:
    struct Peer {
        u64 accepted_seq = 0;
        u64 batches = 0;       // that came, refused ones included
        u64 passed = 0;        // of them
        u64 first_in_log = 0;  // at the start of the broker
    };

    // The first one is the one to tell.
    static void wrong(Finding& found, u32 i, const char* name, u64 value, const char* what, u64 there_are) noexcept {
        if (found) return;
        char field[sizeof found.field];
        std::snprintf(field, sizeof field, "publishers[%u].%s", i, name);
        found.set(field, "%" PRIu64 ", but %" PRIu64 " batches are %s", value, there_are, what);
    }
    static bool is_of(const BatchHeader& h, const PublisherEntry& row) noexcept {
        return h.publisher_id == row.publisher_id.load(std::memory_order_relaxed) &&
               h.incarnation == row.incarnation.load(std::memory_order_relaxed);
    }
    void accuse(PublisherEntry& row, Fault fault, u64 seq) noexcept {
        if (row.fault.load(std::memory_order_relaxed)) return;  // the first fault is the one to tell
        row.fault_seq.store(seq, std::memory_order_relaxed);
        row.fault.store(static_cast<u32>(fault), std::memory_order_seq_cst);  // seq_cst: an eventcount's condition
    }
    static void clear(PublisherEntry& row) noexcept {
        // From here on the row says nothing any more, but that it is to be cleared.
        row.state.store(static_cast<u32>(EntryState::Closed), std::memory_order_release);
        row.pid.store(0, std::memory_order_relaxed);
        for (auto* w : {&row.publisher_id, &row.incarnation, &row.attached_ns, &row.accepted_seq, &row.released_batches,
                        &row.accepted_messages, &row.accepted_bytes, &row.fault_seq, &row.committed_seq, &row.messages,
                        &row.payload_bytes, &row.space_waits, &row.ack_waits, &row.wakes_sent, &row.missed_wakeups,
                        &row.nontemporal_batches})
            w->store(0, std::memory_order_relaxed);
        for (auto* w : {&row.quota, &row.ack, &row.remote, &row.fault, &row.event, &row.sleeping, &row.wants_any_slot})
            w->store(0, std::memory_order_relaxed);
        for (auto* h :
             {&row.buffer_write, &row.get_buffer, &row.send_payload, &row.wait_space, &row.wait_ack, &row.receive})
            h->reset();
    }

    Ring ring_;
    int lock_fd_;
    std::vector<Peer> peers_;
    KeptRows kept_;
    std::vector<Adopted> adopted_;
    u32 next_waiter_ = 0;
};

}  // namespace embar

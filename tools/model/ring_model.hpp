// The ring, its death and its recovery: every store to shared memory is a step, and before each anybody may be killed.
//
// Written after _native/ring.hpp, publisher_row.hpp, log.hpp, broker.hpp, peers.hpp, gates.hpp, subscriber.hpp. What is
// left out: statistics, sleeping (sleep_model.hpp, space_model.hpp), the size of anything. What is in one step although
// it is several loads: words that only the process itself can change at that time.
//
// A kill and the drop of the dead one's locks are one step: between the two nobody can learn of the death, so that is
// as if it were killed later. What matters is that the lock is not dropped before the last store (LockDropsFirst).
//
// What the broker does next in its loop is left open: more orders than the real one's are explored, never fewer.
#pragma once

#include <algorithm>

#include "ring_state.hpp"

namespace model::ring {

class RingModel {
public:
    using State = ring::State;

    RingModel(const Config& config, Mutant mutant) : c_(config), mutant_(mutant) {}

    State initial() const {
        State s{};
        for (unsigned i = 0; i < c_.publishers; ++i) {
            s.publisher[i].at = PublisherAt::Attach;
            s.publisher[i].who = static_cast<u8>(i);
        }
        if (c_.subscribers) s.subscriber.at = SubscriberAt::Attach;
        s.publisher_kills = c_.publisher_kills;
        s.broker_kills = c_.broker_kills;
        s.subscriber_kills = c_.subscriber_kills;
        s.new_publishers = c_.new_publishers;
        s.new_subscribers = c_.new_subscribers;
        return s;
    }

    template <class Emit>
    void steps(const State& s, Emit&& emit) const {
        if (s.broken != Broken::Nothing) return;
        for (unsigned i = 0; i < c_.publishers; ++i) {
            publish(s, i, emit);
            end_publisher(s, i, emit);
        }
        if (c_.subscribers) {
            subscribe(s, emit);
            end_subscriber(s, emit);
        }
        serve(s, emit);
        if (s.broker.at != BrokerAt::Absent && s.broker_kills) {
            State n = s;
            --n.broker_kills;
            n.broker = Broker{};
            for (Lock& lock : n.lock)
                if (lock == Lock::Broker) lock = Lock::Free;
            if (n.subscriber_lock == Lock::Broker) n.subscriber_lock = Lock::Free;
            emit(n, Kind::Fault, "the broker is killed");
        }
    }

    const char* wrong(const State& s) const {
        switch (s.broken) {
            case Broken::Nothing: break;
            case Broken::Torn: return "torn or misowned payload";
            case Broken::Lost: return "committed batch lost";
            case Broken::Duplicate: return "batch delivered twice";
            case Broken::Order: return "publisher order";
            case Broken::FalseAck: return "acknowledged, not in the log";
            case Broken::Corrupt: return "sound ring called corrupt";
        }
        for (unsigned i = 0; i < c_.publishers; ++i) {
            const Publisher& p = s.publisher[i];
            const bool fills = p.at >= PublisherAt::Half && p.at <= PublisherAt::Commit;
            if (fills && s.slot[p.slot] != slot_word::owned(p.generation, i)) return "torn or misowned payload";
            if (p.at >= PublisherAt::Claim && s.row[i].accepted_seq > s.logged[p.who])
                return "acknowledged, not in the log";
        }
        // What is in the log can be read until its entry is recycled.
        for (u8 t = s.released; t < s.head; ++t) {
            const u16 e = s.entry[t % c_.tickets];
            if (ticket::lap(e) != lap(t) || !ticket::is_used(e) || ticket::is_refused(e)) continue;
            const u8 w = s.slot[ticket::slot(e)];
            if (!slot_word::is_owned(w) || slot_word::generation(w) != ticket::generation(e) ||
                s.bytes[ticket::slot(e)] != s.log[t])
                return "torn or misowned payload";
        }
        return nullptr;
    }
    bool quiescent(const State& s) const {
        return s.broken == Broken::Nothing && living_done(s) && !leaks(s) && !lost(s);
    }
    const char* unfinished(const State& s) const {
        if (!living_done(s)) return "the living cannot go on";
        return lost(s) ? "committed batch lost" : "leaked slot";
    }

private:
    bool is(Mutant m) const { return mutant_ == m; }
    unsigned lap(unsigned t) const { return t / c_.tickets; }
    u8 batches_of(u8 who) const { return who < c_.publishers ? c_.batches : 1; }

    // --- what shall be in the end ---

    bool living_done(const State& s) const {
        for (unsigned i = 0; i < c_.publishers; ++i)
            if (s.publisher[i].at != PublisherAt::Absent) return false;
        if (s.subscriber.at != SubscriberAt::Absent &&
            (s.subscriber.at != SubscriberAt::Wait || s.subscriber.next != s.head))
            return false;
        return s.broker.at == BrokerAt::Loop;
    }
    bool lost(const State& s) const {
        for (unsigned who = 0; who < kMaxBatchOwners; ++who)
            if (s.committed[who] != s.logged[who]) return true;
        return false;
    }
    // Rows that are not free again, or slots that are not, but for what is retained.
    bool leaks(const State& s) const {
        for (unsigned i = 0; i < c_.publishers; ++i)
            if (s.row[i].state != RowState::Free) return true;
        if (s.subscriber.at == SubscriberAt::Absent && s.subscriber_row.state != RowState::Free) return true;
        unsigned owned = 0;
        for (unsigned k = 0; k < c_.slots; ++k) owned += slot_word::is_owned(s.slot[k]);
        return owned != unsigned(s.head - s.released) || owned > std::min(c_.retain, c_.slots);
    }

    // --- publishers ---

    bool any_free(const State& s) const {
        for (unsigned k = 0; k < c_.slots; ++k)
            if (!slot_word::is_owned(s.slot[k])) return true;
        return false;
    }
    bool may_claim(const State& s, unsigned i) const {
        const Publisher& p = s.publisher[i];
        return p.at == PublisherAt::Claim && p.committed - std::min(p.committed, s.row[i].released_batches) < c_.quota;
    }
    bool wanted(const State& s) const {
        for (unsigned i = 0; i < c_.publishers; ++i)
            if (may_claim(s, i)) return true;
        return false;
    }

    template <class Emit>
    void publish(const State& s, unsigned i, Emit&& emit) const {
        static constexpr const char* kNames[][10] = {
            {"publisher 0: locks its row", "publisher 0: writes who it is", "publisher 0: its row is Active",
             "publisher 0: claims a slot", "publisher 0: fills half of it", "publisher 0: fills the rest",
             "publisher 0: reads tail", "publisher 0: commits", "publisher 0: moves tail", "publisher 0: leaves"},
            {"publisher 1: locks its row", "publisher 1: writes who it is", "publisher 1: its row is Active",
             "publisher 1: claims a slot", "publisher 1: fills half of it", "publisher 1: fills the rest",
             "publisher 1: reads tail", "publisher 1: commits", "publisher 1: moves tail", "publisher 1: leaves"}};
        const char* const* name = kNames[i];
        State n = s;
        Publisher& p = n.publisher[i];
        auto& row = n.row[i];
        const auto go = [&](PublisherAt at, const char* what) {
            p.at = at;
            emit(n, Kind::Work, what);
        };
        // The batch it is at: the first one twice, if it repeats itself.
        const bool repeat = c_.repeats && p.who == 0 && p.committed == 1;
        const u8 id = batch::id(p.who, repeat ? 1 : p.batches + 1);
        switch (p.at) {
            case PublisherAt::Absent: break;
            case PublisherAt::Attach:
                if (row.state != RowState::Free || s.lock[i] != Lock::Free) break;
                n.lock[i] = Lock::Owner;
                go(PublisherAt::LookAgain, name[0]);
                break;
            case PublisherAt::LookAgain:
                if (row.state != RowState::Free) {
                    n.lock[i] = Lock::Free;
                    go(PublisherAt::Attach, "publisher: the row is not free any more");
                    break;
                }
                row.who = p.who;
                go(PublisherAt::Activate, name[1]);
                break;
            case PublisherAt::Activate:
                row.state = RowState::Active;
                go(PublisherAt::Claim, name[2]);
                break;
            case PublisherAt::Claim:
                if (!may_claim(s, i)) break;
                for (unsigned k = 0; k < c_.slots; ++k) {  // any free one: the CAS decides
                    if (slot_word::is_owned(s.slot[k])) continue;
                    p.slot = static_cast<u8>(k);
                    p.generation = slot_word::generation(s.slot[k]);
                    n.slot[k] = slot_word::owned(p.generation, i);
                    go(PublisherAt::Half, name[3]);
                    n.slot[k] = s.slot[k];
                }
                break;
            case PublisherAt::Half:
                n.bytes[p.slot] = id | batch::kHalf;
                go(PublisherAt::Whole, name[4]);
                break;
            case PublisherAt::Whole:
                n.bytes[p.slot] = id;
                go(PublisherAt::Tail, name[5]);
                break;
            case PublisherAt::Tail:
                p.ticket = s.tail;
                if (is(Mutant::TicketBeforeCommit)) n.tail = s.tail + 1;
                go(PublisherAt::Commit, name[6]);
                break;
            case PublisherAt::Commit: {
                u16& e = n.entry[p.ticket % c_.tickets];
                const bool free = is(Mutant::CommitWithoutLap) ? !ticket::is_used(e) : e == ticket::free(lap(p.ticket));
                if (free) {
                    e = ticket::used(lap(p.ticket), p.slot, p.generation);
                    p.slot = p.generation = 0;
                    ++p.committed;
                    if (!repeat) {
                        ++p.batches;
                        ++n.committed[p.who];
                    }
                    go(PublisherAt::Help, name[7]);
                    break;
                }
                const int ahead = int(ticket::lap(e)) - int(lap(p.ticket));
                if (ahead > 0 || (ahead == 0 && ticket::is_used(e)))
                    go(is(Mutant::NoHelp) ? PublisherAt::Tail : PublisherAt::HelpOther,
                       "publisher: finds the ticket taken");
                else
                    go(PublisherAt::Tail, "publisher: finds an entry of an earlier lap");
                break;
            }
            case PublisherAt::Help:
            case PublisherAt::HelpOther:
                if (s.tail == p.ticket && !is(Mutant::TicketBeforeCommit)) n.tail = s.tail + 1;
                p.ticket = 0;
                if (p.at == PublisherAt::HelpOther)
                    go(PublisherAt::Tail, name[8]);
                else if (p.batches < batches_of(p.who))
                    go(PublisherAt::Claim, name[8]);
                else  // the one waits for its acknowledgement, the other leaves at once
                    go(i == 0 ? PublisherAt::AwaitAck : PublisherAt::Close, name[8]);
                break;
            case PublisherAt::AwaitAck:
                if (row.accepted_seq == p.batches) go(PublisherAt::Close, "publisher 0: sees its acknowledgement");
                break;
            case PublisherAt::Close:
                row.state = RowState::Closed;
                go(PublisherAt::Unlock, name[9]);
                break;
            case PublisherAt::Unlock:
                n.lock[i] = Lock::Free;
                p = Publisher{};
                p.who = s.publisher[i].who;
                emit(n, Kind::Work, "publisher: drops its lock");
                break;
        }
    }
    template <class Emit>
    void end_publisher(const State& s, unsigned i, Emit&& emit) const {
        static constexpr const char* kKilled[] = {"publisher 0 is killed", "publisher 1 is killed"};
        static constexpr const char* kCome[] = {"a new publisher comes to row 0", "a new publisher comes to row 1"};
        const Publisher& p = s.publisher[i];
        if (p.at == PublisherAt::Absent) {
            if (!s.new_publishers || p.who >= c_.publishers) return;
            State n = s;
            --n.new_publishers;
            n.publisher[i].at = PublisherAt::Attach;
            n.publisher[i].who = static_cast<u8>(p.who + c_.publishers);
            emit(n, Kind::Fault, kCome[i]);
            return;
        }
        if (p.at <= PublisherAt::Attach) return;
        if (s.publisher_kills) {
            State n = s;
            --n.publisher_kills;
            n.publisher[i] = Publisher{};
            n.publisher[i].who = p.who;
            if (s.lock[i] == Lock::Owner) n.lock[i] = Lock::Free;
            emit(n, Kind::Fault, kKilled[i]);
            if (is(Mutant::LockDropsFirst) && s.lock[i] == Lock::Owner) {
                n.publisher[i] = p;
                emit(n, Kind::Fault, "the lock of a publisher drops while it runs");
            }
        }
    }

    // --- the subscriber ---

    template <class Emit>
    void subscribe(const State& s, Emit&& emit) const {
        State n = s;
        Subscriber& b = n.subscriber;
        auto& row = n.subscriber_row;
        const auto go = [&](SubscriberAt at, const char* what) {
            b.at = at;
            emit(n, Kind::Work, what);
        };
        const auto broken = [&](Broken how, const char* what) {
            n.broken = how;
            emit(n, Kind::Work, what);
        };
        const u16 e = s.entry[b.next % c_.tickets];
        const auto gone = [&](const char* what) {
            if (!c_.lossy) return broken(Broken::Torn, what);
            const u8 end = s.head, oldest = s.released;
            b.next = std::max<u8>(oldest < end ? oldest + (end - oldest) / 2 : end, b.next + 1);
            b.entry = b.saw = 0;
            go(SubscriberAt::Wait, "subscriber: is overrun");
        };
        switch (b.at) {
            case SubscriberAt::Absent: break;
            case SubscriberAt::Attach:
                if (row.state != RowState::Free || s.subscriber_lock != Lock::Free) break;
                n.subscriber_lock = Lock::Owner;
                go(SubscriberAt::Ask, "subscriber: locks its row");
                break;
            case SubscriberAt::Ask:
                row.state = RowState::Joining;
                go(SubscriberAt::Join, "subscriber: asks for the latest ticket");
                row.earliest = true;
                go(SubscriberAt::Join, "subscriber: asks for the earliest ticket");
                break;
            case SubscriberAt::Join:
                if (row.state != RowState::Active) break;
                b.next = row.cursor;
                go(SubscriberAt::Wait, "subscriber: has joined");
                break;
            case SubscriberAt::Wait:
                if (s.head > b.next) go(SubscriberAt::Entry, "subscriber: sees that head has moved");
                break;
            case SubscriberAt::Entry:
                if (!ticket::is_used(e) || ticket::lap(e) != lap(b.next)) {
                    gone("subscriber: its next ticket is not there any more");
                } else if (ticket::is_refused(e)) {
                    if (s.log[b.next]) return broken(Broken::Lost, "subscriber: skips a batch that was acknowledged");
                    go(SubscriberAt::Pass, "subscriber: skips a refused batch");
                } else {
                    b.entry = e;
                    go(SubscriberAt::Word, "subscriber: reads the entry");
                }
                break;
            case SubscriberAt::Word: {
                const u8 w = s.slot[ticket::slot(b.entry)];
                if (!slot_word::is_owned(w) || slot_word::generation(w) != ticket::generation(b.entry))
                    gone("subscriber: the slot is not its ticket's any more");
                else
                    go(is(Mutant::PassBeforeRead) ? SubscriberAt::Pass : SubscriberAt::Begin,
                       "subscriber: reads the slot word");
                break;
            }
            case SubscriberAt::Begin:
                b.saw = s.bytes[ticket::slot(b.entry)];
                go(SubscriberAt::Finish, "subscriber: reads half of the batch");
                break;
            case SubscriberAt::Finish: {
                const u8 rest = s.bytes[ticket::slot(b.entry)];
                if (rest != b.saw) b.saw |= batch::kHalf;
                if (!c_.lossy || is(Mutant::NoSecondLook)) return deliver(n, emit);
                go(SubscriberAt::SecondLook, "subscriber: reads the rest");
                break;
            }
            case SubscriberAt::SecondLook:
                if (e != b.entry) return gone("subscriber: the entry is another one by now");
                deliver(n, emit);
                break;
            case SubscriberAt::Pass:
                ++b.next;
                row.cursor = b.next;
                if (is(Mutant::PassBeforeRead) && b.entry) {
                    --b.next;
                    return go(SubscriberAt::Begin, "subscriber: stores its cursor");
                }
                b.entry = b.saw = 0;
                go(SubscriberAt::Wait, "subscriber: stores its cursor");
                break;
            case SubscriberAt::Unlock:
                n.subscriber_lock = Lock::Free;
                b = Subscriber{};
                emit(n, Kind::Work, "subscriber: drops its lock");
                break;
        }
    }
    template <class Emit>
    void deliver(State& n, Emit&& emit) const {
        Subscriber& b = n.subscriber;
        if (b.saw != n.log[b.next]) n.broken = Broken::Torn;
        if (is(Mutant::PassBeforeRead)) ++b.next;
        const bool passed = c_.lossy || is(Mutant::PassBeforeRead);
        if (c_.lossy) ++b.next;
        b.at = passed ? SubscriberAt::Wait : SubscriberAt::Pass;
        b.entry = b.saw = 0;
        emit(n, Kind::Work, "subscriber: has the batch");
    }
    template <class Emit>
    void end_subscriber(const State& s, Emit&& emit) const {
        State n = s;
        if (s.subscriber.at == SubscriberAt::Absent) {
            if (!s.new_subscribers) return;
            --n.new_subscribers;
            n.subscriber.at = SubscriberAt::Attach;
            return emit(n, Kind::Fault, "a new subscriber comes");
        }
        if (s.subscriber.at == SubscriberAt::Attach || s.subscriber.at == SubscriberAt::Unlock) return;
        if (s.subscriber.at == SubscriberAt::Wait || s.subscriber.at == SubscriberAt::Join) {
            n.subscriber_row.state = RowState::Closed;
            n.subscriber = Subscriber{};
            n.subscriber.at = SubscriberAt::Unlock;
            emit(n, Kind::Fault, "subscriber: leaves");
            n = s;
        }
        if (!s.subscriber_kills) return;
        --n.subscriber_kills;
        n.subscriber = Subscriber{};
        if (s.subscriber_lock == Lock::Owner) n.subscriber_lock = Lock::Free;
        emit(n, Kind::Fault, "the subscriber is killed");
    }

    // --- the broker ---

    template <class Emit>
    void serve(const State& s, Emit&& emit) const;
    template <class Emit>
    void recover(const State& s, Emit&& emit) const;
    template <class Emit>
    void choose(const State& s, Emit&& emit) const;

    InLog& in_log(State& s, unsigned t) const { return s.broker.log[t % c_.tickets]; }
    // The lowest ticket a subscriber still reads; the cursor counts while it moves forward, and not beyond head.
    u8 lowest(State& n) const {
        Broker& b = n.broker;
        if (b.gate == kNone || is(Mutant::ReleaseWithoutGate)) return b.head;
        const u8 cursor = n.subscriber_row.cursor;
        if (cursor > b.gate && cursor <= b.head) b.gate = cursor;
        return b.gate;
    }
    // Does a committed ticket from head on refer to a slot of publisher i?
    bool has_committed(const State& s, unsigned i) const {
        for (unsigned t = s.broker.head; t < unsigned(s.broker.head + c_.tickets); ++t) {
            const u16 e = s.entry[t % c_.tickets];
            if (ticket::lap(e) != lap(t)) continue;  // of an earlier lap
            if (!ticket::is_used(e)) return false;
            if (slot_word::owner(s.slot[ticket::slot(e)]) == i) return true;
        }
        return false;
    }

    Config c_;
    Mutant mutant_;
};

}  // namespace model::ring

#include "ring_broker.hpp"

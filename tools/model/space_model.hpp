// Who hears that a slot is free (PublisherRow::wait_space(), Peers::wake_one_space_waiter(), Peers::reap_row()).
//
// More publishers than slots. One that finds none says so and sleeps; the broker wakes one waiter for each slot that
// comes free. Anybody may be killed at any step: while it holds a slot, sleeps, or has just been woken for one; so may
// the broker, in the middle of a wake. Nothing here ever times out: kMaxSleepNs must not be needed.
//
// A publisher commits its slot or gives it back. That it wakes the broker is left out: the broker never sleeps here
// (sleep_model.hpp is about that), and batches are accepted and passed at once (ring_model.hpp).
#pragma once

#include "explore.hpp"

namespace model::space {

inline constexpr unsigned kMostPublishers = 3, kMostSlots = 2;

struct Config {
    const char* name;
    const char* about;
    bool reduced;
    u8 publishers, slots, batches;
    u8 publisher_kills = 0, broker_kills = 0;
};

enum class Mutant : u8 {
    None,
    WantsAfterLook,
    WaitersFlagNotKept,
    WaitersFlagTakenLate,
    FreeAfterWake,
    GiveBackTellsNobody,
    GiveBackTellsKnownWaiters,
    ReapWakesForSlotsOnly,
    RestartWakesSleepersOnly,
    RestartWakesNobody,
    RestartBelievesFlag,
};

enum class PublisherAt : u8 {
    Claim,
    Wants,
    Waiters,
    Look,
    Seen,
    Flag,
    LookAgain,
    LateWants,
    Block,
    Asleep,
    Leave,
    Holds,
    GaveBack,
    Call,
    Done,
    Dead,
};
struct Publisher {
    PublisherAt at;
    u8 batches, slot;
    bool moved;  // has its row's `event` moved since it read it? That is all that counts of the two numbers
};
enum class SlotState : u8 { Free, Owned, InLog };
struct Row {
    bool taken, sleeping, wants;
};
enum class BrokerAt : u8 {
    Absent,
    WakeAll,
    Serve,
    FreeSlot,
    AnyWaiter,
    TakeWaiters,
    Search,
    KeepWaiters,
    TakeFlag,
    Event,
    Wake,
    LateTake,
    ReapSlots,
    Clear,
};
struct Broker {
    BrokerAt at;
    u8 next_waiter, k;  // of the search
    u8 row, more;       // being reaped; wakes it is to send
    u8 slot;
};
struct State {
    SlotState slot[kMostSlots];
    u8 owner[kMostSlots];
    Row row[kMostPublishers];
    bool space_waiters, look_around;
    Publisher publisher[kMostPublishers];
    Broker broker;
    u8 publisher_kills, broker_kills;
};

class SpaceModel {
public:
    using State = space::State;

    SpaceModel(const Config& config, Mutant mutant) : c_(config), mutant_(mutant) {}

    State initial() const {
        State s{};
        for (unsigned i = 0; i < kMostPublishers; ++i) {
            s.row[i].taken = i < c_.publishers;
            s.publisher[i].at = i < c_.publishers ? PublisherAt::Claim : PublisherAt::Done;
        }
        s.broker.at = BrokerAt::Serve;
        s.publisher_kills = c_.publisher_kills;
        s.broker_kills = c_.broker_kills;
        return s;
    }
    template <class Emit>
    void steps(const State& s, Emit&& emit) const {
        for (unsigned i = 0; i < c_.publishers; ++i) publish(s, i, emit);
        serve(s, emit);
        if (s.broker_kills && s.broker.at != BrokerAt::Absent) {
            State n = s;
            --n.broker_kills;
            n.broker = Broker{};
            emit(n, Kind::Fault, "the broker is killed");
        }
    }
    const char* wrong(const State&) const { return nullptr; }
    bool quiescent(const State& s) const {
        for (unsigned i = 0; i < c_.publishers; ++i)
            if (s.publisher[i].at < PublisherAt::Done || (s.publisher[i].at == PublisherAt::Dead && s.row[i].taken))
                return false;
        for (unsigned k = 0; k < c_.slots; ++k)
            if (s.slot[k] != SlotState::Free) return false;
        return true;
    }
    const char* unfinished(const State& s) const {
        for (unsigned i = 0; i < c_.publishers; ++i)
            if (s.publisher[i].at < PublisherAt::Done) return any_free(s) ? "lost wake-up" : "the living cannot go on";
        return "leaked slot";
    }

private:
    bool is(Mutant m) const { return mutant_ == m; }
    bool any_free(const State& s) const {
        for (unsigned k = 0; k < c_.slots; ++k)
            if (s.slot[k] == SlotState::Free) return true;
        return false;
    }

    template <class Emit>
    void publish(const State& s, unsigned i, Emit&& emit) const {
        static constexpr const char* kKilled[] = {"publisher 0 is killed", "publisher 1 is killed",
                                                  "publisher 2 is killed"};
        static constexpr const char* kClaims[] = {"publisher 0: claims a slot", "publisher 1: claims a slot",
                                                  "publisher 2: claims a slot"};
        static constexpr const char* kSleeps[] = {"publisher 0: sleeps", "publisher 1: sleeps", "publisher 2: sleeps"};
        static constexpr const char* kSays[] = {"publisher 0: says that it wants a slot",
                                                "publisher 1: says that it wants a slot",
                                                "publisher 2: says that it wants a slot"};
        State n = s;
        Publisher& p = n.publisher[i];
        Row& row = n.row[i];
        if (s.publisher_kills && p.at < PublisherAt::Done) {
            --n.publisher_kills;
            p = Publisher{};
            p.at = PublisherAt::Dead;
            emit(n, Kind::Fault, kKilled[i]);
            n = s;
        }
        const auto go = [&](PublisherAt at, const char* what) {
            p.at = at;
            emit(n, Kind::Work, what);
        };
        const auto again = [&](const char* what) {
            p.slot = 0;
            go(p.batches == c_.batches ? PublisherAt::Done : PublisherAt::Claim, what);
        };
        switch (p.at) {
            case PublisherAt::Done:
            case PublisherAt::Dead: break;
            case PublisherAt::Claim:
                for (unsigned k = 0; k < c_.slots; ++k) {
                    if (s.slot[k] != SlotState::Free) continue;
                    n.slot[k] = SlotState::Owned;
                    n.owner[k] = static_cast<u8>(i);
                    p.slot = static_cast<u8>(k);
                    return go(PublisherAt::Holds, kClaims[i]);
                }
                go(is(Mutant::WantsAfterLook) ? PublisherAt::Look : PublisherAt::Wants,
                   "publisher: finds no free slot");
                break;
            case PublisherAt::Wants:
            case PublisherAt::LateWants:
                row.wants = true;
                go(PublisherAt::Waiters, kSays[i]);
                break;
            case PublisherAt::Waiters:
                n.space_waiters = true;
                go(is(Mutant::WantsAfterLook) ? PublisherAt::Block : PublisherAt::Look,
                   "publisher: sets space_waiters");
                break;
            case PublisherAt::Look:
                if (any_free(s)) return go(PublisherAt::Leave, "publisher: sees a free slot");
                go(PublisherAt::Seen, "publisher: sees no free slot");
                break;
            case PublisherAt::Seen: go(PublisherAt::Flag, "publisher: reads its `event`"); break;
            case PublisherAt::Flag:
                row.sleeping = true;
                go(PublisherAt::LookAgain, "publisher: stores `sleeping`");
                break;
            case PublisherAt::LookAgain:
                if (any_free(s)) return go(PublisherAt::Leave, "publisher: sees a free slot, looking again");
                go(is(Mutant::WantsAfterLook) ? PublisherAt::LateWants : PublisherAt::Block,
                   "publisher: sees no free slot, looking again");
                break;
            case PublisherAt::Block:
                if (p.moved) return go(PublisherAt::Leave, "publisher: futex_wait finds that `event` has moved");
                go(PublisherAt::Asleep, kSleeps[i]);
                break;
            case PublisherAt::Asleep: break;
            case PublisherAt::Leave:
                p.moved = false;
                row.wants = false;
                again("publisher: wants no slot any more, and tries");
                break;
            case PublisherAt::Holds:
                n.slot[p.slot] = SlotState::InLog;
                n.owner[p.slot] = 0;
                ++p.batches;
                again("publisher: commits");
                // Or it has nothing to say after all.
                n.slot[s.publisher[i].slot] = SlotState::Free;
                p = s.publisher[i];
                ++p.batches;
                go(PublisherAt::GaveBack, "publisher: gives its slot back");
                break;
            case PublisherAt::GaveBack:
                // Whether space_waiters is set says nothing: the broker takes it back before it searches.
                if (is(Mutant::GiveBackTellsNobody) || (is(Mutant::GiveBackTellsKnownWaiters) && !s.space_waiters))
                    return again("publisher: knows of no waiter");
                go(PublisherAt::Call, "publisher: is about to call the broker");
                break;
            case PublisherAt::Call:
                n.look_around = true;
                again("publisher: calls the broker");
                break;
        }
    }

    template <class Emit>
    void serve(const State& s, Emit&& emit) const {
        State n = s;
        Broker& b = n.broker;
        const auto go = [&](BrokerAt at, const char* what) {
            b.at = at;
            emit(n, Kind::Work, what);
        };
        // After a search: the next wake of a reap, or back to the loop.
        const auto searched = [&](const char* what) {
            b.k = 0;
            if (b.more) {
                --b.more;
                return go(BrokerAt::AnyWaiter, what);
            }
            b.row = 0;
            go(BrokerAt::Serve, what);
        };
        const auto next_row = [&](const char* what) {
            if (++b.k < c_.publishers) return go(BrokerAt::Search, what);
            if (is(Mutant::WaitersFlagTakenLate)) return go(BrokerAt::LateTake, what);
            searched(what);
        };
        const unsigned i = (b.next_waiter + b.k) % c_.publishers;
        switch (b.at) {
            case BrokerAt::Absent:
                // It may have been killed between taking the flag back and setting it again.
                if (!is(Mutant::RestartBelievesFlag)) n.space_waiters = true;
                n.look_around = true;
                go(is(Mutant::RestartWakesNobody) ? BrokerAt::Serve : BrokerAt::WakeAll, "a broker starts");
                break;
            case BrokerAt::WakeAll: {  // one row at a time
                Row& row = n.row[b.k];
                if (row.sleeping || !is(Mutant::RestartWakesSleepersOnly)) {
                    row.sleeping = false;
                    rouse(n, b.k);
                }
                if (++b.k < c_.publishers) return go(BrokerAt::WakeAll, "broker: wakes a row, as it starts");
                b.k = 0;
                go(BrokerAt::Serve, "broker: has woken all, as it started");
                break;
            }
            case BrokerAt::Serve:
                for (unsigned k = 0; k < c_.slots; ++k) {
                    if (s.slot[k] != SlotState::InLog) continue;
                    b.slot = static_cast<u8>(k);
                    go(is(Mutant::FreeAfterWake) ? BrokerAt::AnyWaiter : BrokerAt::FreeSlot,
                       "broker: finds a slot to release");
                }
                b.slot = 0;
                for (unsigned k = 0; k < c_.publishers; ++k) {
                    if (s.publisher[k].at != PublisherAt::Dead || !s.row[k].taken) continue;
                    b.row = static_cast<u8>(k);
                    go(BrokerAt::ReapSlots, "broker: gets the lock of a dead publisher");
                }
                b.row = 0;
                if (s.look_around) {
                    n.look_around = false;
                    go(BrokerAt::AnyWaiter, "broker: looks around");
                }
                break;
            case BrokerAt::FreeSlot:
                n.slot[b.slot] = SlotState::Free;
                b.slot = 0;
                go(is(Mutant::FreeAfterWake) ? BrokerAt::Serve : BrokerAt::AnyWaiter, "broker: frees a slot");
                break;
            case BrokerAt::AnyWaiter:
                if (!s.space_waiters) {
                    b.more = 0;
                    if (is(Mutant::FreeAfterWake) && s.slot[b.slot] == SlotState::InLog)
                        return go(BrokerAt::FreeSlot, "broker: knows of no waiter");
                    return searched("broker: knows of no waiter");
                }
                go(is(Mutant::WaitersFlagTakenLate) ? BrokerAt::Search : BrokerAt::TakeWaiters,
                   "broker: knows of a waiter");
                break;
            case BrokerAt::TakeWaiters:
                n.space_waiters = false;
                go(BrokerAt::Search, "broker: takes space_waiters back");
                break;
            case BrokerAt::LateTake:
                n.space_waiters = false;
                searched("broker: takes space_waiters back");
                break;
            case BrokerAt::Search:
                if (!s.row[i].wants) return next_row("broker: this row wants no slot");
                go(is(Mutant::WaitersFlagNotKept) ? BrokerAt::TakeFlag : BrokerAt::KeepWaiters,
                   "broker: this row wants a slot");
                break;
            case BrokerAt::KeepWaiters:
                n.space_waiters = true;
                go(BrokerAt::TakeFlag, "broker: sets space_waiters again");
                break;
            case BrokerAt::TakeFlag:
                if (!s.row[i].sleeping) return next_row("broker: this row is awake");
                n.row[i].sleeping = false;
                go(BrokerAt::Event, "broker: takes the row's flag");
                break;
            case BrokerAt::Event:
                advance(n, i);
                go(BrokerAt::Wake, "broker: advances the row's `event`");
                break;
            case BrokerAt::Wake:
                if (n.publisher[i].at == PublisherAt::Asleep) n.publisher[i].at = PublisherAt::Leave;
                b.next_waiter = static_cast<u8>((i + 1) % c_.publishers);
                if (is(Mutant::FreeAfterWake) && s.slot[b.slot] == SlotState::InLog) {
                    b.k = 0;
                    return go(BrokerAt::FreeSlot, "broker: wakes the row");
                }
                searched("broker: wakes the row");
                break;
            case BrokerAt::ReapSlots:
                for (unsigned k = 0; k < c_.slots; ++k) {
                    if (s.slot[k] != SlotState::Owned || s.owner[k] != b.row) continue;
                    n.slot[k] = SlotState::Free;
                    n.owner[k] = 0;
                    ++b.more;
                    return go(BrokerAt::ReapSlots, "broker: frees a slot of the dead");
                }
                go(BrokerAt::Clear, "broker: finds no slot of the dead");
                break;
            case BrokerAt::Clear: {
                n.row[b.row] = Row{};
                // It may have been woken for a slot that it cannot claim any more: another one must hear of that.
                if (!is(Mutant::ReapWakesForSlotsOnly)) ++b.more;
                if (b.more == 0) return searched("broker: frees the row");
                --b.more;
                go(BrokerAt::AnyWaiter, "broker: frees the row");
                break;
            }
        }
    }
    static void advance(State& n, unsigned i) {
        Publisher& p = n.publisher[i];
        if (p.at > PublisherAt::Seen && p.at <= PublisherAt::Block) p.moved = true;
    }
    static void rouse(State& n, unsigned i) {
        advance(n, i);
        if (n.publisher[i].at == PublisherAt::Asleep) n.publisher[i].at = PublisherAt::Leave;
    }

    Config c_;
    Mutant mutant_;
};

}  // namespace model::space

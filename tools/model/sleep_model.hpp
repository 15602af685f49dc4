// Sleep and wake (_native/waiting.hpp) on a machine with store buffers: no wake-up is lost.
//
// Waiters that share one `event` and one `sleeping`, as the threads of a publisher do; each waits for a condition of
// its own, several times. Each has a waker that makes it true and then wakes. A store that is not seq_cst goes to its
// process's store buffer (one word; x86 and ARM let loads pass it) and becomes visible later; a seq_cst store is
// visible at once, and so is what an atomic read-modify-write stores. futex_wait compares and blocks in one step.
//
// With `watch` it is the broker that sleeps until every subscriber has passed a ticket, and only the slowest one wakes
// it (Gates::watch(), Subscriber::advance()).
//
// Nothing here times out, but for what waiting.hpp allows: a waker was killed between taking the flag and its wake.
#pragma once

#include <algorithm>

#include "explore.hpp"

namespace model::sleep {

inline constexpr unsigned kMost = 2;

struct Config {
    const char* name;
    const char* about;
    bool reduced;
    u8 waiters, wakers, rounds;  // `watch`: one waiter, for all wakers
    bool watch = false;
    u8 waker_kills = 0, waiter_kills = 0;
};

enum class Mutant : u8 {
    None,
    NoFenceInWaiter,
    NoFenceInWaker,
    NoSecondLook,
    SeenAfterLook,
    NoEvent,
    WakeBeforeCondition,
    FlagTakenAfterWake,
    WaiterTakesFlag,
    WatchAfterLook,
};

enum class WaiterAt : u8 {
    Look,
    Watch,
    Seen,
    Flag,
    LookAgain,
    SeenLate,
    WatchLate,
    Block,
    Asleep,
    TakeFlag,
    Done,
    Dead
};
enum class WakerAt : u8 { Condition, Watched, Flag, Take, Event, Wake, TakeLate, Done, Dead };

struct Waiter {
    WaiterAt at;
    u8 rounds, slowest;
    bool moved;           // has `event` moved since it read it? That is all that counts of the two numbers
    bool flag_in_buffer;  // its store buffer: sleeping = 1
};
struct Waker {
    WakerAt at;
    u8 rounds;
    bool condition_in_buffer;  // its store buffer: the condition
};
struct State {
    u8 condition[kMost];  // how often it was made true, as memory has it
    u8 slowest;
    bool sleeping;
    bool cut;  // a waker was killed with the flag in its hand
    Waiter waiter[kMost];
    Waker waker[kMost];
    u8 waker_kills, waiter_kills;
};

class SleepModel {
public:
    using State = sleep::State;

    SleepModel(const Config& config, Mutant mutant) : c_(config), mutant_(mutant) {}

    State initial() const {
        State s{};
        for (unsigned i = c_.waiters; i < kMost; ++i) s.waiter[i].at = WaiterAt::Done;
        for (unsigned i = c_.wakers; i < kMost; ++i) s.waker[i].at = WakerAt::Done;
        for (unsigned i = 0; i < c_.wakers; ++i) s.waker[i].at = first();
        s.waker_kills = c_.waker_kills;
        s.waiter_kills = c_.waiter_kills;
        return s;
    }
    template <class Emit>
    void steps(const State& s, Emit&& emit) const {
        for (unsigned i = 0; i < c_.waiters; ++i) wait(s, i, emit);
        for (unsigned i = 0; i < c_.wakers; ++i) wake(s, i, emit);
    }
    const char* wrong(const State&) const { return nullptr; }
    bool quiescent(const State& s) const {
        for (unsigned i = 0; i < c_.waiters; ++i) {
            const Waiter& w = s.waiter[i];
            if (w.at == WaiterAt::Done || w.at == WaiterAt::Dead) continue;
            if (w.at != WaiterAt::Asleep || ready(s, i) || !waits_for_dead(s, i)) return false;
        }
        return true;
    }
    const char* unfinished(const State&) const { return "lost wake-up"; }

private:
    bool is(Mutant m) const { return mutant_ == m; }
    // What the condition is compared with, as `waiter` sees it.
    u8 made(const State& s, unsigned i) const {
        if (!c_.watch) return s.condition[i];
        u8 least = s.condition[0];
        for (unsigned k = 1; k < c_.wakers; ++k) least = std::min(least, s.condition[k]);
        return least;
    }
    u8 slowest(const State& s) const {
        u8 found = 0;
        for (unsigned k = 1; k < c_.wakers; ++k)
            if (s.condition[k] <= s.condition[found]) found = static_cast<u8>(k);
        return found;
    }
    bool ready(const State& s, unsigned i) const { return made(s, i) > s.waiter[i].rounds; }
    bool waits_for_dead(const State& s, unsigned i) const {
        if (!c_.watch) return s.waker[i].at == WakerAt::Dead;
        for (unsigned k = 0; k < c_.wakers; ++k)
            if (s.waker[k].at == WakerAt::Dead) return true;
        return false;
    }

    static void forget(Waiter& w) {
        w.slowest = 0;
        w.moved = false;
    }

    template <class Emit>
    void wait(const State& s, unsigned i, Emit&& emit) const {
        State n = s;
        Waiter& w = n.waiter[i];
        const auto go = [&](WaiterAt at, const char* what) {
            w.at = at;
            if (at == WaiterAt::Look || at == WaiterAt::Done) forget(w);
            emit(n, Kind::Work, what);
        };
        // Its condition holds: on to the next round.
        const auto has_it = [&] {
            ++w.rounds;
            if (is(Mutant::WaiterTakesFlag)) return go(WaiterAt::TakeFlag, "waiter: sees its condition");
            go(w.rounds == c_.rounds ? WaiterAt::Done : WaiterAt::Look, "waiter: sees its condition");
        };
        if (w.flag_in_buffer) {
            n.sleeping = true;
            w.flag_in_buffer = false;
            emit(n, Kind::Work, "waiter: its store of `sleeping` becomes visible");
            n = s;
        }
        if (s.waiter_kills && w.at != WaiterAt::Done && w.at != WaiterAt::Dead) {
            --n.waiter_kills;
            w = Waiter{};
            w.at = WaiterAt::Dead;
            emit(n, Kind::Fault, "a waiter is killed");
            n = s;
        }
        switch (w.at) {
            case WaiterAt::Done:
            case WaiterAt::Dead: break;
            case WaiterAt::Look:
                if (ready(s, i)) return has_it();
                if (c_.watch) w.slowest = slowest(s);
                go(c_.watch && !is(Mutant::WatchAfterLook) ? WaiterAt::Watch : WaiterAt::Seen, "waiter: is not ready");
                break;
            case WaiterAt::Watch:
            case WaiterAt::WatchLate:
                n.slowest = w.slowest + 1;
                go(w.at == WaiterAt::Watch ? WaiterAt::Seen : WaiterAt::Block, "waiter: says whom it waits for");
                break;
            case WaiterAt::Seen: go(WaiterAt::Flag, "waiter: reads `event`"); break;
            case WaiterAt::Flag:
                if (is(Mutant::NoFenceInWaiter))
                    w.flag_in_buffer = true;
                else
                    n.sleeping = true;
                go(is(Mutant::NoSecondLook) ? WaiterAt::Block : WaiterAt::LookAgain, "waiter: stores `sleeping`");
                break;
            case WaiterAt::LookAgain:
                if (ready(s, i)) return has_it();
                if (c_.watch && slowest(s) != w.slowest) return go(WaiterAt::Look, "waiter: waits for another one now");
                go(is(Mutant::SeenAfterLook)    ? WaiterAt::SeenLate
                   : is(Mutant::WatchAfterLook) ? WaiterAt::WatchLate
                                                : WaiterAt::Block,
                   "waiter: is not ready, looking again");
                break;
            case WaiterAt::SeenLate:
                w.moved = false;
                go(WaiterAt::Block, "waiter: reads `event`");
                break;
            case WaiterAt::Block:
                if (w.moved) return go(WaiterAt::Look, "waiter: futex_wait finds that `event` has moved");
                go(WaiterAt::Asleep, "waiter: sleeps");
                break;
            case WaiterAt::Asleep:
                if (s.cut) go(WaiterAt::Look, "waiter: its sleep runs out");
                break;
            case WaiterAt::TakeFlag:
                n.sleeping = false;
                go(w.rounds == c_.rounds ? WaiterAt::Done : WaiterAt::Look, "waiter: takes `sleeping` back");
                break;
        }
    }

    template <class Emit>
    void wake(const State& s, unsigned i, Emit&& emit) const {
        State n = s;
        Waker& k = n.waker[i];
        const auto go = [&](WakerAt at, const char* what) {
            k.at = at;
            emit(n, Kind::Work, what);
        };
        const auto next = [&](const char* what) {
            if (is(Mutant::WakeBeforeCondition) && k.at != WakerAt::Condition) return go(WakerAt::Condition, what);
            ++k.rounds;
            go(k.rounds == c_.rounds ? WakerAt::Done : first(), what);
        };
        if (k.condition_in_buffer) {
            ++n.condition[i];
            k.condition_in_buffer = false;
            emit(n, Kind::Work, "waker: its store of the condition becomes visible");
            n = s;
        }
        if (s.waker_kills && k.at != WakerAt::Done && k.at != WakerAt::Dead) {
            --n.waker_kills;
            n.cut = s.cut || k.at == WakerAt::Event || k.at == WakerAt::Wake || made_and_not_woken(k);
            if (k.condition_in_buffer) ++n.condition[i];  // the processor writes it out
            k = Waker{};
            k.at = WakerAt::Dead;
            emit(n, Kind::Fault, "a waker is killed");
            n = s;
        }
        switch (k.at) {
            case WakerAt::Done:
            case WakerAt::Dead: break;
            case WakerAt::Condition:
                if (k.condition_in_buffer) break;  // the buffer is full
                if (is(Mutant::NoFenceInWaker))
                    k.condition_in_buffer = true;
                else
                    ++n.condition[i];
                if (is(Mutant::WakeBeforeCondition)) return next("waker: makes the condition true");
                go(c_.watch ? WakerAt::Watched : WakerAt::Flag, "waker: makes the condition true");
                break;
            case WakerAt::Watched:
                if (s.slowest != i + 1) return next("waker: is not the one that is waited for");
                go(WakerAt::Flag, "waker: is the one that is waited for");
                break;
            case WakerAt::Flag:
                if (!s.sleeping) return next("waker: sees nobody asleep");
                go(is(Mutant::FlagTakenAfterWake) ? WakerAt::Event : WakerAt::Take, "waker: sees somebody asleep");
                break;
            case WakerAt::Take:  // an exchange: the buffer is empty before
                if (k.condition_in_buffer) break;
                n.sleeping = false;
                if (!s.sleeping) return next("waker: another one has taken the flag");
                go(WakerAt::Event, "waker: takes the flag");
                break;
            case WakerAt::Event:
                if (k.condition_in_buffer) break;
                for (Waiter& w : n.waiter)
                    if (w.at > WaiterAt::Seen && w.at <= WaiterAt::Block && !is(Mutant::NoEvent)) w.moved = true;
                go(WakerAt::Wake, "waker: advances `event`");
                break;
            case WakerAt::Wake:
                for (Waiter& w : n.waiter)
                    if (w.at == WaiterAt::Asleep) {
                        w.at = WaiterAt::Look;
                        forget(w);
                    }
                if (is(Mutant::FlagTakenAfterWake)) return go(WakerAt::TakeLate, "waker: wakes");
                next("waker: wakes");
                break;
            case WakerAt::TakeLate:
                n.sleeping = false;
                next("waker: takes the flag");
                break;
        }
    }
    WakerAt first() const { return is(Mutant::WakeBeforeCondition) ? WakerAt::Flag : WakerAt::Condition; }
    // Killed after it made the condition true, before it could know whether somebody sleeps: the same loss.
    static bool made_and_not_woken(const Waker& k) {
        return k.at == WakerAt::Watched || k.at == WakerAt::Flag || k.at == WakerAt::Take;
    }

    Config c_;
    Mutant mutant_;
};

}  // namespace model::sleep

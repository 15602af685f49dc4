// The broker of the ring model: how it begins, and what it does then. Included by ring_model.hpp.
#pragma once

namespace model::ring {

template <class Emit>
void RingModel::serve(const State& s, Emit&& emit) const {
    State n = s;
    Broker& b = n.broker;
    const auto go = [&](BrokerAt at, const char* what) {
        b.at = at;
        emit(n, Kind::Work, what);
    };
    const auto loop = [&](const char* what) {  // nothing of what it did is remembered
        b.ticket = b.row = b.slot = b.word = b.batch = 0;
        b.locked = b.refuses = false;
        const bool early = b.early;
        b.early = false;
        go(early ? BrokerAt::Rows : BrokerAt::Loop, what);
        b.early = early;
    };
    const auto broken = [&](Broken how, const char* what) {
        n.broken = how;
        emit(n, Kind::Work, what);
    };
    const u8 owner = slot_word::owner(b.word);
    switch (b.at) {
        case BrokerAt::Absent:
            b.gate = kNone;
            b.hole = kNone;
            go(BrokerAt::Bounds, "a broker starts");
            break;
        default: recover(s, emit); break;
        case BrokerAt::Loop: choose(s, emit); break;

        // accept
        case BrokerAt::Judge: {
            b.batch = s.bytes[b.slot];
            const u8 seq = batch::seq(b.batch), last = b.accepted[owner];
            b.refuses = (b.batch & batch::kHalf) || batch::who(b.batch) != s.row[owner].who ||
                        (seq != last + 1 && !is(Mutant::AcceptWithoutSeq));
            if (b.refuses) {
                // All publishers are honest: only a batch that is in the log already may be refused.
                if (!c_.repeats || seq != s.logged[batch::who(b.batch)])
                    return broken(Broken::Lost, "broker: refuses a batch");
                ++b.batches[owner];
                b.batch = 0;
                go(is(Mutant::RefuseAfterHead) ? BrokerAt::Head : BrokerAt::Refuse, "broker: finds a repeated batch");
                break;
            }
            b.accepted[owner] = seq;
            b.batches[owner] = std::max<u8>(b.batches[owner] + 1, seq);
            go(is(Mutant::AckBeforeHead) ? BrokerAt::Ack : BrokerAt::Head, "broker: judges the batch good");
            break;
        }
        case BrokerAt::Refuse:
            n.entry[(b.head - is(Mutant::RefuseAfterHead)) % c_.tickets] |= ticket::kRefused;
            go(is(Mutant::RefuseAfterHead) ? BrokerAt::Ack : BrokerAt::Head, "broker: refuses it");
            break;
        case BrokerAt::Head: {
            in_log(n, b.head) = {b.slot, b.word, b.batches[owner]};
            if (b.batch) {
                const u8 who = batch::who(b.batch), seq = batch::seq(b.batch);
                if (seq <= s.logged[who]) return broken(Broken::Duplicate, "broker: stores head");
                if (seq != s.logged[who] + 1) return broken(Broken::Order, "broker: stores head");
                n.logged[who] = seq;
            }
            n.log[b.head] = b.batch;
            n.head = ++b.head;
            if (is(Mutant::AckBeforeHead)) return loop("broker: stores head");
            go(b.refuses && is(Mutant::RefuseAfterHead) ? BrokerAt::Refuse : BrokerAt::Ack, "broker: stores head");
            break;
        }
        case BrokerAt::Ack:
            n.row[owner].accepted_seq = b.accepted[owner];
            if (is(Mutant::AckBeforeHead)) return go(BrokerAt::Head, "broker: acknowledges");
            loop("broker: acknowledges");
            break;

        // release
        case BrokerAt::Journal: {
            const InLog& batch = in_log(n, b.released);
            const unsigned generation = slot_word::generation(batch.word);
            n.releasing = ticket::used(lap(b.released), batch.slot, generation);
            go(is(Mutant::FreeBeforeRecycle) ? BrokerAt::Free : BrokerAt::Recycle, "broker: writes the journal");
            break;
        }
        case BrokerAt::Recycle:
            n.entry[b.released % c_.tickets] = ticket::free(lap(b.released) + 1);
            go(is(Mutant::FreeBeforeRecycle) ? BrokerAt::Released : BrokerAt::Free, "broker: recycles the entry");
            break;
        case BrokerAt::Free: {
            const InLog& batch = in_log(n, b.released);
            const unsigned generation = slot_word::generation(batch.word);
            n.slot[batch.slot] = slot_word::free(generation + !is(Mutant::FreeWithoutGeneration));
            go(is(Mutant::FreeBeforeRecycle) ? BrokerAt::Recycle : BrokerAt::Released, "broker: frees the slot");
            break;
        }
        case BrokerAt::Released:
            if (b.passed > b.released) in_log(n, b.released) = InLog{};
            n.released = ++b.released;
            if (b.passed < b.released) return go(BrokerAt::Pass, "broker: stores released");
            loop("broker: stores released");
            break;
        case BrokerAt::Pass: {
            const InLog batch = in_log(n, b.passed);
            const u8 i = slot_word::owner(batch.word);
            if (b.passed < b.released) in_log(n, b.passed) = InLog{};
            ++b.passed;
            if (i < c_.publishers && batch.batches > b.told[i]) n.row[i].released_batches = b.told[i] = batch.batches;
            loop("broker: tells the publisher that its batch is passed");
            break;
        }

        // reap
        case BrokerAt::HasCommitted:
            if (!is(Mutant::ReapWithoutTickets) && has_committed(s, b.row))
                go(BrokerAt::UnlockRow, "broker: finds a batch of it that is not accepted yet");
            else
                go(BrokerAt::Inherit, "broker: finds no batch of it that is not accepted");
            break;
        case BrokerAt::Inherit:
            for (u8 t = b.released; t < b.head && !is(Mutant::ReapWithoutInherit); ++t) {
                InLog& batch = in_log(n, t);
                if (!batch.word || slot_word::owner(batch.word) != b.row) continue;
                batch.word = slot_word::owned(slot_word::generation(batch.word), kLogOwner);
                n.slot[batch.slot] = batch.word;
                return go(BrokerAt::Inherit, "broker: makes a slot the log's");
            }
            go(is(Mutant::RowFreeBeforeSlots) ? BrokerAt::FreeRow : BrokerAt::ReapSlots,
               "broker: has no more to inherit");
            break;
        case BrokerAt::ReapSlots:
            for (unsigned k = 0; k < c_.slots; ++k) {
                if (!slot_word::is_owned(s.slot[k]) || slot_word::owner(s.slot[k]) != b.row) continue;
                n.slot[k] = slot_word::free(slot_word::generation(s.slot[k]) + 1);
                return go(BrokerAt::ReapSlots, "broker: frees a slot of the dead");
            }
            b.accepted[b.row] = b.told[b.row] = b.batches[b.row] = 0;
            go(is(Mutant::RowFreeBeforeSlots) ? BrokerAt::UnlockRow : BrokerAt::Clear, "broker: finds no slot of it");
            break;
        case BrokerAt::Clear:
            n.row[b.row].who = n.row[b.row].accepted_seq = n.row[b.row].released_batches = 0;
            go(BrokerAt::FreeRow, "broker: clears the row");
            break;
        case BrokerAt::FreeRow:
            n.row[b.row].state = RowState::Free;
            if (is(Mutant::RowFreeBeforeSlots)) {
                n.row[b.row].who = n.row[b.row].accepted_seq = n.row[b.row].released_batches = 0;
                return go(BrokerAt::ReapSlots, "broker: frees the row");
            }
            go(BrokerAt::UnlockRow, "broker: frees the row");
            break;
        case BrokerAt::UnlockRow:
            if (b.locked) n.lock[b.row] = Lock::Free;
            loop("broker: is done with the row");
            break;

        // the subscriber joins, or is gone
        case BrokerAt::Answer:
            if (is(Mutant::AnswerBeforeCursor)) {
                n.subscriber_row.cursor = b.gate;
            } else if (s.subscriber_row.state == RowState::Joining) {
                n.subscriber_row.state = RowState::Active;
            } else {
                b.gate = kNone;  // it left meanwhile
            }
            if (c_.lossy) b.gate = kNone;
            loop("broker: answers the subscriber");
            break;
        case BrokerAt::ClearSubscriber:
            b.gate = kNone;
            n.subscriber_row.earliest = false;
            n.subscriber_row.cursor = 0;
            go(BrokerAt::FreeSubscriber, "broker: clears the subscriber's row");
            break;
        case BrokerAt::FreeSubscriber:
            n.subscriber_row.state = RowState::Free;
            go(BrokerAt::UnlockSubscriber, "broker: frees the subscriber's row");
            break;
        case BrokerAt::UnlockSubscriber:
            if (b.locked) n.subscriber_lock = Lock::Free;
            loop("broker: is done with the subscriber's row");
            break;
    }
}

// What it can do next. Each of its looks is one step with what follows from it.
template <class Emit>
void RingModel::choose(const State& s, Emit&& emit) const {
    const auto go = [&](State& n, BrokerAt at, const char* what) {
        n.broker.at = at;
        emit(n, Kind::Work, what);
    };
    // accept
    if (s.broker.head - s.broker.released < c_.tickets) {
        State n = s;
        const u16 e = s.entry[s.broker.head % c_.tickets];
        const u8 k = ticket::slot(e), w = s.slot[k];
        bool corrupt = ticket::lap(e) != lap(s.broker.head);
        if (!corrupt && ticket::is_used(e)) {
            corrupt = !slot_word::is_owned(w) || slot_word::owner(w) >= c_.publishers ||
                      slot_word::generation(w) != ticket::generation(e);
            for (unsigned t = s.broker.released; t < s.broker.head; ++t) corrupt |= in_log(n, t).slot == k;
        }
        if (corrupt) {
            n.broken = Broken::Corrupt;
            emit(n, Kind::Work, "broker: finds the next ticket corrupt");
        } else if (ticket::is_used(e)) {
            n.broker.slot = k;
            n.broker.word = w;
            go(n, BrokerAt::Judge, "broker: finds a committed ticket");
        }
    }
    // release
    {
        State n = s;
        Broker& b = n.broker;
        const u8 gate = lowest(n), readable = std::min(b.passed, gate);
        const unsigned keep = std::min(c_.retain, c_.slots);
        const bool for_others = wanted(s) && !any_free(s);
        if ((b.passed < gate && b.released + keep <= b.passed) || b.released + keep < readable ||
            (for_others && b.released < readable))
            go(n, BrokerAt::Journal, "broker: begins to release a ticket");
        else if (b.passed < gate)
            go(n, BrokerAt::Pass, "broker: finds a ticket passed");
    }
    // reap
    for (unsigned i = 0; i < c_.publishers; ++i) {
        State n = s;
        n.broker.row = static_cast<u8>(i);
        const bool gone = s.lock[i] == Lock::Free;
        if (s.row[i].state == RowState::Closed) {
            go(n, BrokerAt::HasCommitted, "broker: sees that a publisher has left");
        } else if (s.row[i].state == RowState::Active && (gone || is(Mutant::ReapByTimeout))) {
            n.broker.locked = gone;
            if (gone) n.lock[i] = Lock::Broker;
            go(n, BrokerAt::HasCommitted,
               gone ? "broker: gets the lock of a publisher that is gone"
                    : "broker: has not heard of a publisher for long");
        }
    }
    if (!c_.subscribers) return;
    State n = s;
    const auto& row = s.subscriber_row;
    if (row.state == RowState::Joining) {
        n.broker.gate = row.earliest ? s.broker.released : s.broker.head;
        if (is(Mutant::AnswerBeforeCursor))
            n.subscriber_row.state = RowState::Active;
        else
            n.subscriber_row.cursor = n.broker.gate;
        go(n, BrokerAt::Answer, "broker: places a subscriber");
        n = s;
    }
    if (row.state == RowState::Closed) {
        go(n, BrokerAt::ClearSubscriber, "broker: sees that the subscriber has left");
    } else if (row.state != RowState::Free && s.subscriber_lock == Lock::Free) {
        n.subscriber_lock = Lock::Broker;
        n.broker.locked = true;
        go(n, BrokerAt::ClearSubscriber, "broker: gets the lock of the subscriber, which is gone");
    }
}

// How a broker begins: it checks what the one before has left, finishes what that had begun, and learns what it knew.
template <class Emit>
void RingModel::recover(const State& s, Emit&& emit) const {
    State n = s;
    Broker& b = n.broker;
    const auto go = [&](BrokerAt at, const char* what) {
        b.at = at;
        emit(n, Kind::Work, what);
    };
    const auto corrupt = [&](const char* what) {
        n.broken = Broken::Corrupt;
        emit(n, Kind::Work, what);
    };
    const auto after_entry = [&](const char* what) {
        if (++b.ticket < b.released + c_.tickets) return go(BrokerAt::Entry, what);
        b.ticket = b.slot = b.word = b.referred = 0;
        b.hole = kNone;
        if (!b.cut) b.journal = 0;
        go(b.cut ? BrokerAt::RedoWord : BrokerAt::Rows, what);
    };
    switch (b.at) {
        default: break;
        case BrokerAt::Bounds: {
            b.released = s.released;
            b.head = s.head;
            const u16 e = s.entry[b.released % c_.tickets];
            b.cut = b.released < b.head && ticket::lap(e) == lap(b.released) + 1;
            b.journal = s.releasing;
            if (b.released > b.head || b.head - b.released > c_.slots) return corrupt("broker: head cannot be");
            if (b.cut && (!ticket::is_used(b.journal) || ticket::lap(b.journal) != lap(b.released)))
                return corrupt("broker: the journal is of another ticket");
            if (b.cut) ++b.released;
            go(BrokerAt::Tail, "broker: reads released, head and the journal");
            break;
        }
        case BrokerAt::Tail:
            if (s.tail + 1 < b.head || s.tail > b.released + c_.slots) return corrupt("broker: tail cannot be");
            b.ticket = b.released;
            go(BrokerAt::Entry, "broker: reads tail");
            break;
        case BrokerAt::Entry: {
            const u16 e = s.entry[b.ticket % c_.tickets];
            if (ticket::lap(e) != lap(b.ticket)) return corrupt("broker: an entry has another lap");
            if (!ticket::is_used(e)) {
                if (b.ticket < b.head) return corrupt("broker: an accepted ticket is free");
                if (b.hole == kNone) b.hole = b.ticket;
                return after_entry("broker: reads a free entry");
            }
            b.slot = ticket::slot(e);
            b.word = ticket::generation(e);
            go(b.hole == kNone ? BrokerAt::Word : BrokerAt::Hole, "broker: reads an entry");
            break;
        }
        case BrokerAt::Hole:
            if (!ticket::is_used(s.entry[b.hole % c_.tickets])) return corrupt("broker: the log has a hole");
            go(BrokerAt::Word, "broker: sees that the ticket before was committed since");
            break;
        case BrokerAt::Word: {
            const u8 w = s.slot[b.slot];
            if (b.referred >> b.slot & 1) return corrupt("broker: two tickets refer to one slot");
            if (!slot_word::is_owned(w) || slot_word::generation(w) != b.word)
                return corrupt("broker: an entry and its slot word do not belong together");
            if (slot_word::owner(w) == kLogOwner && b.ticket >= b.head)
                return corrupt("broker: the log owns what is not in it");
            b.referred |= 1 << b.slot;
            after_entry("broker: reads a slot word");
            break;
        }
        case BrokerAt::RedoWord: {
            const u8 w = s.slot[ticket::slot(b.journal)];
            const bool same = slot_word::generation(w) == ticket::generation(b.journal);
            const bool owned = slot_word::is_owned(w) && (same || is(Mutant::RedoWithoutGeneration));
            go(owned && !is(Mutant::NoJournal) ? BrokerAt::RedoFree : BrokerAt::RedoReleased,
               "broker: reads the slot word of the release that was cut short");
            break;
        }
        case BrokerAt::RedoFree: {
            u8& w = n.slot[ticket::slot(b.journal)];
            w = slot_word::free(slot_word::generation(w) + !is(Mutant::FreeWithoutGeneration));
            go(BrokerAt::RedoReleased, "broker: frees that slot");
            break;
        }
        case BrokerAt::RedoReleased:
            n.released = b.released;
            b.journal = 0;
            b.cut = false;
            go(BrokerAt::Rows, "broker: stores released");
            break;
        case BrokerAt::Rows:
            if (is(Mutant::ReapBeforeRebuild))
                for (unsigned i = 0; i < c_.publishers; ++i) {
                    if (s.row[i].state != RowState::Active || s.lock[i] != Lock::Free) continue;
                    b.row = static_cast<u8>(i);
                    b.early = b.locked = true;
                    n.lock[i] = Lock::Broker;
                    return go(BrokerAt::HasCommitted, "broker: reaps before it knows the log");
                }
            for (unsigned i = 0; i < c_.publishers; ++i) {
                const auto& row = s.row[i];
                if (row.state == RowState::Free) continue;
                b.accepted[i] = row.accepted_seq;
                b.told[i] = row.released_batches;
                b.batches[i] = std::max(b.accepted[i], b.told[i]);
            }
            b.passed = b.ticket = b.released;
            go(BrokerAt::Log, "broker: reads the publishers' rows");
            break;
        case BrokerAt::Log: {
            if (b.ticket == b.head) {
                b.ticket = 0;
                return go(BrokerAt::Gates, "broker: knows the log");
            }
            const u16 e = s.entry[b.ticket % c_.tickets];
            const u8 k = ticket::slot(e), w = s.slot[k], id = s.bytes[k], i = slot_word::owner(w);
            const bool last = ++b.ticket == b.head;
            InLog& batch = in_log(n, b.ticket - 1) = {k, w, 0};
            if (ticket::is_refused(e) || i >= c_.publishers || batch::who(id) != s.row[i].who)
                return go(BrokerAt::Log, "broker: reads a ticket of the log");
            batch.batches = batch::seq(id);
            if (last && batch::seq(id) == b.accepted[i] + 1 && !is(Mutant::NoRedoOfAck)) {
                b.accepted[i] = batch::seq(id);
                b.batches[i] = std::max(b.batches[i], b.accepted[i]);
                b.row = i;
                return go(BrokerAt::RedoAck, "broker: reads the last ticket of the log, which is not acknowledged");
            }
            go(BrokerAt::Log, "broker: reads a ticket of the log");
            break;
        }
        case BrokerAt::RedoAck:
            n.row[b.row].accepted_seq = b.accepted[b.row];
            b.row = 0;
            go(BrokerAt::Log, "broker: acknowledges it");
            break;
        case BrokerAt::Gates: {
            const auto& row = s.subscriber_row;
            if (row.state == RowState::Active && !c_.lossy && !is(Mutant::GatesNotRebuilt))
                b.gate = b.released <= row.cursor && row.cursor <= b.head ? row.cursor : b.released;
            b.low = lowest(n);
            b.row = 0;
            go(is(Mutant::NoRedoOfPass) ? BrokerAt::PassAgain : BrokerAt::RedoPass,
               "broker: reads the subscriber's row");
            break;
        }
        // What a publisher has in the log no more has been passed, and perhaps it was not told.
        case BrokerAt::RedoPass: {
            if (b.row == c_.publishers) {
                b.row = 0;
                return go(BrokerAt::PassAgain, "broker: has told who has batches that were passed");
            }
            const u8 i = b.row++;
            u8 passed = b.accepted[i];
            for (u8 t = b.head; t-- > b.released;) {
                const InLog& batch = in_log(n, t);
                if (slot_word::owner(batch.word) == i && batch.batches) passed = batch.batches - 1;
            }
            if (passed > b.told[i]) n.row[i].released_batches = b.told[i] = passed;
            go(BrokerAt::RedoPass, "broker: tells a publisher what was passed");
            break;
        }
        case BrokerAt::PassAgain: {
            if (b.passed >= b.low) {
                b.low = b.row = 0;
                return go(BrokerAt::Loop, "broker: serves");
            }
            const InLog& batch = in_log(n, b.passed++);
            const u8 i = slot_word::owner(batch.word);
            if (i < c_.publishers && batch.batches > b.told[i]) n.row[i].released_batches = b.told[i] = batch.batches;
            go(BrokerAt::PassAgain, "broker: tells what is passed");
            break;
        }
    }
}

}  // namespace model::ring

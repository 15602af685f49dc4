// Monitor: everybody's read-only look at a ring. Ring: its single steps, for tests and tools.
#include "bindings.hpp"
#include "invariants.hpp"

namespace embar {
namespace {

const char* state_name(u32 state) {
    switch (static_cast<EntryState>(state)) {
        case EntryState::Free: return "free";
        case EntryState::Active: return "active";
        case EntryState::Closed: return "closed";
    }
    return "?";
}

const char* state_name(SubscriberState state) {
    switch (state) {
        case SubscriberState::Free: return "free";
        case SubscriberState::Joining: return "joining";
        case SubscriberState::Active: return "active";
        case SubscriberState::Refused: return "refused";
        case SubscriberState::Closed: return "closed";
    }
    return "?";
}

class Monitor {
public:
    explicit Monitor(nb::handle buffer) : Monitor(buffer, false) {}

    nb::dict control() const {
        const Control& c = ring_.control();
        nb::dict d;
        d["tail"] = value(c.tail);
        d["head"] = value(c.head);
        d["released"] = value(c.released);
        d["releasing"] = value(c.releasing);
        d["state"] = value(c.state);
        d["epoch"] = value(c.epoch);
        d["broker_pid"] = value(c.broker_pid);
        d["attached"] = value(c.attached);
        d["subscribers"] = value(c.subscribers);
        d["space_waiters"] = value(c.space_waiters);
        d["batches"] = value(c.batches);
        d["messages"] = value(c.messages);
        d["payload_bytes"] = value(c.payload_bytes);
        d["duplicated"] = value(c.duplicated);
        d["out_of_order"] = value(c.out_of_order);
        d["corrupt"] = value(c.corrupt);
        d["reaped_publishers"] = value(c.reaped_publishers);
        d["reaped_slots"] = value(c.reaped_slots);
        d["reaped_subscribers"] = value(c.reaped_subscribers);
        d["sleeps"] = value(c.sleeps);
        d["wakes_sent"] = value(c.wakes_sent);
        d["missed_wakeups"] = value(c.missed_wakeups);
        return d;
    }
    nb::dict publisher(u32 index) const {
        const PublisherEntry& p = ring_.publisher(checked(index));
        nb::dict d;
        d["index"] = index;
        d["state"] = state_name(p.state.load(std::memory_order_acquire));
        d["pid"] = value(p.pid);
        d["publisher_id"] = value(p.publisher_id);
        d["incarnation"] = value(p.incarnation);
        d["attached_ns"] = value(p.attached_ns);
        d["quota"] = value(p.quota);
        d["ack"] = value(p.ack);
        d["remote"] = value(p.remote);
        d["accepted_seq"] = value(p.accepted_seq);
        d["released_batches"] = value(p.released_batches);
        d["accepted_messages"] = value(p.accepted_messages);
        d["accepted_bytes"] = value(p.accepted_bytes);
        d["fault"] = value(p.fault);
        d["fault_seq"] = value(p.fault_seq);
        d["committed_seq"] = value(p.committed_seq);
        d["messages"] = value(p.messages);
        d["payload_bytes"] = value(p.payload_bytes);
        d["space_waits"] = value(p.space_waits);
        d["ack_waits"] = value(p.ack_waits);
        d["wakes_sent"] = value(p.wakes_sent);
        d["missed_wakeups"] = value(p.missed_wakeups);
        d["nontemporal_batches"] = value(p.nontemporal_batches);
        return d;
    }
    nb::dict subscriber(u32 index) const {
        if (index >= ring_.geometry().max_subscribers) throw nb::index_error("no such row in the subscribers table");
        const SubscriberEntry& s = ring_.subscriber(index);
        char called[sizeof s.name];
        std::memcpy(called, s.name, sizeof called);
        called[sizeof called - 1] = 0;
        nb::dict d;
        d["index"] = index;
        d["state"] = state_name(static_cast<SubscriberState>(s.state.load(std::memory_order_acquire)));
        d["pid"] = value(s.pid);
        d["name"] =
            nb::steal<nb::str>(PyUnicode_DecodeUTF8(called, static_cast<Py_ssize_t>(strlen(called)), "replace"));
        d["mode"] = value(s.mode) == static_cast<u32>(SubscribeMode::Lossy) ? "lossy" : "reliable";
        d["start_ticket"] = value(s.start_ticket);
        d["remote_id"] = value(s.remote_id);
        d["remote_incarnation"] = value(s.remote_incarnation);
        d["attached_ns"] = value(s.attached_ns);
        d["cursor"] = value(s.cursor);
        d["next"] = value(s.next);
        d["moved_ns"] = value(s.moved_ns);
        d["stalled_ns"] = stalled(s);
        d["batches"] = value(s.batches);
        d["messages"] = value(s.messages);
        d["payload_bytes"] = value(s.payload_bytes);
        d["lost"] = value(s.lost);
        d["corrupt"] = value(s.corrupt);
        d["waits"] = value(s.waits);
        d["missed_wakeups"] = value(s.missed_wakeups);
        return d;
    }
    nb::dict broker_stages() const {
        const Control& c = ring_.control();
        nb::dict d;
        d["validate"] = as_dict(c.validate);
        d["queue"] = as_dict(c.queue);
        d["release"] = as_dict(c.release);
        return d;
    }
    nb::dict publisher_stages(u32 index) const {
        const PublisherEntry& p = ring_.publisher(checked(index));
        nb::dict d;
        d["buffer_write"] = as_dict(p.buffer_write);
        d["get_buffer"] = as_dict(p.get_buffer);
        d["send_payload"] = as_dict(p.send_payload);
        d["wait_space"] = as_dict(p.wait_space);
        d["wait_ack"] = as_dict(p.wait_ack);
        d["receive"] = as_dict(p.receive);
        return d;
    }
    // Who holds which slot: (slot, owner index or -1, generation, held for ns).
    nb::list slots() const {
        nb::list l;
        const u64 now = now_ns();
        for (u32 s = 0; s < ring_.geometry().slots; ++s) {
            const u64 w = value(ring_.slot(s).word);
            const u64 since = value(ring_.slot(s).owned_since);
            const bool owned = slot_word::is_owned(w);
            l.append(nb::make_tuple(s, owned ? static_cast<int>(slot_word::owner(w)) : -1, slot_word::generation(w),
                                    owned && since < now ? now - since : 0));
        }
        return l;
    }
    // What was wrong when a broker quarantined the segment; "": nothing was.
    nb::object damage() const {
        char text[sizeof SegmentHeader::damage];
        std::memcpy(text, ring_.segment_header()->damage, sizeof text);
        text[sizeof text - 1] = 0;
        return nb::steal<nb::str>(PyUnicode_DecodeASCII(text, static_cast<Py_ssize_t>(strlen(text)), "replace"));
    }
    // What is committed and not released, oldest first: (ticket, slot, generation of the slot, refused). What is
    // released while we look is left out.
    nb::list log() const {
        nb::list l;
        const u64 released = value(ring_.control().released);
        for (u64 n = 0; n < ring_.geometry().tickets; ++n) {
            const u64 t = released + n, e = ring_.entry(t).load(std::memory_order_acquire);
            const auto ahead = static_cast<std::int32_t>(ticket::lap(e) - ring_.lap_of(t));
            if (ahead > 0) continue;
            if (ahead < 0 || !ticket::is_used(e)) break;
            l.append(nb::make_tuple(t, ticket::slot(e), ticket::generation(e), ticket::is_refused(e)));
        }
        return l;
    }
    u32 max_publishers() const { return ring_.geometry().max_publishers; }
    u32 max_subscribers() const { return ring_.geometry().max_subscribers; }

protected:
    // For how long a subscriber has had the batch at its cursor, ns; 0: there is none.
    u64 stalled(const SubscriberEntry& s) const {
        const u64 cursor = value(s.cursor), e = ring_.entry(cursor).load(std::memory_order_acquire);
        if (cursor >= value(ring_.control().head) || !ticket::is_used(e) || ticket::lap(e) != ring_.lap_of(cursor) ||
            ticket::slot(e) >= ring_.geometry().slots)
            return 0;
        BatchHeader h{};
        if (buffer_.size() >= ring_.geometry().total_bytes)  // else only the tables are mapped here
            std::memcpy(&h, ring_.header_of(ticket::slot(e)), sizeof h);
        const u64 now = now_ns(), since = std::max(value(s.moved_ns), h.committed_ns < now ? h.committed_ns : 0);
        return now > since ? now - since : 0;
    }
    Monitor(nb::handle buffer, bool writable) : buffer_(buffer, writable), ring_(ring_in(buffer_, writable)) {}
    u32 checked(u32 index) const {
        if (index >= ring_.geometry().max_publishers) throw nb::index_error("no such row in the publishers table");
        return index;
    }
    u32 checked_slot(u32 s) const {
        if (s >= ring_.geometry().slots) throw nb::index_error("no such slot");
        return s;
    }

    HeldBuffer buffer_;
    Ring ring_;
};

class Steps : public Monitor {
public:
    explicit Steps(nb::handle buffer) : Monitor(buffer, true) {}

    std::optional<std::pair<u32, u64>> claim(u32 owner) const {
        u32 s;
        u64 g;
        if (!ring_.try_claim(checked(owner), s, g)) return std::nullopt;
        return std::pair{s, g};
    }
    std::optional<u64> commit(u32 s, u64 generation) const {
        const u64 t = ring_.commit(checked_slot(s), generation);
        return t == kNoTicket ? std::nullopt : std::optional(t);
    }
    std::string look(u64 t) const {
        Ring::Committed c;
        switch (ring_.look(t, c)) {
            case Ring::Look::Empty: return "empty";
            case Ring::Look::Committed: return "committed";
            case Ring::Look::Corrupt: return "corrupt";
        }
        return "?";
    }
    void release(u64 t, u32 s, u32 owner, u64 generation) const {
        ring_.release(t, {checked_slot(s), owner, generation});
    }
    u32 reap_slots(u32 owner) const { return ring_.reap_slots(owner); }
    bool has_committed(u32 owner, u64 from) const { return ring_.has_committed(owner, from); }
};

// What must hold and does not, as (field, what is wrong).
nb::list check_ring(nb::handle buffer) {
    const HeldBuffer held(buffer, false);
    Invariants invariants(ring_in(held));
    nb::list l;
    const auto note = [&](const Finding& f) { l.append(nb::make_tuple(f.field, f.text)); };
    if (invariants.check_structure(note)) invariants.check_contents(note);
    return l;
}

// One look at the copy of a ring that may be at work: everything is looked at, and what counts is for who compares
// several looks.
nb::tuple look_at_ring(nb::handle buffer) {
    const HeldBuffer held(buffer, false);
    const Ring ring = ring_in(held);
    Invariants invariants(ring);
    nb::list findings, unfinished;
    const auto note = [&](const Finding& f) {
        nb::list words;
        for (u32 i = 0; i < f.word_count; ++i) words.append(f.words[i]);
        findings.append(nb::make_tuple(f.field, f.text, nb::tuple(words)));
    };
    invariants.check_structure(note);
    invariants.check_contents(note);
    for (const Invariants::Unfinished& u : invariants.unfinished()) {
        if (u.owner >= ring.geometry().max_publishers) continue;  // a finding
        const PublisherEntry& row = ring.publisher(u.owner);
        unfinished.append(nb::make_tuple(u.slot, u.owner, u.word, row.attached_ns.load(std::memory_order_relaxed),
                                         row.committed_seq.load(std::memory_order_relaxed)));
    }
    return nb::make_tuple(findings, unfinished);
}

}  // namespace

void bind_ring(nb::module_& m) {
    m.def("check_ring", &check_ring, nb::arg("buffer"),
          nb::sig("def check_ring(buffer: Buffer) -> list[tuple[str, str]]"),
          "The invariants of a ring (invariants.hpp) that do not hold: (field, what is wrong). Only reads. The caller "
          "keeps the broker from moving: beside one at work it finds what is not so.");
    m.def("look_at_ring", &look_at_ring, nb::arg("buffer"),
          nb::sig("def look_at_ring(buffer: Buffer) -> tuple[list[tuple[str, str, tuple[int, ...]]], "
                  "list[tuple[int, int, int, int, int]]]"),
          "One look at the copy of a ring that may be at work. First what seems wrong: (field, what is wrong, the "
          "words that make it so; none: the text has all). It is so when it is found three times in a row with the "
          "same words. Then the slots that are owned and of no ticket: (slot, owner, slot word, attached_ns and "
          "committed_seq of its row).");
    nb::class_<Monitor>(m, "Monitor", "Read-only look at the counters of a mapped ring; costs its users nothing.")
        .def(nb::init<nb::handle>(), nb::arg("buffer"), nb::sig("def __init__(self, buffer: Buffer) -> None"))
        .def("control", &Monitor::control, nb::sig("def control(self) -> dict[str, int]"),
             "The broker's words and counters.")
        .def("publisher", &Monitor::publisher, nb::arg("index"),
             nb::sig("def publisher(self, index: int) -> dict[str, Any]"), "One row of the publishers table.")
        .def("subscriber", &Monitor::subscriber, nb::arg("index"),
             nb::sig("def subscriber(self, index: int) -> dict[str, Any]"), "One row of the subscribers table.")
        .def("broker_stages", &Monitor::broker_stages, nb::sig("def broker_stages(self) -> dict[str, dict[str, Any]]"),
             "Histograms in ns: validate, queue, release.")
        .def("publisher_stages", &Monitor::publisher_stages, nb::arg("index"),
             nb::sig("def publisher_stages(self, index: int) -> dict[str, dict[str, Any]]"),
             "Histograms in ns of one publisher.")
        .def("slots", &Monitor::slots, nb::sig("def slots(self) -> list[tuple[int, int, int, int]]"),
             "Per slot: (slot, owner index or -1, generation, held for ns).")
        .def_prop_ro("damage", &Monitor::damage, nb::sig("def damage(self) -> str"),
                     "What was wrong when a broker quarantined the segment; empty: nothing was.")
        .def("log", &Monitor::log, nb::sig("def log(self) -> list[tuple[int, int, int, bool]]"),
             "What is committed and not released: (ticket, slot, low 18 bits of its generation, refused).")
        .def_prop_ro("max_publishers", &Monitor::max_publishers)
        .def_prop_ro("max_subscribers", &Monitor::max_subscribers);
    nb::class_<Steps, Monitor>(m, "Ring", "The ring's single steps (ring.hpp), for tests and tools.")
        .def(nb::init<nb::handle>(), nb::arg("buffer"), nb::sig("def __init__(self, buffer: Buffer) -> None"))
        .def("claim", &Steps::claim, nb::arg("owner"), "Claims the first free slot: (slot, generation), or None.")
        .def("commit", &Steps::commit, nb::arg("slot"), nb::arg("generation"),
             "Commits: the ticket, or None if corrupt.")
        .def("look", &Steps::look, nb::arg("ticket"), "'empty', 'committed' or 'corrupt'.")
        .def("release", &Steps::release, nb::arg("ticket"), nb::arg("slot"), nb::arg("owner"), nb::arg("generation"))
        .def("reap_slots", &Steps::reap_slots, nb::arg("owner"), "Frees all slots of an owner: how many.")
        .def("has_committed", &Steps::has_committed, nb::arg("owner"), nb::arg("since"),
             "Does a committed ticket from `since` on refer to a slot of this owner?");
}

}  // namespace embar

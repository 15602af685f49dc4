// BrokerCore: a Broker (broker.hpp) for Python. Waits drop the GIL and let Python look at signals.
#pragma once

#include "bindings.hpp"
#include "broker.hpp"

namespace embar {

class BrokerCore {
public:
    BrokerCore(nb::handle buffer, int lock_fd, int wait_mode, double spin_us, unsigned cpus, bool stage_times,
               u32 retain)
        : buffer_(buffer, true),
          core(begun(ring_in(buffer_), lock_fd, spin_options(wait_mode, spin_us, cpus), stage_times, retain)) {}

    // => "stopped": stop() was called. => "timeout". => "corrupt".
    std::string serve(std::optional<double> timeout) {
        const u64 deadline = deadline_after(timeout);
        for (;;) {
            Broker::Result r;
            {
                Unlocked unlocked;
                r = core.serve(std::min(deadline, now_ns() + kSliceNs));
            }
            if (r == Broker::Result::Corrupt) return "corrupt";
            check_signals();
            if (r == Broker::Result::Stopped) return "stopped";
            if (now_ns() >= deadline) return "timeout";
        }
    }
    // The next batch, still in its slot, or None.
    nb::object accept() {
        Accepted a;
        if (!core.accept(a)) return nb::none();
        core.announce(a.where.owner);
        nb::dict d;
        d["ticket"] = a.ticket;
        d["slot"] = a.where.slot;
        d["owner"] = a.where.owner;
        d["verdict"] = name(a.verdict);
        d["publisher_id"] = a.header.publisher_id;
        d["seq"] = a.header.seq;
        d["format"] = a.header.format;
        d["messages"] = a.header.messages;
        d["message_size"] = a.header.message_size;
        d["body_bytes"] = a.header.body_bytes;
        d["payload_bytes"] = a.header.payload_bytes;
        d["payload_offset"] = static_cast<u64>(core.ring().payload_of(a.where.slot) - buffer_.data());
        return d;
    }
    bool reap_row(u32 i) {
        if (i >= core.ring().geometry().max_publishers) throw nb::index_error("no such row in the publishers table");
        return core.reap_row(i);
    }
    std::optional<std::string> corruption() const {
        const Finding& f = core.corruption();
        return f ? std::optional(std::string(f.field) + ": " + f.text) : std::nullopt;
    }

    // What was found when it began, and what it keeps for participants on a network.
    nb::dict recovered() const {
        const Broker::Recovered& r = core.recovered();
        nb::dict d;
        d["head"] = r.head;
        d["unread"] = r.unread;
        d["unaccepted"] = r.unaccepted;
        d["release"] = r.release;
        d["acknowledgement"] = r.acknowledgement;
        d["slots"] = r.slots;
        return d;
    }
    nb::list adopted_publishers() {
        nb::list l;
        for (const Peers::Adopted& a : core.peers().adopted()) {
            nb::dict d;
            d["index"] = a.index;
            d["publisher_id"] = a.publisher_id;
            d["incarnation"] = a.incarnation;
            d["received_seq"] = a.received_seq;
            d["quota"] = a.quota;
            d["ack"] = a.ack;
            l.append(d);
        }
        return l;
    }
    nb::list adopted_subscribers() {
        nb::list l;
        for (const Gates::Adopted& a : core.gates().adopted()) {
            nb::dict d;
            d["index"] = a.index;
            d["remote_id"] = a.id;
            d["remote_incarnation"] = a.incarnation;
            d["cursor"] = a.cursor;
            l.append(d);
        }
        return l;
    }
    std::optional<u64> first_accept_ns() const {
        const u64 ns = core.first_accept_ns();
        return ns ? std::optional(ns) : std::nullopt;
    }

private:
    static const char* name(Verdict v) {
        switch (v) {
            case Verdict::Accepted: return "accepted";
            case Verdict::Duplicate: return "duplicate";
            case Verdict::OutOfOrder: return "out_of_order";
            case Verdict::BadHeader: return "bad_header";
        }
        return "?";
    }
    // Recovery may wait for the descriptors of the process before (kept.hpp): without the GIL.
    static Broker begun(const Ring& ring, int lock_fd, const SpinOptions& spin, bool stage_times, u32 retain) {
        Unlocked unlocked;
        return Broker(ring, lock_fd, spin, stage_times, retain);
    }

    HeldBuffer buffer_;

public:
    Broker core;
};

}  // namespace embar

// What the bindings of everything with a network in it share: how transfers ended, counters, headers in bytes.
#pragma once

#include "bindings.hpp"
#include "receiver.hpp"

namespace embar {

inline const char* name(const Transferred& t) {
    switch (t.how) {
        case Transferred::Whole: return "whole";
        case Transferred::Closed: return "closed";
        case Transferred::Stalled: return "stalled";
        case Transferred::Failed: return "failed";
    }
    return "?";
}
inline const char* name(const Receiver::Ended& e) {
    switch (e.why) {
        case Receiver::Ended::Closed: return "ended";
        case Receiver::Ended::Interrupted: return "interrupted";
        case Receiver::Ended::Header: return "header";
        case Receiver::Ended::Socket: return name(e.socket);
        case Receiver::Ended::Ring: return "ring";
    }
    return "?";
}
inline nb::dict as_dict(const SocketCalls& c) {
    nb::dict d;
    d["recv_calls"] = c.receives.load(std::memory_order_relaxed);
    d["send_calls"] = c.sends.load(std::memory_order_relaxed);
    d["eagain"] = c.eagain.load(std::memory_order_relaxed);
    d["max_inq_bytes"] = c.max_inq.load(std::memory_order_relaxed);
    d["max_outq_bytes"] = c.max_outq.load(std::memory_order_relaxed);
    return d;
}
inline BatchHeader header_in(const nb::bytes& bytes) {
    BatchHeader h;
    if (bytes.size() != sizeof h) throw nb::value_error("a batch header has 128 bytes");
    std::memcpy(&h, bytes.c_str(), sizeof h);
    return h;
}

}  // namespace embar

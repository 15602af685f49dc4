// Layout numbers, segment header, liveness locks, parent-death signal.
#include <signal.h>
#include <sys/prctl.h>

#include "bindings.hpp"
#include "copy.hpp"
#include "liveness.hpp"
#include "ring.hpp"

namespace embar {
namespace {

nb::dict as_dict(const Geometry& g) {
    nb::dict d;
    d["slots"] = g.slots;
    d["slot_bytes"] = g.slot_bytes;
    d["max_publishers"] = g.max_publishers;
    d["max_subscribers"] = g.max_subscribers;
    d["tickets"] = g.tickets;
    d["publishers_offset"] = g.publishers_offset;
    d["subscribers_offset"] = g.subscribers_offset;
    d["tickets_offset"] = g.tickets_offset;
    d["slot_words_offset"] = g.slot_words_offset;
    d["slots_offset"] = g.slots_offset;
    d["slot_stride"] = g.slot_stride;
    d["total_bytes"] = g.total_bytes;
    return d;
}

Geometry planned(u64 slots, u64 slot_bytes, u64 max_publishers, u64 max_subscribers) {
    if (const char* why = Geometry::error(slots, slot_bytes, max_publishers, max_subscribers))
        throw nb::value_error(why);
    return Geometry::plan(static_cast<u32>(slots), slot_bytes, static_cast<u32>(max_publishers),
                          static_cast<u32>(max_subscribers));
}

}  // namespace

void bind_segment(nb::module_& m) {
    m.attr("MAGIC") = kMagic;
    m.attr("LAYOUT_VERSION") = kLayoutVersion;
    m.attr("FEATURES") = kFeatures;
    m.attr("SEGMENT_HEADER_BYTES") = sizeof(SegmentHeader);
    m.attr("BATCH_HEADER_BYTES") = sizeof(BatchHeader);
    m.attr("FRAME_HEADER_BYTES") = kFrameHeader;
    m.attr("BROKER_LOCK") = kBrokerLock;
    m.attr("MAX_PUBLISHERS") = kMaxPublishers;
    m.attr("MAX_SUBSCRIBERS") = kMaxSubscribers;
    m.attr("LOG_OWNER") = kLogOwner;
    m.attr("MAX_SLOTS") = kMaxSlots;
    m.attr("MAX_SLOT_BYTES") = kMaxSlotBytes;
    m.attr("HAS_NONTEMPORAL") = kHasNonTemporal;

    m.def(
        "plan",
        [](u64 slots, u64 slot_bytes, u64 publishers, u64 subscribers) {
            return as_dict(planned(slots, slot_bytes, publishers, subscribers));
        },
        nb::arg("slots"), nb::arg("slot_bytes"), nb::arg("max_publishers"), nb::arg("max_subscribers"),
        nb::sig("def plan(slots: int, slot_bytes: int, max_publishers: int, max_subscribers: int) -> dict[str, int]"),
        "Offsets and sizes in bytes of a segment with this geometry. Raises ValueError beyond the limits.");
    m.def(
        "format_segment",
        [](nb::handle buffer, u64 slots, u64 slot_bytes, u64 publishers, u64 subscribers, const std::string& name,
           const std::string& boot_id, u64 unix_ns) {
            const Geometry g = planned(slots, slot_bytes, publishers, subscribers);
            HeldBuffer held(buffer, true);
            if (held.size() < g.total_bytes) throw nb::value_error("the buffer is smaller than the planned segment");
            Ring::format(held.data(), g, name.c_str(), boot_id.c_str(), unix_ns);
        },
        nb::arg("buffer"), nb::arg("slots"), nb::arg("slot_bytes"), nb::arg("max_publishers"),
        nb::arg("max_subscribers"), nb::arg("name"), nb::arg("boot_id"), nb::arg("unix_ns"),
        nb::sig("def format_segment(buffer: Buffer, slots: int, slot_bytes: int, max_publishers: int, "
                "max_subscribers: int, name: str, boot_id: str, unix_ns: int) -> None"),
        "Writes the segment header, all but its magic, into zeroed memory.");
    m.def(
        "publish_segment",
        [](nb::handle buffer) {
            HeldBuffer held(buffer, true);
            if (held.size() < sizeof(SegmentHeader))
                throw nb::value_error("the buffer is smaller than a segment header");
            Ring::publish(held.data());
        },
        nb::arg("buffer"), nb::sig("def publish_segment(buffer: Buffer) -> None"),
        "Sets the magic: from now on the segment can be attached.");
    m.def(
        "read_header",
        [](nb::handle buffer) {
            HeldBuffer held(buffer, false);
            if (held.size() < sizeof(SegmentHeader))
                throw nb::value_error("the buffer is smaller than a segment header");
            const auto& h = *reinterpret_cast<const SegmentHeader*>(held.data());
            nb::dict d;
            d["magic"] = h.magic.load(std::memory_order_acquire);  // pairs with Ring::publish()
            d["layout_version"] = h.layout_version;
            d["header_bytes"] = h.header_bytes;
            d["features"] = h.features;
            d["total_bytes"] = h.total_bytes;
            d["slot_bytes"] = h.slot_bytes;
            d["slot_stride"] = h.slot_stride;
            d["slots"] = h.slots;
            d["tickets"] = h.tickets;
            d["max_publishers"] = h.max_publishers;
            d["max_subscribers"] = h.max_subscribers;
            d["publishers_offset"] = h.publishers_offset;
            d["subscribers_offset"] = h.subscribers_offset;
            d["tickets_offset"] = h.tickets_offset;
            d["slot_words_offset"] = h.slot_words_offset;
            d["slots_offset"] = h.slots_offset;
            d["created_unix_ns"] = h.created_unix_ns;
            d["boot_id"] = nb::bytes(h.boot_id, strnlen(h.boot_id, sizeof h.boot_id));
            d["name"] = nb::bytes(h.name, strnlen(h.name, sizeof h.name));
            return d;
        },
        nb::arg("buffer"), nb::sig("def read_header(buffer: Buffer) -> dict[str, Any]"),
        "The fields of a segment header, unchecked.");

    m.def("publisher_lock", &publisher_lock, nb::arg("index"), "Byte offset of the liveness lock of a publishers row.");
    m.def("subscriber_lock", &subscriber_lock, nb::arg("index"),
          "Byte offset of the liveness lock of a subscribers row.");
    m.def(
        "try_lock",
        [](int fd, u64 offset) {
            if (try_lock_byte(fd, offset)) return true;
            if (errno == EAGAIN || errno == EACCES) return false;
            PyErr_SetFromErrno(PyExc_OSError);
            throw nb::python_error();
        },
        nb::arg("fd"), nb::arg("offset"),
        "Takes the liveness lock of one byte for this open file description. False: somebody else holds it.");
    m.def("unlock", &unlock_byte, nb::arg("fd"), nb::arg("offset"), "Gives a liveness lock back.");
    m.def(
        "is_locked", [](int fd, u64 offset) { return holder(fd, offset) == Liveness::Alive; }, nb::arg("fd"),
        nb::arg("offset"), "Does another open file description hold the byte? (Own locks do not show.)");
    m.def(
        "die_with_parent",
        [](int parent, int signal) {
            if (prctl(PR_SET_PDEATHSIG, signal) != 0) {
                PyErr_SetFromErrno(PyExc_OSError);
                throw nb::python_error();
            }
            if (getppid() != parent) kill(getpid(), signal);  // it died before prctl()
        },
        nb::arg("parent"), nb::arg("signal"), "Asks the kernel to send `signal` when the parent process is gone.");
    m.def("last_level_cache", &last_level_cache, "Size in bytes of the last-level cache, as the copy rule sees it.");
}

}  // namespace embar

// What docs/layout.md is made from: every field of every struct of a segment, as the compiler laid it out.
//
// A test compares the names with layout.hpp and histogram.hpp, so that none can be forgotten here.
#include <type_traits>

#include "bindings.hpp"
#include "layout.hpp"

namespace embar {
namespace {

template <class T>
std::string type_name() {
    if constexpr (std::is_array_v<T>) {
        return type_name<std::remove_extent_t<T>>() + "[" + std::to_string(std::extent_v<T>) + "]";
    } else if constexpr (std::is_same_v<T, std::atomic<u64>>) {
        return "atomic u64";
    } else if constexpr (std::is_same_v<T, std::atomic<u32>>) {
        return "atomic u32";
    } else if constexpr (std::is_same_v<T, Histogram>) {
        return "Histogram";
    } else if constexpr (std::is_same_v<T, char>) {
        return "char";
    } else if constexpr (std::is_same_v<T, unsigned char>) {
        return "u8";
    } else {
        static_assert(std::is_unsigned_v<T>, "a type that docs/layout.md has no name for");
        return "u" + std::to_string(8 * sizeof(T));
    }
}

template <class T>
nb::tuple field(const char* name, std::size_t offset) {
    return nb::make_tuple(name, offset, sizeof(T), type_name<T>());
}

nb::dict structs() {
    nb::dict all;
#define FIELD(member) fields.append(field<decltype(Struct::member)>(#member, offsetof(Struct, member)))
    {
        using Struct = SegmentHeader;
        nb::list fields;
        FIELD(magic), FIELD(layout_version), FIELD(header_bytes), FIELD(features), FIELD(total_bytes);
        FIELD(slot_bytes), FIELD(slot_stride), FIELD(slots), FIELD(tickets), FIELD(max_publishers);
        FIELD(max_subscribers), FIELD(publishers_offset), FIELD(subscribers_offset), FIELD(tickets_offset),
            FIELD(slot_words_offset);
        FIELD(slots_offset), FIELD(created_unix_ns), FIELD(boot_id), FIELD(name), FIELD(damage), FIELD(reserved);
        all["SegmentHeader"] = nb::make_tuple(sizeof(Struct), fields);
    }
    {
        using Struct = Control;
        nb::list fields;
        FIELD(tail), FIELD(head), FIELD(released), FIELD(releasing), FIELD(event), FIELD(sleeping),
            FIELD(space_waiters);
        FIELD(look_around), FIELD(state), FIELD(epoch), FIELD(broker_pid), FIELD(attached), FIELD(news),
            FIELD(news_sleepers), FIELD(slowest), FIELD(subscribers), FIELD(news_held_back), FIELD(quota_waiters),
            FIELD(batches);
        FIELD(messages), FIELD(payload_bytes), FIELD(duplicated), FIELD(out_of_order), FIELD(corrupt);
        FIELD(reaped_publishers), FIELD(reaped_slots), FIELD(reaped_subscribers), FIELD(sleeps), FIELD(wakes_sent),
            FIELD(missed_wakeups);
        FIELD(validate), FIELD(queue), FIELD(release);
        all["Control"] = nb::make_tuple(sizeof(Struct), fields);
    }
    {
        using Struct = PublisherEntry;
        nb::list fields;
        FIELD(state), FIELD(pid), FIELD(publisher_id), FIELD(incarnation), FIELD(attached_ns), FIELD(quota);
        FIELD(ack), FIELD(remote), FIELD(accepted_seq), FIELD(released_batches), FIELD(accepted_messages),
            FIELD(accepted_bytes);
        FIELD(fault), FIELD(fault_seq), FIELD(event), FIELD(sleeping), FIELD(wants_any_slot), FIELD(committed_seq);
        FIELD(messages), FIELD(payload_bytes), FIELD(space_waits), FIELD(ack_waits), FIELD(wakes_sent);
        FIELD(missed_wakeups), FIELD(nontemporal_batches), FIELD(buffer_write), FIELD(get_buffer);
        FIELD(send_payload), FIELD(wait_space), FIELD(wait_ack), FIELD(receive);
        all["PublisherEntry"] = nb::make_tuple(sizeof(Struct), fields);
    }
    {
        using Struct = SubscriberEntry;
        nb::list fields;
        FIELD(state), FIELD(pid), FIELD(mode), FIELD(start), FIELD(start_ticket), FIELD(attached_ns), FIELD(remote_id),
            FIELD(remote_incarnation), FIELD(name);
        FIELD(cursor), FIELD(next), FIELD(moved_ns), FIELD(batches), FIELD(messages), FIELD(payload_bytes);
        FIELD(lost), FIELD(corrupt), FIELD(waits), FIELD(missed_wakeups);
        all["SubscriberEntry"] = nb::make_tuple(sizeof(Struct), fields);
    }
    {
        using Struct = SlotWord;
        nb::list fields;
        FIELD(word), FIELD(owned_since);
        all["SlotWord"] = nb::make_tuple(sizeof(Struct), fields);
    }
    {
        using Struct = BatchHeader;
        nb::list fields;
        FIELD(magic), FIELD(version), FIELD(format), FIELD(publisher_id), FIELD(incarnation), FIELD(seq);
        FIELD(messages), FIELD(message_size), FIELD(body_bytes), FIELD(payload_bytes), FIELD(opened_ns);
        FIELD(committed_ns), FIELD(ticket), FIELD(gap), FIELD(reserved), FIELD(check);
        all["BatchHeader"] = nb::make_tuple(sizeof(Struct), fields);
    }
    {
        using Struct = Histogram;
        nb::list fields;
        FIELD(count), FIELD(sum), FIELD(max), FIELD(buckets);
        all["Histogram"] = nb::make_tuple(sizeof(Struct), fields);
    }
#undef FIELD
    return all;
}

}  // namespace

void bind_layout(nb::module_& m) {
    m.def("structs", &structs, nb::sig("def structs() -> dict[str, tuple[int, list[tuple[str, int, int, str]]]]"),
          "The structs of a segment by name: size in bytes, and fields as (name, offset, size, type).");
}

}  // namespace embar

// Yardsticks between two processes and more: round trips, and copies that somebody reads.
#include "bindings.hpp"
#include "copy_and_read.hpp"
#include "pingpong.hpp"

namespace embar {
namespace {

// Called while natively waiting: lets Python look at signals.
void look_at_signals() {
    LockedAgain locked;
    check_signals();
}

u64 ping_pong(nb::handle memory, bool serves, bool blocks, u32 first, u32 rounds) {
    const HeldBuffer held(memory, true);
    if (held.size() < sizeof(PingPong)) throw nb::value_error("the buffer is too small: a page will do");
    if (first == 0 || rounds == 0 || first > ~u32{0} - rounds) throw nb::value_error("rounds are 1 to 2**32 - 2");
    Player player(*reinterpret_cast<PingPong*>(held.data()), serves, blocks);
    Unlocked unlocked;
    return player.play(first, first + rounds - 1, look_at_signals);
}

u64 read_all(nb::handle buffer) {
    const HeldBuffer held(buffer, false);
    Unlocked unlocked;
    return read_words(held.data(), held.size());
}

// One writer's or reader's side, and the memory it keeps alive.
class Side {
public:
    Side(nb::handle memory, u32 writers, u32 places, u32 readers, u64 batch_bytes, int wait_mode, double spin_us,
         unsigned cpus)
        : held_(memory, true), shape_(checked({writers, places, readers, batch_bytes}, held_.size())),
          shared_(held_.data(), shape_, spin_options(wait_mode, spin_us, cpus)) {}

    static CopyAndRead::Shape checked(const CopyAndRead::Shape& shape, u64 available) {
        if (!shape.writers || !shape.places || !shape.readers || !shape.batch)
            throw nb::value_error("there must be a writer, a place, a reader, and something to copy");
        if (u64{shape.writers} * shape.places >= 1U << CopyAndRead::kPlaceBits || shape.batch > kMaxSlotBytes)
            throw nb::value_error("too many places, or too large a batch");
        if (available < shape.bytes()) throw nb::value_error("the memory is too small");
        return shape;
    }
    u64 write(u32 writer, nb::handle source, u64 batches, bool nontemporal) {
        const HeldBuffer from(source, false);
        if (writer >= shape_.writers) throw nb::index_error("there is no such writer");
        if (from.size() == 0) throw nb::value_error("source must not be empty");
        Unlocked unlocked;
        const u64 begin = now_ns();
        shared_.write(writer, from.data(), from.size(), batches, nontemporal, look_at_signals);
        return now_ns() - begin;
    }
    u64 read(u64 batches) {
        Unlocked unlocked;
        return shared_.read(batches, look_at_signals);
    }

private:
    HeldBuffer held_;
    CopyAndRead::Shape shape_;
    CopyAndRead shared_;
};

}  // namespace

void bind_yardsticks(nb::module_& m) {
    m.def("ping_pong", &ping_pong, nb::arg("memory"), nb::arg("serves"), nb::arg("blocks"), nb::arg("first"),
          nb::arg("rounds"),
          nb::sig("def ping_pong(memory: Buffer, serves: bool, blocks: bool, first: int, rounds: int) -> int"),
          "One side of `rounds` round trips, numbered from `first` (1 in fresh memory), through two words in shared\n"
          "memory: ns they took. `blocks`: waits and wakes with a futex, else spins.\n\n"
          "Blocks without the GIL while the other side does not answer; signal handlers run meanwhile, and may raise.");
    m.def("read_words", &read_all, nb::arg("buffer"), nb::sig("def read_words(buffer: Buffer) -> int"),
          "Reads every byte, as fast as memory allows: the sum of all 8-byte words. Runs without the GIL.");
    nb::class_<Side>(m, "CopyAndRead",
                     "One process's side of the copy-and-read yardstick. All sides name the same shape; the memory is\n"
                     "shared and zeroed in the beginning.")
        .def(nb::init<nb::handle, u32, u32, u32, u64, int, double, unsigned>(), nb::arg("memory"), nb::arg("writers"),
             nb::arg("places"), nb::arg("readers"), nb::arg("batch_bytes"), nb::arg("wait_mode"), nb::arg("spin_us"),
             nb::arg("cpus"),
             nb::sig("def __init__(self, memory: Buffer, writers: int, places: int, readers: int, batch_bytes: int, "
                     "wait_mode: int, spin_us: float, cpus: int) -> None"))
        .def_static(
            "bytes",
            [](u32 writers, u32 places, u32 readers, u64 batch_bytes) {
                return Side::checked({writers, places, readers, batch_bytes}, ~0ULL).bytes();
            },
            nb::arg("writers"), nb::arg("places"), nb::arg("readers"), nb::arg("batch_bytes"),
            "How much memory it takes. Raises ValueError for a shape that cannot be.")
        .def("write", &Side::write, nb::arg("writer"), nb::arg("source"), nb::arg("batches"), nb::arg("nontemporal"),
             nb::sig("def write(self, writer: int, source: Buffer, batches: int, nontemporal: bool) -> int"),
             "Copies `source` repeatedly into batches, and hands each to all readers: ns it took. Blocks without the\n"
             "GIL while its places are full; signal handlers run meanwhile, and may raise.")
        .def("read", &Side::read, nb::arg("batches"),
             "Reads every byte of the next `batches` batches of all writers: a sum. Blocks like `write`.");
}

}  // namespace embar

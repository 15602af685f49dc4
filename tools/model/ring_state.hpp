// What the ring model consists of: the words in shared memory, what each process keeps to itself, and what only the
// checker knows. Names and packing follow _native/layout.hpp and ring.hpp; numbers are as small as they can be.
#pragma once

#include "explore.hpp"

namespace model::ring {

inline constexpr unsigned kMaxPublishers = 2, kMaxSlots = 2, kMaxTickets = 2, kMaxLog = 8, kMaxBatchOwners = 4;
inline constexpr u8 kLogOwner = 7, kNone = 0xff;

// What may be asked of the explorer: who takes part, what may happen to them.
struct Config {
    const char* name;
    const char* about;
    bool reduced;  // small enough for every run of the tests
    u8 publishers, slots, tickets, batches, quota;
    u8 subscribers = 0;  // 0 or 1
    bool lossy = false;
    u8 retain = 0;
    bool repeats = false;  // publisher 0 sends its first batch twice, as a client on a network may
    u8 publisher_kills = 0, broker_kills = 0, subscriber_kills = 0;
    u8 new_publishers = 0, new_subscribers = 0;
};

// Deliberate faults. Each must be found.
enum class Mutant : u8 {
    None,
    ReapByTimeout,
    LockDropsFirst,
    ReapWithoutTickets,
    ReapWithoutInherit,
    RowFreeBeforeSlots,
    FreeBeforeRecycle,
    FreeWithoutGeneration,
    TicketBeforeCommit,
    NoHelp,
    CommitWithoutLap,
    AckBeforeHead,
    NoJournal,
    RedoWithoutGeneration,
    NoRedoOfAck,
    NoRedoOfPass,
    ReapBeforeRebuild,
    ReleaseWithoutGate,
    GatesNotRebuilt,
    AnswerBeforeCursor,
    PassBeforeRead,
    NoSecondLook,
    RefuseAfterHead,
    AcceptWithoutSeq,
};

// A ticket entry: FREE(lap) or USED(lap, slot, generation), perhaps refused.
namespace ticket {
inline constexpr u16 kUsed = 1 << 15, kRefused = 1 << 14;
constexpr u16 free(unsigned lap) { return static_cast<u16>(lap); }
constexpr u16 used(unsigned lap, unsigned slot, unsigned generation) {
    return static_cast<u16>(kUsed | slot << 8 | generation << 4 | lap);
}
constexpr bool is_used(u16 e) { return (e & kUsed) != 0; }
constexpr bool is_refused(u16 e) { return (e & kRefused) != 0; }
constexpr u8 lap(u16 e) { return e & 15; }
constexpr u8 generation(u16 e) { return e >> 4 & 15; }
constexpr u8 slot(u16 e) { return e >> 8 & 15; }
}  // namespace ticket

// A slot word: FREE(generation) or OWNED(generation, owner).
namespace slot_word {
constexpr u8 free(unsigned generation) { return static_cast<u8>(generation << 4); }
constexpr u8 owned(unsigned generation, unsigned owner) { return static_cast<u8>(generation << 4 | owner << 1 | 1); }
constexpr bool is_owned(u8 w) { return (w & 1) != 0; }
constexpr u8 owner(u8 w) { return w >> 1 & 7; }
constexpr u8 generation(u8 w) { return w >> 4; }
}  // namespace slot_word

// The bytes of a slot: whose batch, which one, and whether it is written to its end. 0: nobody's.
namespace batch {
inline constexpr u8 kHalf = 0x80;
constexpr u8 id(unsigned who, unsigned seq) { return static_cast<u8>(who << 4 | seq); }
constexpr u8 who(u8 b) { return b >> 4 & 7; }
constexpr u8 seq(u8 b) { return b & 15; }
}  // namespace batch

enum class RowState : u8 { Free, Active, Closed, Joining };  // Joining: subscribers only
enum class Lock : u8 { Free, Owner, Broker };                // the kernel's: who holds the row's byte

enum class PublisherAt : u8 {
    Absent,  // has not come, has left or was killed
    Attach,
    LookAgain,
    Activate,
    Claim,
    Half,
    Whole,
    Tail,
    Commit,
    Help,
    HelpOther,
    AwaitAck,
    Close,
    Unlock,
};
struct Publisher {
    PublisherAt at;
    u8 who;        // a new one with each incarnation
    u8 committed;  // in this row
    u8 batches;    // of them its own, without repeated ones
    u8 slot, generation, ticket;
};

enum class SubscriberAt : u8 { Absent, Attach, Ask, Join, Wait, Entry, Word, Begin, Finish, SecondLook, Pass, Unlock };
struct Subscriber {
    u16 entry;
    SubscriberAt at;
    u8 next, saw;
    u8 spare;
};

enum class BrokerAt : u8 {
    Absent,  // killed, or not started yet
    // recovery
    Bounds,
    Tail,
    Entry,
    Hole,
    Word,
    RedoWord,
    RedoFree,
    RedoReleased,
    Rows,
    Log,
    RedoAck,
    Gates,
    RedoPass,
    PassAgain,
    // service
    Loop,
    Judge,
    Refuse,
    Head,
    Ack,
    Journal,
    Recycle,
    Free,
    Released,
    Pass,
    HasCommitted,
    Inherit,
    ReapSlots,
    Clear,
    FreeRow,
    UnlockRow,
    Answer,
    ClearSubscriber,
    FreeSubscriber,
    UnlockSubscriber,
};
struct InLog {
    u8 slot, word, batches;  // `word`: the slot's, as the broker believes it to be
};
struct Broker {
    u16 journal;
    BrokerAt at;
    u8 head, passed, released;
    u8 accepted[kMaxPublishers], told[kMaxPublishers], batches[kMaxPublishers];
    InLog log[kMaxTickets];
    u8 gate;                            // the subscriber's cursor, kNone: it is no gate
    u8 low;                             // the lowest gate at the last look
    u8 ticket, row, slot, word, batch;  // of what it is doing
    u8 hole, referred;
    bool cut, locked, early, refuses;
    u8 spare;  // no byte without a name: states are compared as bytes
};

enum class Broken : u8 { Nothing, Torn, Lost, Duplicate, Order, FalseAck, Corrupt };

struct State {
    // shared memory
    u16 entry[kMaxTickets];
    u16 releasing;
    u8 tail, head, released;
    u8 slot[kMaxSlots], bytes[kMaxSlots];
    struct {
        RowState state;
        u8 who, accepted_seq, released_batches;
    } row[kMaxPublishers];
    struct {
        RowState state;
        bool earliest;
        u8 cursor;
    } subscriber_row;
    // the kernel
    Lock lock[kMaxPublishers], subscriber_lock;
    // private memory
    Publisher publisher[kMaxPublishers];
    u8 spare;
    Subscriber subscriber;
    Broker broker;
    // only the checker knows
    u8 log[kMaxLog];                // by ticket: the batch, as it was accepted; 0: refused, or not there yet
    u8 committed[kMaxBatchOwners];  // by `who`: batches whose commit succeeded
    u8 logged[kMaxBatchOwners];     // by `who`: batches in the log
    u8 publisher_kills, broker_kills, subscriber_kills, new_publishers, new_subscribers;
    Broken broken;
};

}  // namespace model::ring

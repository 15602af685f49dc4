// The pairs of the ring: who stores, who loads, and what must not come of it.
//
// Each is a program of two or three threads, one round each, made of the ring's own code. Two programs run them:
// litmus.cpp with real threads, round after round, and tools/weak_memory/check.cpp in every way that the memory model
// of C++ allows. A pair is `prepare`d by one thread, its threads run, and then one thread `judges` what they saw.
//
// Threads do not wait for each other, but with the ring's own waits: who finds nothing has nothing to do. A broker that
// serves is stopped by the last thread of its pair, where threads are real; in the model it falls asleep, and `judge`
// looks whether there was anything to wake up for.
#pragma once

#include <cinttypes>
#include <cstdarg>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "broker.hpp"
#include "publisher_row.hpp"
#include "subscriber.hpp"

namespace litmus {

using namespace embar;

constexpr u64 kSlotBytes = 64;
constexpr u64 kForever = 1ULL << 62;
constexpr SpinOptions kBlock{WaitMode::Block, 0, 1};

// What runs a pair: real threads, or the model.
class World {
public:
    virtual ~World() = default;
    virtual bool real() const noexcept = 0;
    [[noreturn]] virtual void forbidden(const std::string& what) = 0;
    virtual bool asleep(int thread) const = 0;    // for ever; real threads never are
    virtual void atomics_in(const void*, u64) {}  // of an object outside of the ring
    virtual void only_diagnoses(const void*) {}   // this word
    virtual void dies(u64) {}                     // the holder of this lock byte
    virtual void held(u64) {}                     // this lock byte, by somebody, at the beginning
};

class Pair {
public:
    virtual ~Pair() = default;
    virtual int threads() const { return 2; }
    virtual bool races_by_design() const { return false; }
    virtual bool for_real_threads() const { return true; }
    virtual bool sleeps() const { return false; }
    virtual u32 slots() const { return 1; }

    void begin(World& world, const Ring& ring) {
        world_ = &world;
        ring_.emplace(ring);
        const Control& c = ring.control();
        for (const void* w : {static_cast<const void*>(&c.broker_pid), static_cast<const void*>(&c.attached),
                              static_cast<const void*>(&c.subscribers), static_cast<const void*>(&c.epoch)})
            world.only_diagnoses(w);
        for (u32 i = 0; i < ring.geometry().max_publishers; ++i) {
            const PublisherEntry& row = ring.publisher(i);
            world.only_diagnoses(&row.pid);
            world.only_diagnoses(&row.attached_ns);
            if (attaches()) continue;  // else they stand before the threads begin
            for (const void* w :
                 {static_cast<const void*>(&row.publisher_id), static_cast<const void*>(&row.incarnation),
                  static_cast<const void*>(&row.quota), static_cast<const void*>(&row.ack)})
                world.only_diagnoses(w);
        }
        for (u32 i = 0; i < ring.geometry().max_subscribers; ++i) {
            const SubscriberEntry& row = ring.subscriber(i);
            for (const void* w : {static_cast<const void*>(&row.pid), static_cast<const void*>(&row.attached_ns),
                                  static_cast<const void*>(&row.next), static_cast<const void*>(&row.moved_ns)})
                world.only_diagnoses(w);
        }
        for (u32 s = 0; s < ring.geometry().slots; ++s) world.only_diagnoses(&ring.slot(s).owned_since);
        prepare();
    }
    virtual void thread(int i) = 0;
    virtual void judge() {}

protected:
    class Row : public PublisherRow {
    public:
        using PublisherRow::claim_slot;
        using PublisherRow::give_slot_back;
        using PublisherRow::leave;
        using PublisherRow::no_more_acks;
        using PublisherRow::PublisherRow;
        char* place() const noexcept { return ring_.payload_of(slot_); }
        Status commit(u64 value, u64 seq_off = 0) noexcept {
            std::memcpy(place(), &value, sizeof value);
            BatchHeader h{};
            h.magic = kBatchMagic;
            h.version = kBatchVersion;
            h.publisher_id = row_options_.publisher_id;
            h.incarnation = row_options_.incarnation;
            h.seq = committed_ + 1 + seq_off;
            h.messages = 1;
            h.message_size = sizeof value;
            h.body_bytes = h.payload_bytes = sizeof value;
            h.opened_ns = value;  // so that header and payload can be told to belong together
            return commit_slot(h);
        }
    };

    virtual void prepare() = 0;
    virtual bool attaches() const { return false; }

    const Ring& ring() const { return *ring_; }
    Control& control() const { return ring_->control(); }
    World& world() const { return *world_; }
    [[gnu::format(printf, 3, 4)]] void require(bool holds, const char* format, ...) const {
        if (holds) return;
        char text[200];
        std::va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        world_->forbidden(text);
    }

    static constexpr u64 value_of(u32 i) { return 0x1111'1111'1111'1111ULL * (i + 1); }
    std::unique_ptr<Row> publisher(u32 i, u32 quota = 4) const {
        return std::make_unique<Row>(*ring_, i, -1, RowOptions{100 + i, 7, quota, 1, false}, kBlock);
    }
    std::unique_ptr<Broker> broker(int lock_fd = -1, u32 retain = 0, unsigned cpus = 8) const {
        auto b = std::make_unique<Broker>(*ring_, lock_fd, SpinOptions{WaitMode::Block, 0, cpus}, false, retain);
        b->serve(0);  // whom it finds dead is looked for now, and not at once again
        return b;
    }
    std::unique_ptr<Subscriber> subscriber(u32 i, SubscribeMode mode, Start start, Broker* broker,
                                           u64 ticket = 0) const {
        auto s = std::make_unique<Subscriber>(*ring_, i, -1, "litmus", SubscriberOptions{mode, start, ticket, false},
                                              kBlock);
        if (!broker) return s;
        broker->admit();
        require(s->joined() == Subscriber::Joined::Yes, "not admitted");
        control().look_around.store(0);
        return s;
    }
    void claim(Row& row) const { require(row.claim_slot() == Status::Ok, "no slot"); }
    void commit(Row& row, u64 value) const {
        claim(row);
        require(row.commit(value) == Status::Ok, "the ring is damaged");
    }
    // Claims a slot at whatever price, if one is free, and writes.
    void claim_and_write(u32 owner) const {
        u32 slot;
        u64 generation;
        if (!ring_->try_claim(owner, slot, generation)) return;
        const u64 value = value_of(owner);
        std::memcpy(ring_->payload_of(slot), &value, sizeof value);
    }
    u64 payload(const void* at) const {
        u64 value;
        std::memcpy(&value, at, sizeof value);
        return value;
    }
    void read_slot(u32 slot, u64 expected) const {
        const u64 value = payload(ring_->payload_of(slot));
        require(value == expected, "payload %lx instead of %lx", value, expected);
    }
    void accept_and_read(Broker& b, u32 seen[2]) const {
        Accepted a;
        if (!b.accept(a)) {
            require(!b.corruption(), "corrupt: %s", b.corruption().text);
            return;
        }
        require(a.verdict == Verdict::Accepted, "verdict %d", static_cast<int>(a.verdict));
        require(a.header.opened_ns == value_of(a.where.owner), "the header is another batch's");
        read_slot(a.where.slot, value_of(a.where.owner));
        ++seen[a.where.owner];
    }

private:
    World* world_ = nullptr;
    std::optional<Ring> ring_;
};

// --- bytes ---------------------------------------------------------------------------------------------

// The broker reads what the publisher wrote.
class CommitAccept : public Pair {
    void prepare() override {
        p_ = publisher(0);
        b_ = broker();
        claim(*p_);
    }
    void thread(int i) override {
        if (i == 0)
            require(p_->commit(value_of(0)) == Status::Ok, "the ring is damaged");
        else
            accept_and_read(*b_, seen_);
    }
    std::unique_ptr<Row> p_;
    std::unique_ptr<Broker> b_;
    u32 seen_[2] = {};
};

// The next owner writes only after the broker has read.
class ReleaseClaim : public Pair {
    void prepare() override {
        p_ = publisher(0);
        b_ = broker();
        commit(*p_, value_of(0));
    }
    void thread(int i) override {
        if (i) return claim_and_write(1);
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
        b_->release_next();
    }
    std::unique_ptr<Row> p_;
    std::unique_ptr<Broker> b_;
};

// The same after a publisher that gives back what it did not commit.
class GiveBackClaim : public Pair {
    void prepare() override {
        p_ = publisher(0);
        claim(*p_);
    }
    void thread(int i) override {
        if (i) return claim_and_write(1);
        const u64 value = value_of(0);
        std::memcpy(p_->place(), &value, sizeof value);
        p_->give_slot_back();
    }
    std::unique_ptr<Row> p_;
};

// --- tickets ------------------------------------------------------------------------------------------

// Two commits, one of which has to help the other: two tickets, both accepted, each publisher's own bytes.
class TwoCommits : public Pair {
    int threads() const override { return 3; }
    u32 slots() const override { return 2; }
    void prepare() override {
        b_ = broker();
        for (u32 i = 0; i < 2; ++i) claim(*(p_[i] = publisher(i)));
    }
    void thread(int i) override {
        if (i < 2)
            require(p_[i]->commit(value_of(static_cast<u32>(i))) == Status::Ok, "the ring is damaged");
        else
            accept_and_read(*b_, seen_);
    }
    void judge() override {
        require(control().tail.load() == 2, "tail %lu", control().tail.load());
        for (u64 n = seen_[0] + seen_[1]; n < 2; ++n) accept_and_read(*b_, seen_);
        require(seen_[0] == 1 && seen_[1] == 1, "accepted %u and %u", seen_[0], seen_[1]);
    }
    std::unique_ptr<Row> p_[2];
    std::unique_ptr<Broker> b_;
    u32 seen_[2] = {};
};

// One entry for all tickets: who has the slot finds the entry recycled, for the broker frees it before the slot.
class NextLap : public Pair {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        q_ = publisher(1);
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
    }
    void thread(int i) override {
        if (i == 0) {
            b_->release_next();
        } else if (q_->claim_slot() == Status::Ok) {
            const u64 t = control().tail.load(std::memory_order_acquire);
            u64 e = ring().entry(t).load(std::memory_order_relaxed);
            require(t == 1 && e == ticket::free(1), "ticket %lu is still %lx", t, e);
            require(q_->commit(value_of(1)) == Status::Ok, "the ring is damaged");
            committed_ = true;
        }
    }
    void judge() override {
        if (!committed_) return;
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
        require(seen[1] == 1 && control().tail.load() == 2, "the batch of the next lap is not there");
    }
    std::unique_ptr<Row> p_, q_;
    std::unique_ptr<Broker> b_;
    bool committed_ = false;
};

// --- subscribers ----------------------------------------------------------------------------------------

// What a subscriber takes is what the publisher wrote, though it has only seen the broker's `head`.
class HeadTake : public Pair {
    int threads() const override { return 3; }
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Latest, b_.get());
        claim(*p_);
    }
    void thread(int i) override {
        if (i == 0) {
            require(p_->commit(value_of(0)) == Status::Ok, "the ring is damaged");
        } else if (i == 1) {
            Accepted a;
            b_->accept(a);
        } else {
            Subscriber::View v;
            const Subscriber::Take t = s_->take(v, [](const char* body, u64) { return body; });
            if (t == Subscriber::Take::Nothing) return;
            require(t == Subscriber::Take::Batch, "take() gave %d", static_cast<int>(t));
            require(v.header.opened_ns == value_of(0), "the header is another batch's");
            require(payload(v.body) == value_of(0), "the payload is another batch's");
        }
    }
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_;
};

// What the broker refused, no subscriber reads.
class RefusedTake : public Pair {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Latest, b_.get());
        claim(*p_);
        p_->commit(value_of(0), 1);  // not the next of its publisher
    }
    void thread(int i) override {
        if (i == 0) {
            Accepted a;
            require(b_->accept(a) && a.verdict == Verdict::OutOfOrder, "not refused");
        } else {
            Subscriber::View v;
            require(s_->take(v, [](const char* body, u64) { return body; }) == Subscriber::Take::Nothing,
                    "a refused batch was read");
        }
    }
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_;
};

// A slot is written again only after the subscriber has passed what was in it.
class CursorRelease : public Pair {
    int threads() const override { return 3; }
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Latest, b_.get());
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
    }
    void thread(int i) override {
        if (i == 0) {
            Subscriber::View v;
            require(s_->take(v, [](const char* body, u64) { return body; }) == Subscriber::Take::Batch, "no batch");
            require(payload(v.body) == value_of(0), "the payload is another batch's");
            s_->pass(v.place);
        } else if (i == 1) {
            b_->release_next();
        } else {
            claim_and_write(1);
        }
    }
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_;
};

// The same, where it does not pass but leaves.
class LeaveRelease : public Pair {
    int threads() const override { return 3; }
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Latest, b_.get());
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
    }
    void thread(int i) override {
        if (i == 0) {
            Subscriber::View v;
            require(s_->take(v, [](const char* body, u64) { return body; }) == Subscriber::Take::Batch, "no batch");
            require(payload(v.body) == value_of(0), "the payload is another batch's");
            s_->leave();
        } else if (i == 1) {
            b_->reap();
            b_->release_next();
        } else {
            claim_and_write(1);
        }
    }
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_;
};

// The broker admits what was asked for; the subscriber begins where it was told to. If it leaves meanwhile, it has
// left.
class JoinAdmit : public Pair {
public:
    explicit JoinAdmit(bool leaves) : leaves_(leaves) {}

private:
    u32 slots() const override { return 2; }
    void prepare() override {
        b_ = broker(-1, 2);
        p_ = publisher(0);
        Accepted a;
        for (int n = 0; n < 2; ++n) {
            commit(*p_, value_of(0));
            require(b_->accept(a), "not accepted");
        }
        b_->release(false);
    }
    void thread(int i) override {
        if (i == 1) {
            b_->admit();
            b_->admit();
            return;
        }
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Ticket, nullptr, 1);
        const Subscriber::Joined j = s_->joined();
        require(j != Subscriber::Joined::No, "refused");
        require(j != Subscriber::Joined::Yes || s_->next() == 1, "it begins at %lu", s_->next());
        if (leaves_) s_->leave();
    }
    void judge() override {
        if (leaves_)
            require(ring().subscriber(0).state.load() == static_cast<u32>(SubscriberState::Closed),
                    "it has left, and its state is %u", ring().subscriber(0).state.load());
    }
    bool leaves_;
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_;
};

// A lossy subscriber copies a batch that is released meanwhile, and whose slot is written again. It gets that batch, or
// is told that it missed it; never a mixture.
class LossyCopy : public Pair {
public:
    explicit LossyCopy(u32 slots) : slots_(slots) {}

private:
    int threads() const override { return 3; }
    bool races_by_design() const override { return true; }
    u32 slots() const override { return slots_; }
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        q_ = publisher(1);
        s_ = subscriber(0, SubscribeMode::Lossy, Start::Latest, b_.get());
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
    }
    void thread(int i) override {
        if (i == 0) {
            Subscriber::View v;
            u64 copied = 0;
            const Subscriber::Take t = s_->take(v, [&](const char* body, u64) {
                copied = payload(body);
                return reinterpret_cast<const char*>(&copied);
            });
            require(t != Subscriber::Take::Corrupt && t != Subscriber::Take::Damaged, "take() gave %d",
                    static_cast<int>(t));
            if (t != Subscriber::Take::Batch) return;
            require(v.header.opened_ns == value_of(0), "a header of %lx", v.header.opened_ns);
            require(copied == value_of(0), "a header of %lx with a payload of %lx", v.header.opened_ns, copied);
        } else if (i == 1) {
            b_->release_next();
        } else if (q_->claim_slot() == Status::Ok) {
            q_->commit(value_of(1));
        }
    }
    u32 slots_;
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_, q_;
    std::unique_ptr<Subscriber> s_;
};

// --- rows -----------------------------------------------------------------------------------------------

// The slot of a publisher that has left is written by another only after its last write. What it committed is not
// freed.
class LeaveReap : public Pair {
public:
    LeaveReap(bool commits, bool dies) : commits_(commits), dies_(dies) {}

private:
    int threads() const override { return 3; }
    bool for_real_threads() const override { return !dies_; }
    void prepare() override {
        p_ = publisher(0);
        if (dies_) world().held(publisher_lock(0));
        b_ = broker(dies_ ? 99 : -1);
        claim(*p_);
    }
    void thread(int i) override {
        if (i == 2) return claim_and_write(1);
        if (i == 0) {
            const u64 value = value_of(0);
            if (commits_)
                p_->commit(value);
            else
                std::memcpy(p_->place(), &value, sizeof value);
            if (dies_)
                world().dies(publisher_lock(0));
            else
                p_->leave();
        } else if (dies_) {
            b_->reap();
        } else if (ring().publisher(0).state.load(std::memory_order_acquire) == static_cast<u32>(EntryState::Closed)) {
            b_->reap_row(0);  // as reap() does, which on a plain buffer looks at no row
        }
    }
    void judge() override {
        if (!commits_) return;
        const u64 w = ring().slot(0).word.load();
        require(slot_word::is_owned(w) && slot_word::owner(w) == 0, "a committed slot was freed: %lx", w);
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
        require(seen[0] == 1, "the batch is not there");
    }
    bool commits_, dies_;
    std::unique_ptr<Row> p_;
    std::unique_ptr<Broker> b_;
};

// Who takes a row that came free is not overwritten by what the broker did to free it; and the broker knows by its
// first batch who it is.
class RowAgain : public Pair {
    int threads() const override { return 2; }
    bool attaches() const override { return true; }
    void prepare() override {
        p_ = publisher(0);
        b_ = broker();
        p_->leave();
        control().look_around.store(0);
    }
    void thread(int i) override {
        if (i == 0) {
            b_->reap_row(0);
            u32 seen[2] = {};
            accept_and_read(*b_, seen);
        } else if (ring().publisher(0).state.load(std::memory_order_acquire) == static_cast<u32>(EntryState::Free)) {
            q_ = publisher(0);
            require(q_->claim_slot() == Status::Ok, "no slot");
            require(q_->commit(value_of(0)) == Status::Ok, "the ring is damaged");
        }
    }
    void judge() override {
        if (!q_) return;
        require(ring().publisher(0).publisher_id.load() == 100, "the row's new owner is gone from it");
        require(ring().publisher(0).state.load() == static_cast<u32>(EntryState::Active), "the row is not taken");
    }
    std::unique_ptr<Row> p_, q_;
    std::unique_ptr<Broker> b_;
};

// A publisher that learns from the broker that its batch is passed finds the slot free.
class QuotaTold : public Pair {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0, 1);
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
    }
    void thread(int i) override {
        if (i == 0)
            b_->release(false);
        else if (p_->in_flight() == 0)
            require(p_->claim_slot() == Status::Ok, "its batch is passed, and no slot is free");
    }
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
};

// A publisher that is told of its fault is told which batch it was.
class FaultTold : public Pair {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        claim(*p_);
        p_->commit(value_of(0), 1);
    }
    void thread(int i) override {
        if (i == 0) {
            Accepted a;
            b_->accept(a);
        } else if (p_->peer_status() == Status::Faulted) {
            require(ring().publisher(0).fault_seq.load(std::memory_order_relaxed) == 2, "the wrong batch");
        }
    }
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
};

// Who sees that the broker has stopped has seen its last acknowledgement.
class StopAcked : public Pair {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        commit(*p_, value_of(0));
    }
    void thread(int i) override {
        if (i == 0)
            b_->retire();
        else if (p_->no_more_acks())
            require(p_->accepted_seq() == 1, "accepted, and not told");
    }
    std::unique_ptr<Broker> b_;
    std::unique_ptr<Row> p_;
};

// What another thread of the process learns to be committed is committed.
class CommittedSeen : public Pair {
    void prepare() override {
        p_ = publisher(0);
        claim(*p_);
    }
    void thread(int i) override {
        if (i == 0)
            p_->commit(value_of(0));
        else if (p_->committed_seq() == 1)
            require(ring().holds(0), "committed, and not in the ring");
    }
    std::unique_ptr<Row> p_;
};

// --- sleep and wake ---------------------------------------------------------------------------------------

// The bare eventcount: two sleepers of one word, one waker.
class SleepWake : public Pair {
public:
    explicit SleepWake(int sleepers) : sleepers_(sleepers) {}

private:
    int threads() const override { return 1 + sleepers_; }
    bool sleeps() const override { return true; }
    void prepare() override {}
    void thread(int i) override {
        Control& c = control();
        if (i == 0) {
            c.head.store(1, std::memory_order_seq_cst);
            wake_if_sleeping(c.event, c.sleeping);
            return;
        }
        bool lost = false;
        while (sleep_unless([&] { return c.head.load(std::memory_order_seq_cst) == 1; }, c.event, c.sleeping, kForever,
                            0, kMaxSleepNs, lost) != Wait::Ready) {}
    }
    void judge() override {
        for (int i = 1; i <= sleepers_; ++i) require(!world().asleep(i), "thread %d sleeps for ever", i);
    }
    int sleepers_;
};

// One publisher, one broker that serves, and whoever makes it do something.
class Serving : public Pair {
public:
    bool sleeps() const override { return true; }

protected:
    // The broker's thread. `until`: a ticket to come back after.
    void serve(u64 until = kNoTicket) { require(b_->serve(kForever, until) != Broker::Result::Corrupt, "corrupt"); }
    // Where threads are real: the end of the broker, once `done`.
    template <class Done>
    void stop(Done&& done) {
        if (!world().real()) return;
        const u64 end = now_ns() + 20'000'000'000;
        while (!done()) {
            const timespec t{0, 10'000};
            nanosleep(&t, nullptr);
            require(now_ns() < end, "the broker does not do it");
        }
        b_->stop();
    }
    std::unique_ptr<Broker> b_;
};

// A commit wakes the broker.
class CommitWakes : public Serving {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        claim(*p_);
    }
    void thread(int i) override {
        if (i == 0)
            serve(0);
        else
            p_->commit(value_of(0));
    }
    void judge() override { require(!world().asleep(0), "a batch is committed, and the broker sleeps"); }
    std::unique_ptr<Row> p_;
};

// stop() ends serve().
class StopWakes : public Serving {
    void prepare() override {
        b_ = broker();
        world().atomics_in(b_.get(), sizeof *b_);
    }
    void thread(int i) override {
        if (i == 0)
            serve();
        else
            b_->stop();
    }
    void judge() override { require(!world().asleep(0), "the broker is stopped, and sleeps"); }
};

// An acknowledgement, the place in the quota, and the end of the broker wake the publisher.
class BrokerWakes : public Serving {
public:
    enum class By { Ack, Quota, End };
    explicit BrokerWakes(By by) : by_(by) {}

private:
    void prepare() override {
        b_ = broker();
        p_ = publisher(0, 1);
        commit(*p_, value_of(0));
        if (by_ == By::End) control().head.store(0);
    }
    void thread(int i) override {
        if (i == 0) {
            if (by_ == By::Ack) {
                Accepted a;
                b_->accept(a);
                b_->announce(0);
            } else if (by_ == By::Quota) {
                b_->sweep(false);
                b_->sweep(false);
            } else {
                b_->abandon();
            }
        } else if (by_ == By::Quota) {
            while (p_->wait_space(kForever) != Wait::Ready) {}
            require(p_->claim_slot() == Status::Ok, "no slot");
        } else {
            while (p_->wait_acked(1, kForever) != Wait::Ready) {}
        }
    }
    void judge() override { require(!world().asleep(1), "the publisher sleeps for ever"); }
    By by_;
    std::unique_ptr<Row> p_;
};

// News, and the end, wake subscribers.
class NewsWakes : public Serving {
public:
    explicit NewsWakes(bool end) : end_(end) {}

private:
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Latest, b_.get());
        if (!end_) commit(*p_, value_of(0));
    }
    void thread(int i) override {
        if (i == 0) {
            if (end_)
                b_->abandon();
            else
                b_->sweep(false);
        } else {
            while (s_->wait(kForever) != Wait::Ready) {}
        }
    }
    void judge() override { require(!world().asleep(1), "the subscriber sleeps for ever"); }
    bool end_;
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_;
};

// A cursor that moves on wakes the broker that waits for it.
class CursorWakes : public Serving {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Latest, b_.get());
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
        Subscriber::View v;
        s_->take(v, [](const char* body, u64) { return body; });
    }
    void thread(int i) override {
        if (i == 0) return serve();
        s_->pass(0);
        stop([this] { return control().released.load() == 1; });
    }
    void judge() override { require(control().released.load() == 1, "passed, and not released"); }
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_;
};

// Who joins or leaves is noticed by a broker that is about to sleep, and notices its answer.
class JoinWakes : public Serving {
    void prepare() override { b_ = broker(); }
    void thread(int i) override {
        if (i == 0) return serve();
        s_ = subscriber(0, SubscribeMode::Reliable, Start::Latest, nullptr);
        while (s_->wait_joined(kForever) != Wait::Ready) {}
        stop([this] { return s_->joined() == Subscriber::Joined::Yes; });
    }
    void judge() override { require(!world().asleep(1), "the subscriber waits to be admitted for ever"); }
    std::unique_ptr<Subscriber> s_;
};

// A slot that is given back comes to who waits for any.
class GiveBackWakes : public Serving {
    int threads() const override { return 3; }
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        q_ = publisher(1);
        claim(*p_);
    }
    void thread(int i) override {
        if (i == 0) return serve();
        if (i == 1) return p_->give_slot_back();
        while (q_->wait_space(kForever) != Wait::Ready) {}
        stop([] { return true; });
    }
    void judge() override { require(!world().asleep(2), "a slot is free, and who waits for it sleeps"); }
    std::unique_ptr<Row> p_, q_;
};

// A slot that the broker frees comes to who waits for any.
class ReleaseWakes : public Serving {
    void prepare() override {
        b_ = broker();
        p_ = publisher(0);
        q_ = publisher(1);
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
    }
    void thread(int i) override {
        if (i == 0)
            b_->release(false);
        else
            while (q_->wait_space(kForever) != Wait::Ready) {}
    }
    void judge() override { require(!world().asleep(1), "a slot is free, and who waits for it sleeps"); }
    std::unique_ptr<Row> p_, q_;
};

// What is retained is given up for who waits for a slot.
class RetainedGivenUp : public Serving {
    void prepare() override {
        b_ = broker(-1, 1);
        p_ = publisher(0);
        q_ = publisher(1);
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
        b_->release(false);
    }
    void thread(int i) override {
        if (i == 0) return serve();
        while (q_->wait_space(kForever) != Wait::Ready) {}
        stop([] { return true; });
    }
    void judge() override { require(!world().asleep(1), "the last slot is retained, and who waits for it sleeps"); }
    std::unique_ptr<Row> p_, q_;
};

// News that are held back are told when a publisher waits for its quota.
class HeldBackTold : public Serving {
    void prepare() override {
        b_ = broker(-1, 0, 1);
        p_ = publisher(0, 1);
        for (u32 i = 0; i < 2; ++i) s_[i] = subscriber(i, SubscribeMode::Reliable, Start::Latest, b_.get());
        b_->sweep(false);
        commit(*p_, value_of(0));
        u32 seen[2] = {};
        accept_and_read(*b_, seen);
        for (auto& s : s_) {
            Subscriber::View v;
            s->take(v, [](const char* body, u64) { return body; });
            s->pass(0);
        }
        b_->release(false);
        commit(*p_, value_of(0));
        b_->sweep(false);  // tells the crowd, for the first time
        for (auto& s : s_) {
            Subscriber::View v;
            s->take(v, [](const char* body, u64) { return body; });
            s->pass(1);
        }
        b_->release(false);
        commit(*p_, value_of(0));
        told_ = control().news.load();
        control().news_sleepers.store(1);
        p_->interrupt();
        p_->resume();
    }
    void thread(int i) override {
        if (i == 0) return serve();
        while (p_->wait_space(kForever) != Wait::Ready) {}
    }
    bool for_real_threads() const override { return false; }  // its end is the timer's
    void judge() override {
        require(!world().asleep(0) || control().news.load() != told_ || control().quota_waiters.load() == 0,
                "a publisher waits for what the broker has not told");
    }
    std::unique_ptr<Row> p_;
    std::unique_ptr<Subscriber> s_[2];
    u32 told_ = 0;
};

// --- all of them --------------------------------------------------------------------------------------------

struct Named {
    const char* name;
    std::unique_ptr<Pair> (*make)();
};
template <class P, auto... Arguments>
std::unique_ptr<Pair> make() {
    return std::make_unique<P>(Arguments...);
}
inline const std::vector<Named> kPairs = {
    {"commit-accept", make<CommitAccept>},
    {"release-claim", make<ReleaseClaim>},
    {"give-back-claim", make<GiveBackClaim>},
    {"two-commits", make<TwoCommits>},
    {"next-lap", make<NextLap>},
    {"head-take", make<HeadTake>},
    {"refused-take", make<RefusedTake>},
    {"cursor-release", make<CursorRelease>},
    {"leave-release", make<LeaveRelease>},
    {"join-admit", make<JoinAdmit, false>},
    {"join-leave", make<JoinAdmit, true>},
    {"lossy-copy", make<LossyCopy, 1U>},
    {"leave-reap", make<LeaveReap, false, false>},
    {"commit-leave-reap", make<LeaveReap, true, false>},
    {"death-reap", make<LeaveReap, false, true>},
    {"commit-death-reap", make<LeaveReap, true, true>},
    {"row-again", make<RowAgain>},
    {"quota-told", make<QuotaTold>},
    {"fault-told", make<FaultTold>},
    {"stop-acked", make<StopAcked>},
    {"committed-seen", make<CommittedSeen>},
    {"sleep-wake", make<SleepWake, 1>},
    {"two-sleepers", make<SleepWake, 2>},
    {"commit-wakes", make<CommitWakes>},
    {"stop-wakes", make<StopWakes>},
    {"ack-wakes", make<BrokerWakes, BrokerWakes::By::Ack>},
    {"quota-wakes", make<BrokerWakes, BrokerWakes::By::Quota>},
    {"end-wakes", make<BrokerWakes, BrokerWakes::By::End>},
    {"news-wakes", make<NewsWakes, false>},
    {"news-end-wakes", make<NewsWakes, true>},
    {"cursor-wakes", make<CursorWakes>},
    {"join-wakes", make<JoinWakes>},
    {"give-back-wakes", make<GiveBackWakes>},
    {"release-wakes", make<ReleaseWakes>},
    {"retained-given-up", make<RetainedGivenUp>},
    {"held-back-told", make<HeldBackTold>},
};

}  // namespace litmus

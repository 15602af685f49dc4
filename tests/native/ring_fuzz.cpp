// Hostile memory: honest publishers, subscribers and brokers on a ring whose words somebody else changes all the time.
//
//   live      one thread: steps of everybody, mutations of any word of the ring in between
//   restart   one thread: arbitrary words, then a broker takes the ring over, and what attach and fsck do
//   threads   a broker, publishers and subscribers in threads of their own, and one that mutates meanwhile
//
// What must never happen: a crash, an access outside of the ring (guard pages and poisoned padding: fuzz_memory.hpp),
// undefined behaviour (both sanitizers), a step without an end, an acknowledgement of a batch that its publisher has
// not committed, a batch whose bytes are not in a slot, and a broker that goes on with positions that cannot be. A
// broker that finds damage names the field and quarantines the ring: then everybody else ends with that status, and no
// other broker takes it over. Every 16th round of `live` has no mutations: nothing may be found, lost or refused there.
//
// usage: ring_fuzz MODE SEED MUTATIONS [ROUND]. A failure tells the round: with it only that round is run (`threads` do
// not repeat themselves). MUTATIONS: at least so many are made. Prints what was found, a line each.
#include <signal.h>
#include <sys/time.h>

#include <cstdarg>
#include <deque>
#include <map>
#include <memory>
#include <thread>

#include "broker.hpp"
#include "feed.hpp"
#include "fuzz_memory.hpp"
#include "publisher.hpp"
#include "receiver.hpp"
#include "subscriber.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

using namespace embar;
using fuzz::Memory;
using fuzz::Mutator;
using fuzz::Random;

// --- how a failure is told ---------------------------------------------------------------------------

const char* mode = "";
u64 seed = 0;
std::atomic<u64> current_round{0};
const char* current_step = "";

void tell_where() {
    std::fprintf(stderr, "again: ring_fuzz %s %lu 0 %lu (in: %s)\n", mode, seed, current_round.load(), current_step);
}
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "FORBIDDEN: ");
    std::vfprintf(stderr, format, arguments);
    std::fprintf(stderr, "\n");
    va_end(arguments);
    tell_where();
    std::_Exit(1);
}

// A round takes less than a millisecond, or a few when it sleeps: one that takes this long has no end.
constexpr int kPatience = 30;  // seconds
void on_alarm(int) {
    static u64 last = ~0ULL;
    static int since = 0;
    const u64 now = current_round.load();
    since = now == last ? since + 1 : 0;
    last = now;
    if (since < kPatience) return;
    static const char text[] = "FORBIDDEN: a step has no end\n";
    [[maybe_unused]] const auto n = write(2, text, sizeof text - 1);
    tell_where();
    std::_Exit(1);
}
void watch_over() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_set_death_callback(tell_where);
#endif
    struct sigaction action{};
    action.sa_handler = on_alarm;
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, nullptr);
    const itimerval second{{1, 0}, {1, 0}};
    setitimer(ITIMER_REAL, &second, nullptr);
}

// --- what is counted -----------------------------------------------------------------------------------

struct Tally {
    u64 mutations = 0, rounds = 0, quiet = 0, batches = 0, recovered = 0, refused = 0;
    std::map<std::string, u64> found;  // by field, without its index

    void note(const Finding& f) {
        std::string field;
        for (const char* c = f.field; *c; ++c)
            if (*c < '0' || *c > '9') field += *c;
        if (field.empty() || f.text[0] == 0) fail("a finding without a field, or without a text: '%s'", f.field);
        ++found[field];
    }
    void print() const {
        std::printf("mutations %lu\nrounds %lu\nquiet %lu\nbatches %lu\nrecovered %lu\nrefused %lu\n", mutations,
                    rounds, quiet, batches, recovered, refused);
        for (const auto& [field, n] : found) std::printf("finding %s %lu\n", field.c_str(), n);
    }
};

// --- the participants -----------------------------------------------------------------------------------

constexpr u64 kNow = 0;  // a deadline that is over: nobody sleeps
constexpr SpinOptions kBlock{WaitMode::Block, 0, 1};

struct Sender : Publisher {
    using Publisher::Publisher;
    u64 committed() const noexcept { return committed_; }
};
struct Remote : Receiver {
    using Receiver::Receiver;
    u64 committed() const noexcept { return committed_; }
};

struct Row {
    int lock_fd = -1;
    std::unique_ptr<Sender> sender;
    std::unique_ptr<Remote> remote;
    u64 committed = 0;  // the most that it can have been told
    bool alive() const { return sender || remote; }
};
struct Reader {
    int lock_fd = -1;
    std::unique_ptr<Subscriber> subscriber;
    std::unique_ptr<Feed> feed;  // then it has a subscriber of its own
    std::deque<u64> held;        // places
    std::unique_ptr<char[]> copy;
    Subscriber* core() const { return feed ? &feed->subscriber() : subscriber.get(); }
};

// A ring and everybody who uses it. Reused for many rounds: what a round leaves, the next formats away.
class World {
public:
    World(u32 slots, u64 slot_bytes, u32 publishers, u32 subscribers, Random& random, Tally& tally)
        : memory(slots, slot_bytes, publishers, subscribers), mutator(memory, random), ring(memory.ring()),
          random_(random), tally_(tally), rows_(publishers), readers_(subscribers), told_(publishers) {
        broker_fd_ = memory.open_again();
        for (Row& r : rows_) r.lock_fd = memory.open_again();
        for (Reader& r : readers_) {
            r.lock_fd = memory.open_again();
            r.copy = std::make_unique<char[]>(slot_bytes);
        }
        if (!try_lock_byte(broker_fd_, kBrokerLock)) fail("the broker's lock");
    }

    void begin(bool hostile) {
        hostile_ = hostile;
        // Where the laps wrap, too.
        const u64 tickets = memory.geometry().tickets;
        const u64 firsts[] = {0, 0, 0, (1ULL << 32) * tickets - random_.below(8), random_.below(1000)};
        memory.format(firsts[random_.below(std::size(firsts))]);
        mutator.forget();
        std::fill(told_.begin(), told_.end(), 0);
        for (Row& r : rows_) r.committed = 0;
        sent_ = 0;
        retain_ = random_.one_in(4) ? 1 : 0;
        start_broker();
        for (u32 i = 0; i < rows_.size(); ++i)
            if (!random_.one_in(3)) connect(i);
        for (u32 i = 0; i < readers_.size(); ++i)
            if (!random_.one_in(3)) subscribe(i);
    }
    void end() {
        broker_.reset();
        for (u32 i = 0; i < rows_.size(); ++i) die(i);
        for (u32 i = 0; i < readers_.size(); ++i) vanish(i);
        tally_.mutations += mutator.done() - counted_;
        counted_ = mutator.done();
    }

    // => false: the ring is quarantined, and everybody has noticed.
    bool step() {
        const u64 which = random_.below(100);
        if (which < 38) return publish(static_cast<u32>(random_.below(rows_.size())));
        if (which < 60) return serve();
        if (which < 84) return read(static_cast<u32>(random_.below(readers_.size())));
        if (which < 88) return come_and_go();
        if (which < 92) return restart();
        if (which < 94) return look();
        return serve_all();
    }

    // Without mutations: everything arrives.
    void finish_quietly() {
        current_step = "a quiet end";
        for (u32 i = 0; i < rows_.size(); ++i)
            if (Sender* const p = rows_[i].sender.get()) {
                p->flush();
                note_committed(i, p->committed());
            }
        for (u32 i = 0; i < readers_.size(); ++i) vanish(i);
        for (int n = 0; n < 4; ++n) {
            broker_->reap();
            serve_all();
        }
        for (u32 i = 0; i < rows_.size(); ++i)
            if (rows_[i].alive() && ring.publisher(i).accepted_seq != rows_[i].committed)
                fail("publisher %u: %lu of %lu batches accepted; tail %lu head %lu released %lu", i,
                     ring.publisher(i).accepted_seq.load(), rows_[i].committed, ring.control().tail.load(),
                     ring.control().head.load(), ring.control().released.load());
        const Control& c = ring.control();
        if (c.head != c.tail || c.head - c.released > retain_ || c.duplicated || c.out_of_order || c.corrupt)
            fail("tail %lu head %lu released %lu, refused %lu %lu %lu", c.tail.load(), c.head.load(), c.released.load(),
                 c.duplicated.load(), c.out_of_order.load(), c.corrupt.load());
        Invariants invariants(ring);
        const auto forbidden = [](const Finding& f) { fail("sound, and found: %s: %s", f.field, f.text); };
        if (invariants.check_structure(forbidden)) invariants.check_contents(forbidden);
        tally_.batches += sent_;
        ++tally_.quiet;
    }

    // --- restart mode ---

    void scramble() {
        current_step = "attach";
        Geometry found;
        const u64 size = random_.one_in(2) ? memory.geometry().total_bytes
                                           : random_.below(memory.geometry().total_bytes + 1) / 8 * 8;
        if (!Ring::unusable(memory.base(), size, found, random_.one_in(2)) && found.slots_offset > size)
            fail("a ring of %lu bytes was found in %lu", found.slots_offset, size);
        look();
        broker_.reset();
        if (start_broker()) serve_all();
    }

    Memory memory;
    Mutator mutator;
    const Ring ring;

private:
    // --- the broker ---

    // => false: it finds damage.
    bool start_broker() {
        current_step = "a broker that begins";
        note_words();
        // What a new broker believes is what the rows say: of those that are in use, and no more than is committed.
        for (u32 i = 0; hostile_ && i < rows_.size(); ++i)
            rows_[i].committed = std::max(rows_[i].committed, ring.publisher(i).committed_seq.load() + 1);
        broker_ = std::make_unique<Broker>(ring, broker_fd_, kBlock, /*stage_times=*/random_.one_in(8), retain_);
        at_ = broker_->position();
        if (broker_->corruption()) {
            tally_.note(broker_->corruption());
            ++tally_.refused;
            quarantined();
            return false;
        }
        check_broker();
        // From now on it stands by what it has read there.
        for (u32 i = 0; i < rows_.size(); ++i)
            if (const u64 told = ring.publisher(i).accepted_seq; rows_[i].alive() && told > rows_[i].committed)
                fail("publisher %u has committed %lu batches, and a new broker stands by %lu", i, rows_[i].committed,
                     told);
        return true;
    }
    bool restart() {
        if (hostile_ && random_.one_in(2)) mutator.mutate();
        broker_.reset();
        if (!start_broker()) return false;
        ++tally_.recovered;
        return true;
    }
    bool serve() {
        current_step = "a step of the broker";
        note_words();
        const bool wanted = random_.one_in(2);
        switch (random_.below(8)) {
            case 0: {
                Accepted a;
                if (broker_->accept(a)) broker_->announce(a.where.owner);
                break;
            }
            case 1:
            case 2: broker_->sweep(wanted, random_.one_in(2)); break;
            case 3: broker_->release(wanted); break;
            case 4: broker_->release_next(); break;
            case 5: broker_->reap(); break;
            case 6: broker_->admit(); break;
            default: broker_->audit(); break;
        }
        check_broker();
        return broker_->corruption() ? serve_all() : true;
    }
    bool serve_all() {
        current_step = "Broker::serve";
        note_words();
        const Broker::Result result = broker_->serve(kNow);
        check_broker();
        if (!broker_->corruption()) {
            if (result != Broker::Result::TimedOut) fail("serve() ended with %d", static_cast<int>(result));
            return true;
        }
        if (result != Broker::Result::Corrupt) {  // found at its end
            if (broker_->serve(kNow) != Broker::Result::Corrupt) fail("a broker served on after it found damage");
        }
        tally_.note(broker_->corruption());
        quarantined();
        return false;
    }
    // Everybody has to notice, and to end.
    void quarantined() {
        if (!hostile_) fail("nothing was changed, and %s: %s", broker_->corruption().field, broker_->corruption().text);
        current_step = "a quarantined ring";
        if (ring.control().state != static_cast<u32>(BrokerState::Quarantined)) fail("it is not quarantined");
        if (ring.segment_header()->damage[0] == 0 && broker_->corruption().field != std::string("control.state"))
            fail("the header does not tell why");
        for (Row& r : rows_)
            if (r.sender) {
                Status s = Status::Ok;
                const std::string message(r.sender->options().message_size ? 24 : 8, 'x');
                if (r.sender->has_reservation()) r.sender->finish_reservation(false);
                for (int n = 0; n < 100 && s == Status::Ok; ++n) s = r.sender->append(message.data(), message.size());
                if (s != Status::Quarantined && s != Status::Faulted && s != Status::Corrupt)
                    fail("a publisher gets status %d", static_cast<int>(s));
                const Status peer = r.sender->peer_status();
                if (peer != Status::Quarantined && peer != Status::Faulted)
                    fail("a publisher that waits gets status %d", static_cast<int>(peer));
            } else if (r.remote) {
                const Status peer = r.remote->peer_status();
                if (peer != Status::Quarantined && peer != Status::Faulted)
                    fail("a receiver gets status %d", static_cast<int>(peer));
            }
        for (Reader& r : readers_)
            if (Subscriber* const s = r.core())
                if (s->peer() != Subscriber::Peer::Quarantined) fail("a subscriber is not told");
        const Broker another(ring, broker_fd_, kBlock);
        if (std::string(another.corruption().field) != "control.state") fail("another broker takes it over");
    }

    void note_words() {
        for (u32 i = 0; i < rows_.size(); ++i) told_[i] = ring.publisher(i).accepted_seq.load();
    }
    void check_broker() {
        const Broker::Position p = broker_->position();
        if (p.released > p.passed || p.passed > p.head || p.head - p.released > ring.geometry().slots)
            fail("released %lu passed %lu head %lu", p.released, p.passed, p.head);
        if (p.released < at_.released || p.passed < at_.passed || p.head < at_.head) fail("a position moved back");
        at_ = p;
        for (u32 i = 0; i < rows_.size(); ++i) {
            const u64 now = ring.publisher(i).accepted_seq.load();
            if (now != told_[i] && now > rows_[i].committed)  // else the broker has not written it
                fail("publisher %u has committed %lu batches, and is told %lu", i, rows_[i].committed, now);
        }
    }

    // --- publishers ---

    bool publish(u32 i) {
        current_step = "a publisher";
        Row& r = rows_[i];
        if (r.remote) {
            receive(i, *r.remote);
            return true;
        }
        if (!r.sender) return true;
        Sender& p = *r.sender;
        const u64 size = p.options().message_size ? 24 : 1 + random_.below(40);
        char bytes[64] = {};
        switch (random_.below(8)) {
            case 0: {
                char* place = nullptr;
                if (p.reserve(size, place) != Status::Ok) break;
                std::memset(place, 'r', size);
                p.finish_reservation(!random_.one_in(4));
                break;
            }
            case 1: {
                u64 done;
                if (p.options().message_size) p.append_block(bytes, 2, size, done);
                break;
            }
            case 2: p.flush(); break;
            case 3:
                p.wait_space(kNow);
                p.may_claim();
                break;
            case 4:
                p.wait_acked(p.committed_seq(), kNow);
                p.peer_status();
                p.in_flight_seen();
                break;
            default:
                for (u64 n = random_.below(6); n-- && p.append(bytes, size) == Status::Ok;) {}
                if (!random_.one_in(3)) p.flush();
        }
        // One more where the last one was written into the slot, and found no place.
        note_committed(i, p.committed() + (p.state() == Status::Corrupt));
        return true;
    }
    void receive(u32 i, Remote& p) {
        char* body = nullptr;
        if (p.claim(body) != Status::Ok) {
            p.wait_space(kNow);
            return;
        }
        if (random_.one_in(5)) return p.give_back();
        BatchHeader h{};
        h.magic = kBatchMagic;
        h.version = kBatchVersion;
        h.publisher_id = 100 + i;
        h.incarnation = p.row().incarnation.load();
        h.seq = p.committed() + 1;
        h.messages = 2;
        h.message_size = 16;
        h.body_bytes = h.payload_bytes = 32;
        std::memset(body, 'b', 32);
        if (hostile_ && random_.one_in(10)) h.messages = 3;
        p.commit(h, 0);
        note_committed(i, p.committed() + (p.state() == Status::Corrupt));
    }
    void note_committed(u32 i, u64 committed) {
        if (committed > rows_[i].committed) {
            sent_ += committed - rows_[i].committed;
            rows_[i].committed = committed;
        }
    }
    void connect(u32 i) {
        Row& r = rows_[i];
        if (ring.publisher(i).state != static_cast<u32>(EntryState::Free)) return;
        if (!try_lock_byte(r.lock_fd, publisher_lock(i))) return;
        r.committed = 0;
        PublisherOptions o;
        o.row = {100 + i, ++incarnations_, static_cast<u32>(1 + random_.below(3)), 1, random_.one_in(8), 0};
        if (random_.one_in(3)) {
            r.remote = std::make_unique<Remote>(ring, i, r.lock_fd, o.row, kBlock);
            ring.publisher(i).remote.store(1);
            return;
        }
        o.message_size = random_.one_in(2) ? 24 : 0;
        o.batch_bytes = ring.geometry().slot_bytes;
        r.sender = std::make_unique<Sender>(ring, i, r.lock_fd, o, kBlock);
    }
    void die(u32 i) {
        Row& r = rows_[i];
        r.sender.reset();
        r.remote.reset();
        unlock_byte(r.lock_fd, publisher_lock(i));
    }

    // --- subscribers ---

    bool read(u32 i) {
        current_step = "a subscriber";
        Reader& r = readers_[i];
        Subscriber* const s = r.core();
        if (!s) return true;
        if (s->joined() != Subscriber::Joined::Yes) {
            s->wait_joined(kNow);
            return true;
        }
        if (r.feed) return feed(*r.feed);
        if (!r.held.empty() && random_.one_in(2)) {
            const auto which = r.held.begin() + static_cast<std::ptrdiff_t>(random_.below(r.held.size()));
            s->pass(*which);
            r.held.erase(which);
            return true;
        }
        Subscriber::View v;
        const auto take = s->take(v, [&r](const char* body, u64 bytes) -> const char* {
            std::memcpy(r.copy.get(), body, bytes);
            return r.copy.get();
        });
        switch (take) {
            case Subscriber::Take::Batch:
                check_view(v, r.copy.get());
                if (s->options().mode == SubscribeMode::Reliable) r.held.push_back(v.place);
                break;
            case Subscriber::Take::Nothing:
                s->wait(kNow);
                s->peer();
                break;
            case Subscriber::Take::Corrupt:
            case Subscriber::Take::Damaged:
                if (!hostile_) fail("a subscriber finds damage");
                break;
            case Subscriber::Take::NoMemory: fail("no memory was needed");
        }
        return true;
    }
    bool feed(Feed& f) {
        if (f.known().credit.granted == 0) {
            f.begin(f.subscriber().next());
            f.resume(f.subscriber().next(), 1000);
            f.subscriber().interrupt();  // its waits end at once
        }
        Subscriber::View v;
        const Feed::Found found = f.find(v);
        if (found == Feed::Found::Batch) {
            check_view(v, nullptr);
            Feed::Known k = f.known();
            if (!random_.one_in(3)) f.credit({k.sent_to, k.credit.granted});
        } else if (!hostile_ && (found == Feed::Found::Corrupt || found == Feed::Found::Damaged)) {
            fail("a feed finds damage");
        }
        return true;
    }
    void check_view(const Subscriber::View& v, const char* copy) {
        if (!well_formed(v.header, ring.geometry().slot_bytes)) fail("a batch whose header makes no sense");
        if (v.body != copy && copy && !memory.inside_slots(v.body, v.header.body_bytes))
            fail("a batch outside of the slots");
        static std::atomic<u64> sum{0};
        u64 n = 0;
        for (u64 at = 0; at < v.header.body_bytes; ++at) n += static_cast<unsigned char>(v.body[at]);
        sum.store(n, std::memory_order_relaxed);
    }
    void subscribe(u32 i) {
        Reader& r = readers_[i];
        if (ring.subscriber(i).state != static_cast<u32>(SubscriberState::Free)) return;
        if (!try_lock_byte(r.lock_fd, subscriber_lock(i))) return;
        r.held.clear();
        SubscriberOptions o;
        o.mode = random_.one_in(3) ? SubscribeMode::Lossy : SubscribeMode::Reliable;
        o.start = random_.one_in(2) ? Start::Latest : Start::Earliest;
        const Ring view = memory.subscribers_ring();
        if (o.mode == SubscribeMode::Reliable && random_.one_in(3)) {
            o.remote_id = 7, o.remote_incarnation = 1;
            r.feed = std::make_unique<Feed>(view, i, r.lock_fd, "feed", o, kBlock);
        } else {
            r.subscriber = std::make_unique<Subscriber>(view, i, r.lock_fd, "reader", o, kBlock);
        }
    }
    void vanish(u32 i) {
        Reader& r = readers_[i];
        if (r.feed && !hostile_) r.feed->subscriber().leave();  // else a new broker keeps its row for a while
        r.subscriber.reset();
        r.feed.reset();
        unlock_byte(r.lock_fd, subscriber_lock(i));
    }

    // --- coming and going ---

    bool come_and_go() {
        current_step = "coming and going";
        const auto i = static_cast<u32>(random_.below(rows_.size()));
        const auto k = static_cast<u32>(random_.below(readers_.size()));
        switch (random_.below(5)) {
            case 0:
                if (rows_[i].sender && hostile_) rows_[i].sender->close();
                if (rows_[i].remote && hostile_) rows_[i].remote->close();
                if (hostile_) die(i);
                break;
            case 1:
                if (hostile_) die(i);
                break;
            case 2:
                if (Subscriber* const s = readers_[k].core(); s && random_.one_in(2)) s->leave();
                vanish(k);
                break;
            case 3:
                if (!rows_[i].alive()) connect(i);
                break;
            default:
                if (!readers_[k].core()) subscribe(k);
        }
        return true;
    }

    // As fsck does.
    bool look() {
        current_step = "fsck";
        Invariants invariants(ring);
        const auto note = [this](const Finding& f) {
            if (!hostile_) fail("sound, and found: %s: %s", f.field, f.text);
            if (f.field[0] == 0 || f.text[0] == 0) fail("a finding without a field, or without a text");
        };
        invariants.check_structure(note);
        invariants.check_contents(note);
        for (const Invariants::Unfinished& u : invariants.unfinished())
            if (u.slot >= ring.geometry().slots) fail("slot %u is unfinished: there is none", u.slot);
        return true;
    }

    Random& random_;
    Tally& tally_;
    std::vector<Row> rows_;
    std::vector<Reader> readers_;
    std::vector<u64> told_;
    std::unique_ptr<Broker> broker_;
    Broker::Position at_{};
    int broker_fd_ = -1;
    bool hostile_ = false;
    u32 retain_ = 0;
    u64 incarnations_ = 0, sent_ = 0, counted_ = 0;
};

struct Worlds {
    Worlds(Random& random, Tally& tally) {
        all.push_back(std::make_unique<World>(3, 256, 3, 3, random, tally));
        all.push_back(std::make_unique<World>(4, 128, 2, 2, random, tally));
        all.push_back(std::make_unique<World>(1, 64, 2, 1, random, tally));
    }
    std::vector<std::unique_ptr<World>> all;
};

// A round of its own seed, so that it can be run alone.
void one_round(Worlds& worlds, Random& random, u64 round, Tally& tally, bool restarts) {
    current_round.store(round);
    random = Random(seed ^ Random(round)());
    World& world = *worlds.all[random.below(worlds.all.size())];
    const bool hostile = restarts || round % 16 != 0;
    world.begin(hostile);
    bool sound = true;
    for (u64 n = random.below(restarts ? 30 : 24); sound && n--;) sound = world.step();
    world.mutator.observe();
    const u64 most = 1ULL << random.below(restarts ? 8 : 5);
    for (u64 n = random.below(80); sound && n--;) {
        if (hostile)
            for (u64 m = random.below(most + 1); m--;) world.mutator.mutate();
        if (restarts) {
            world.scramble();
            break;
        }
        sound = world.step();
        world.mutator.observe();
    }
    if (!hostile) world.finish_quietly();
    world.end();
    ++tally.rounds;
}

// --- everybody at the same time -------------------------------------------------------------------------

// Nobody is ever found dead here. Races are the point, so only what is certain is asked: that all of them end.
void together(Memory& memory, Random& random, u64 round, Tally& tally) {
    current_round.store(round);
    current_step = "threads";
    memory.format(0);
    const Ring ring = memory.ring(), view = memory.subscribers_ring();
    Broker broker(ring, -1, kBlock);
    std::atomic<bool> over{false};
    constexpr u64 kShort = 1'000'000;
    std::vector<std::thread> threads;
    threads.emplace_back([&] {
        while (!over)
            if (broker.serve(now_ns() + kShort) == Broker::Result::Corrupt) over = true;
    });
    for (u32 i = 0; i < 2; ++i)
        threads.emplace_back([&, i] {
            PublisherOptions o;
            o.row = {100 + i, 1, 2, 1, false, 0};
            o.message_size = i ? 24 : 0;
            o.batch_bytes = ring.geometry().slot_bytes;
            Publisher p(ring, i, -1, o, kBlock);
            const char bytes[24] = {};
            while (!over) {
                Status s = p.append(bytes, sizeof bytes);
                if (s == Status::Ok) s = p.flush();
                if (s == Status::NeedSlot) p.wait_space(now_ns() + kShort);
                p.wait_acked(p.committed_seq(), now_ns() + kShort / 10);
                if (s != Status::Ok && s != Status::NeedSlot) return;
            }
        });
    for (u32 i = 0; i < 2; ++i)
        threads.emplace_back([&, i] {
            SubscriberOptions o;
            o.mode = i ? SubscribeMode::Lossy : SubscribeMode::Reliable;
            Subscriber s(view, i, -1, "reader", o, kBlock);
            const auto copy = std::make_unique<char[]>(ring.geometry().slot_bytes);
            volatile char last = 0;
            while (!over) {
                if (s.joined() != Subscriber::Joined::Yes) {
                    s.wait_joined(now_ns() + kShort);
                    continue;
                }
                Subscriber::View v;
                const auto take = s.take(v, [&](const char* body, u64 bytes) -> const char* {
                    std::memcpy(copy.get(), body, bytes);
                    return copy.get();
                });
                if (take == Subscriber::Take::Batch) {
                    for (u64 at = 0; at < v.header.body_bytes; ++at) last = v.body[at];
                    s.pass(v.place);
                } else if (take == Subscriber::Take::Nothing) {
                    s.wait(now_ns() + kShort);
                } else if (take == Subscriber::Take::Corrupt) {
                    return;
                }
            }
            static_cast<void>(last);
        });
    Mutator mutator(memory, random);
    for (u64 n = random.below(2000); !over && n--;) {
        mutator.mutate();
        mutator.observe();
        if (random.one_in(50)) std::this_thread::yield();
    }
    over = true;
    for (std::thread& t : threads) t.join();
    if (broker.corruption()) tally.note(broker.corruption());
    tally.mutations += mutator.done();
    ++tally.rounds;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 4) {
        std::fprintf(stderr, "usage: ring_fuzz live|restart|threads SEED MUTATIONS [ROUND]\n");
        return 2;
    }
    mode = arguments[1];
    seed = std::strtoull(arguments[2], nullptr, 10);
    const u64 mutations = std::strtoull(arguments[3], nullptr, 10);
    watch_over();
    Tally tally;
    Random random(seed);
    if (std::string(mode) == "threads") {
        Memory memory(4, 256, 2, 2);
        for (u64 round = 0; tally.mutations < mutations; ++round) together(memory, random, round, tally);
        tally.print();
        return 0;
    }
    Worlds worlds(random, tally);
    const bool restarts = std::string(mode) == "restart";
    if (count > 4)
        one_round(worlds, random, std::strtoull(arguments[4], nullptr, 10), tally, restarts);
    else
        for (u64 round = 0; tally.mutations < mutations; ++round) one_round(worlds, random, round, tally, restarts);
    tally.print();
    return 0;
}

// Runs a few threads of real code in every way that the memory model of C++20 allows.
//
// Included before the headers under test, it puts its own class in the place of std::atomic, and itself in the place of
// memcpy, of futex and of the kernel's locks. Each access to a watched piece of memory is then an *event*. The threads
// are fibers; one event at a time is added to a graph, and what a thread reads is not what the memory holds but
// whatever the model lets it read. All choices are tried: who is next, which write a load reads from, where among the
// writes of its word a store stands.
//
// The model is RC11 (Lahav, Vafeiadis, Kang, Hur, Dreyer: "Repairing Sequential Consistency in C/C++11", 2017), with
// the release sequences of C++20:
//   hb         program order, and from what was released to who acquires it, also through fences and chains of
//              read-modify-writes
//   coherence  the writes of each word have one order, and nobody goes back in it
//   atomicity  nothing stands between a read-modify-write and the write that it read
//   SC         the order that seq_cst accesses must have (psc of RC11) has no cycle
//   thin air   nothing is read before it was written: program order and reads-from have no cycle
// The last one is stronger than C++ is on paper, and than some machines are: a relaxed load may not be delayed beyond a
// later store of its thread ("load buffering").
//
// Plain bytes (memcpy) must not be raced for: two accesses, one of them a write, without hb between them, are a
// failure. Where they are raced for by design (the copy of a lossy subscriber) they count as relaxed atomic accesses to
// blocks of 64 bytes.
//
// A graph that was seen before is not gone on with: it does not matter in which order it came to be.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <bitset>
#include <cinttypes>
#include <climits>
#include <condition_variable>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <source_location>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

namespace weak {

using std::memory_order;
using u64 = std::uint64_t;

constexpr std::size_t kMaxEvents = 320;
constexpr int kMostOfOne = 160;  // events of one thread
constexpr std::size_t kBlock = 128;
constexpr int kMaxSame = 2;  // times that one place in the code may read the same old value: then it would be stuck
using Set = std::bitset<kMaxEvents>;

constexpr bool acquires(memory_order o) noexcept {
    return o == memory_order::acquire || o == memory_order::acq_rel || o == memory_order::seq_cst;
}
constexpr bool releases(memory_order o) noexcept {
    return o == memory_order::release || o == memory_order::acq_rel || o == memory_order::seq_cst;
}
inline const char* name_of(memory_order o) noexcept {
    switch (o) {
        case memory_order::relaxed: return "relaxed";
        case memory_order::consume: return "consume";
        case memory_order::acquire: return "acquire";
        case memory_order::release: return "release";
        case memory_order::acq_rel: return "acq_rel";
        case memory_order::seq_cst: return "seq_cst";
    }
    return "?";
}

// --- places in the code, whose order can be made weaker -------------------------------------------------

enum class Kind : unsigned char { Load, Store, Update, Fence, Read, Write, Sleep, Wake };

// `part`: 1 is the failure of a compare_exchange.
struct Site {
    std::string_view file, function;
    unsigned line = 0, column = 0;
    int part = 0;
    auto key() const { return std::tie(line, column, part, file); }  // a template has many names
    bool operator<(const Site& o) const { return key() < o.key(); }
    bool operator==(const Site& o) const { return key() == o.key(); }
};
struct Use {
    Kind kind;
    memory_order order;
    int index = 0;  // among those of its function, in the order of the source
};
struct Mutant {
    Site site;
    memory_order order;
};

// --- the graph -------------------------------------------------------------------------------------------

struct Event {
    int thread;
    int number;  // in its thread
    Kind kind;
    memory_order order;
    int word;
    int from;     // Load, Update, Read: the write that was read; -1: the value at the beginning
    u64 value;    // what an atomic write wrote
    int block;    // what a plain write wrote: index into blocks
    u64 wakes;    // Sleep: wake-ups of this word so far
    Set before;   // hb, and itself
    Set carries;  // writes: what who acquires it gets to know
};

struct Word {
    void* at;
    std::size_t bytes;
    bool plain;
    u64 first = 0;
    std::array<unsigned char, kBlock> first_block{};
    std::vector<int> writes;  // in modification order; before them, the value at the beginning
    u64 wakes = 0;
};

struct Failure {
    std::string what;
};

class Explorer {
public:
    struct Thread {
        ucontext_t context{};
        std::vector<char> stack = std::vector<char>(256 << 10);
        std::function<void()> body;
        bool done = false;
        int asleep = -1;  // on this word
        bool woken = false;
        int count = 0;               // events
        const void* next = nullptr;  // the word of its next event
        bool next_writes = false;
        Set before, pending, fenced;
        std::map<std::pair<u64, int>, int> same;  // (place, write) -> times read
    };

    // Settings of the litmus program, and of this run.
    bool races_allowed = false;
    const Mutant* mutant = nullptr;
    std::map<Site, Use>* uses = nullptr;
    struct Result {
        u64 graphs = 0, ends = 0, stuck = 0;
        bool all = true;
        std::string forbidden;  // empty: none
    };

    // `make` builds everything anew and calls watch() and thread(); then all threads run; then `check` looks.
    Result explore(const std::function<void()>& make, const std::function<void()>& check, u64 most = ~0ULL) {
        result_ = Result{};
        choices_.clear();
        seen_.clear();
        ended_.clear();
        users_.clear();
        again_ = false;
        for (;;) {
            at_ = 0;
            run(make, check);
            if (std::exchange(again_, false)) {  // with what is known now
                result_ = Result{};
                choices_.clear();
                seen_.clear();
                ended_.clear();
                continue;
            }
            if (!result_.forbidden.empty()) return result_;
            if (result_.graphs > most) {
                result_.all = false;
                return result_;
            }
            while (!choices_.empty() && choices_.back().first + 1 == choices_.back().second) choices_.pop_back();
            if (choices_.empty()) return result_;
            ++choices_.back().first;
        }
    }

    // --- for the litmus program ---

    void watch(const void* from, std::size_t bytes) { watched_.emplace_back(static_cast<const char*>(from), bytes); }
    // Not an event: only diagnoses, or is written and read by one thread.
    void ignore(const void* word) { ignored_.insert(word); }
    void thread(std::function<void()> body) {
        threads_.push_back(std::make_unique<Thread>());
        threads_.back()->body = std::move(body);
    }
    bool asleep(int thread) const { return threads_[static_cast<std::size_t>(thread)]->asleep >= 0; }
    [[noreturn]] void fail(const std::string& what) {
        if (running_ < 0) throw Failure{what};
        failed_ = what;
        abandon();
    }

    // --- for the replacements below ---

    bool modelled(const void* p) const {
        if (running_ < 0 || ignored_.contains(p)) return false;
        for (const auto& [from, bytes] : watched_)
            if (p >= from && p < from + bytes) return true;
        return false;
    }
    u64 load(void* p, std::size_t bytes, u64 value, memory_order order, const Site& site) {
        order = order_at(site, Kind::Load, order);
        step(p, false);
        const int w = word(p, value, bytes);
        const int from = choose_read(w, site);
        add_read(Kind::Load, w, from, order);
        return value_of(w, from);
    }
    void store(void* p, std::size_t bytes, u64 first, u64 value, memory_order order, const Site& site) {
        order = order_at(site, Kind::Store, order);
        step(p, true);
        const int w = word(p, first, bytes);
        add_write(w, place_write(w), value, order);
    }
    // A compare_exchange only succeeds for the write it was told to expect; others always do.
    u64 update(void* p, std::size_t bytes, u64 first, const std::function<u64(u64)>& change, const u64* expected,
               memory_order order, memory_order failure, const Site& site, bool& done) {
        order = order_at(site, Kind::Update, order);
        if (expected) {
            Site other = site;
            other.part = 1;
            failure = order_at(other, Kind::Load, failure);
        }
        step(p, true);
        const int w = word(p, first, bytes);
        Word& word = words_[static_cast<std::size_t>(w)];
        const int from = choose_read(w, site,
                                     [&](int candidate) {  // who would succeed must be the next in the order of writes
                                         if (expected && value_of(w, candidate) != *expected) return true;
                                         return !taken(w, candidate);
                                     });
        const u64 old = value_of(w, from);
        done = !expected || old == *expected;
        if (!done) {
            add_read(Kind::Load, w, from, failure);
            return old;
        }
        const int e = add_event(Kind::Update, order, w, from);
        const auto where = from < 0 ? word.writes.begin() : std::find(word.writes.begin(), word.writes.end(), from) + 1;
        word.writes.insert(where, e);
        read_from(e, from);
        publish(e, change(old));
        order_sc(e);
        return old;
    }
    void fence(memory_order order, const Site& site) {
        if (running_ < 0) return;
        order = order_at(site, Kind::Fence, order);
        if (order == memory_order::seq_cst) fail("seq_cst fences are not in this model");
        if (order == memory_order::relaxed) return;
        step(nullptr, false);
        Thread& t = current();
        if (acquires(order)) t.before |= t.pending;
        add_event(Kind::Fence, order, -1, -1);
        if (releases(order)) t.fenced = t.before;
    }

    // Plain bytes.
    void read(void* to, const void* from, std::size_t n) {
        blocks(const_cast<void*>(from), n, [&](void* p, std::size_t at, std::size_t k) {
            step(p, false);
            const int w = word(p, 0, k, true);
            const Word& word = words_[static_cast<std::size_t>(w)];
            int source = word.writes.empty() ? -1 : word.writes.back();
            if (races_allowed)
                source = choose_read(w, Site{});
            else
                for (const int other : word.writes)
                    if (!current().before[static_cast<std::size_t>(other)]) race(w, other);
            const auto& bytes =
                source < 0 ? word.first_block
                           : blocks_[static_cast<std::size_t>(events_[static_cast<std::size_t>(source)].block)];
            add_read(Kind::Read, w, source, memory_order::relaxed);
            std::memcpy(static_cast<char*>(to) + at, bytes.data(), k);
        });
    }
    void write(void* to, const void* from, std::size_t n) {
        blocks(to, n, [&](void* p, std::size_t at, std::size_t k) {
            step(p, true);
            const int w = word(p, 0, k, true);
            if (!races_allowed)
                for (std::size_t e = 0; e < events_.size(); ++e)
                    if (events_[e].word == w && !current().before[e]) race(w, static_cast<int>(e));
            blocks_.emplace_back();
            std::memcpy(blocks_.back().data(), static_cast<const char*>(from) + at, k);
            const int e = add_write(w, place_write(w), 0, memory_order::relaxed, Kind::Write);
            events_[static_cast<std::size_t>(e)].block = static_cast<int>(blocks_.size()) - 1;
        });
    }

    // The kernel's: it compares what is the last value, and who comes to sleep after the wake-up is not woken.
    bool sleep(void* p, std::size_t bytes, u64 first, u64 seen) {
        step(p, true);
        const int w = word(p, first, bytes);
        Word& word = words_[static_cast<std::size_t>(w)];
        const int from = word.writes.empty() ? -1 : word.writes.back();
        const int e = add_event(Kind::Sleep, memory_order::relaxed, w, from);
        events_[static_cast<std::size_t>(e)].wakes = word.wakes;
        if (value_of(w, from) != seen) return false;
        current().asleep = w;
        switch_out();
        return true;
    }
    void wake(void* p, std::size_t bytes, u64 first) {
        step(p, true);
        const int w = word(p, first, bytes);
        ++words_[static_cast<std::size_t>(w)].wakes;
        add_event(Kind::Wake, memory_order::relaxed, w, -1);
        for (auto& t : threads_)
            if (t->asleep == w) {
                t->asleep = -1;
                t->woken = true;
            }
    }
    int running() const { return running_; }

private:
    Thread& current() { return *threads_[static_cast<std::size_t>(running_)]; }

    // --- one run ---

    void run(const std::function<void()>& make, const std::function<void()>& check) {
        events_.clear();
        words_.clear();
        blocks_.clear();
        by_address_.clear();
        threads_.clear();
        watched_.clear();
        ignored_.clear();
        sc_.clear();
        after_.clear();
        failed_.clear();
        abandoned_ = false;
        make();
        for (auto& t : threads_) {
            getcontext(&t->context);
            t->context.uc_stack.ss_sp = t->stack.data();
            t->context.uc_stack.ss_size = t->stack.size();
            t->context.uc_link = &scheduler_;
            makecontext(&t->context, reinterpret_cast<void (*)()>(&Explorer::enter), 0);
        }
        instance() = this;
        // Each to its first event.
        for (std::size_t i = 0; i < threads_.size() && !abandoned_; ++i) resume(static_cast<int>(i));
        while (!abandoned_) {
            for (std::size_t i = 0; i < threads_.size(); ++i)  // who was woken comes to its next event: that is none
                if (std::exchange(threads_[i]->woken, false)) resume(static_cast<int>(i));
            if (abandoned_) break;
            std::vector<int> ready;
            int eager = -1;
            for (std::size_t i = 0; i < threads_.size(); ++i)
                if (!threads_[i]->done && threads_[i]->asleep < 0) {
                    ready.push_back(static_cast<int>(i));
                    if (eager < 0 && commutes(i)) eager = static_cast<int>(i);
                }
            if (again_) return;
            if (eager >= 0) {
                resume(eager);
                continue;
            }
            if (at_ >= choices_.size()) {
                if (!seen_.insert(graph()).second) return;
                ++result_.graphs;
            }
            if (ready.empty()) break;
            resume(ready[choose(ready.size())]);
        }
        if (failed_.empty() && abandoned_) return;
        settle();
        try {
            if (failed_.empty()) {
                if (ended_.insert(graph()).second) ++result_.ends;
                check();
            }
        } catch (const Failure& f) {
            failed_ = f.what;
        }
        if (failed_.empty()) return;
        result_.forbidden = failed_ + "\n" + story();
    }
    // The last value of each word to where it belongs.
    void settle() {
        for (const Word& w : words_) {
            if (w.writes.empty()) continue;
            const Event& last = events_[static_cast<std::size_t>(w.writes.back())];
            if (w.plain)
                std::memcpy(w.at, blocks_[static_cast<std::size_t>(last.block)].data(), w.bytes);
            else
                std::memcpy(w.at, &last.value, w.bytes);  // little endian
        }
    }
    static void enter() {
        Explorer& x = *instance();
        Thread& t = x.current();
        t.body();
        t.done = true;
    }
    void resume(int i) {
        running_ = i;
        swapcontext(&scheduler_, &threads_[static_cast<std::size_t>(i)]->context);
        running_ = -1;
    }
    void switch_out() {
        Thread& t = current();
        swapcontext(&t.context, &scheduler_);
    }
    // Before each event: others may come first.
    void step(const void* p, bool writes) {
        Thread& t = current();
        t.next = p;
        t.next_writes = writes;
        switch_out();
    }
    // Does it matter when the next event of this thread comes? Not if nobody else writes that word, and nobody else
    // reads what is written. As far as is known: if it turns out otherwise, everything is begun again.
    bool commutes(std::size_t i) {
        const Thread& t = *threads_[i];
        if (!t.next) return true;
        Users& u = users_[t.next];
        const unsigned me = 1U << i;
        const bool before = u.shared();
        u.all |= me;
        if (t.next_writes) u.writers |= me;
        if (u.shared() && !before && u.eager) again_ = true;
        if (!u.shared()) u.eager = true;
        return !u.shared();
    }
    [[noreturn]] void abandon() {
        abandoned_ = true;
        for (;;) switch_out();
    }
    // `n` ways to go on: each is tried, in a run of its own.
    std::size_t choose(std::size_t n) {
        if (n == 1) return 0;
        if (at_ == choices_.size()) choices_.emplace_back(0, n);
        return choices_[at_++].first;
    }

    // --- words and events ---

    int word(void* p, u64 value, std::size_t bytes, bool plain = false) {
        if (const auto found = by_address_.find(p); found != by_address_.end()) return static_cast<int>(found->second);
        by_address_[p] = words_.size();
        words_.push_back({p, bytes, plain, value, {}, {}, 0});
        if (plain) std::memcpy(words_.back().first_block.data(), p, bytes);
        return static_cast<int>(words_.size()) - 1;
    }
    template <class F>
    void blocks(void* p, std::size_t n, F&& each) {
        const std::size_t block = races_allowed ? 64 : kBlock;
        for (std::size_t at = 0; at < n; at += block) each(static_cast<char*>(p) + at, at, std::min(block, n - at));
    }
    u64 value_of(int w, int from) const {
        return from < 0 ? words_[static_cast<std::size_t>(w)].first : events_[static_cast<std::size_t>(from)].value;
    }
    // How far in the order of writes this thread has come: it must not read or write anything before.
    std::size_t floor_of(int w) {
        const Word& word = words_[static_cast<std::size_t>(w)];
        const Set& before = current().before;
        for (std::size_t n = word.writes.size(); n > 0; --n) {
            const int write = word.writes[n - 1];
            if (before[static_cast<std::size_t>(write)]) return n;
            for (std::size_t e = 0; e < events_.size(); ++e)
                if (before[e] && events_[e].word == w && events_[e].from == write && reads(events_[e])) return n;
        }
        return 0;
    }
    static bool reads(const Event& e) {
        return e.kind == Kind::Load || e.kind == Kind::Update || e.kind == Kind::Read || e.kind == Kind::Sleep;
    }
    static bool writes(const Event& e) {
        return e.kind == Kind::Store || e.kind == Kind::Update || e.kind == Kind::Write;
    }
    // Did a read-modify-write read it already?
    bool taken(int w, int write) const {
        for (const Event& e : events_)
            if (e.kind == Kind::Update && e.word == w && e.from == write) return true;
        return false;
    }
    int choose_read(int w, const Site& site, const std::function<bool(int)>& may = {}) {
        const Word& word = words_[static_cast<std::size_t>(w)];
        std::vector<int> candidates;
        const std::size_t floor = floor_of(w);
        for (std::size_t n = word.writes.size() + 1; n-- > floor;) {
            const int write = n == 0 ? -1 : word.writes[n - 1];
            if (!may || may(write)) candidates.push_back(write);
        }
        if (candidates.empty()) {  // cannot be: the last write is always there, and never taken
            failed_ = "nothing to read";
            abandon();
        }
        const int from = candidates[choose(candidates.size())];
        // Nobody reads an old value for ever.
        const u64 place = std::hash<std::string_view>{}(site.file) ^ (u64{site.line} << 20) ^ (u64{site.column} << 8) ^
                          static_cast<u64>(w);
        if (!site.line) return from;
        const bool last = from == (word.writes.empty() ? -1 : word.writes.back());
        if (++current().same[{place, from}] > kMaxSame && !last) {
            ++result_.stuck;
            abandon();
        }
        return from;
    }
    std::size_t place_write(int w) {
        const Word& word = words_[static_cast<std::size_t>(w)];
        std::vector<std::size_t> places;
        const std::size_t floor = floor_of(w);
        for (std::size_t n = word.writes.size() + 1; n-- > floor;) {
            const int previous = n == 0 ? -1 : word.writes[n - 1];
            if (n < word.writes.size()) {
                const Event& next = events_[static_cast<std::size_t>(word.writes[n])];
                if (next.kind == Kind::Update && next.from == previous) continue;  // nothing in between
            }
            places.push_back(n);
        }
        return places[choose(places.size())];
    }
    int add_event(Kind kind, memory_order order, int w, int from) {
        if (events_.size() == kMaxEvents) {
            failed_ = "too many events for this tool";
            abandon();
        }
        Thread& t = current();
        const int e = static_cast<int>(events_.size());
        if (t.count == kMostOfOne) {
            failed_ = "a thread that comes to no end";
            abandon();
        }
        t.before[static_cast<std::size_t>(e)] = true;
        events_.push_back({running_, t.count++, kind, order, w, from, 0, -1, 0, t.before, {}});
        return e;
    }
    void read_from(int e, int from) {
        Thread& t = current();
        if (from < 0) return;
        const Set& carries = events_[static_cast<std::size_t>(from)].carries;
        t.pending |= carries;
        if (acquires(events_[static_cast<std::size_t>(e)].order)) t.before |= carries;
        events_[static_cast<std::size_t>(e)].before = t.before;
    }
    void publish(int e, u64 value) {
        Thread& t = current();
        Event& event = events_[static_cast<std::size_t>(e)];
        event.value = value;
        event.carries = releases(event.order) ? t.before : t.fenced;
        // A release sequence goes on through read-modify-writes, and (C++20) through nothing else.
        if (event.kind == Kind::Update && event.from >= 0)
            event.carries |= events_[static_cast<std::size_t>(event.from)].carries;
    }
    void add_read(Kind kind, int w, int from, memory_order order) {
        const int e = add_event(kind, order, w, from);
        read_from(e, from);
        order_sc(e);
    }
    int add_write(int w, std::size_t place, u64 value, memory_order order, Kind kind = Kind::Store) {
        const int e = add_event(kind, order, w, -1);
        Word& word = words_[static_cast<std::size_t>(w)];
        word.writes.insert(word.writes.begin() + static_cast<std::ptrdiff_t>(place), e);
        publish(e, value);
        order_sc(e);
        return e;
    }
    [[noreturn]] void race(int w, int other) {
        char text[160];
        std::snprintf(text, sizeof text, "a race for the bytes of word %d: thread %d, and thread %d before", w,
                      running_, events_[static_cast<std::size_t>(other)].thread);
        failed_ = text;
        abandon();
    }

    // --- the order of seq_cst accesses ---

    std::size_t position(int w, int write) const {  // 0: the beginning
        const auto& writes = words_[static_cast<std::size_t>(w)].writes;
        return write < 0
                   ? 0
                   : static_cast<std::size_t>(std::find(writes.begin(), writes.end(), write) - writes.begin()) + 1;
    }
    // a -> b by mo or rb, both seq_cst and of the same word?
    bool mo_or_rb(int a, int b) const {
        const Event &x = events_[static_cast<std::size_t>(a)], &y = events_[static_cast<std::size_t>(b)];
        if (x.word != y.word || !writes(y)) return false;
        const std::size_t at = position(y.word, b);
        if (writes(x) && position(x.word, a) < at) return true;
        return reads(x) && a != b && position(x.word, x.from) < at;
    }
    // a -> b by hb, as far as it counts for psc?
    bool sc_hb(int a, int b) const {
        const Event &x = events_[static_cast<std::size_t>(a)], &y = events_[static_cast<std::size_t>(b)];
        if (!y.before[static_cast<std::size_t>(a)]) return false;
        if (x.thread == y.thread || x.word == y.word) return true;
        for (int c = a + 1; c < b; ++c) {  // a, other word, hb, other word, b
            const Event& u = events_[static_cast<std::size_t>(c)];
            if (u.thread != x.thread || u.word == x.word) continue;
            for (int d = c; d < b; ++d) {
                const Event& v = events_[static_cast<std::size_t>(d)];
                if (v.thread == y.thread && v.word != y.word && v.before[static_cast<std::size_t>(c)]) return true;
            }
        }
        return false;
    }
    // With event e: if the order of seq_cst accesses has a cycle, this graph is none of the model's.
    void order_sc(int e) {
        if (events_[static_cast<std::size_t>(e)].order != memory_order::seq_cst) return;
        sc_.push_back(e);
        after_.emplace_back();
        const std::size_t n = sc_.size() - 1;
        Set in, reached;
        for (std::size_t i = 0; i < n; ++i) {
            if (sc_hb(sc_[i], e) || mo_or_rb(sc_[i], e)) {
                after_[i][n] = true;
                in[i] = true;
            }
            if (mo_or_rb(e, sc_[i])) after_[n][i] = true;
        }
        std::vector<std::size_t> todo{n};
        while (!todo.empty()) {
            const std::size_t i = todo.back();
            todo.pop_back();
            if (in[i]) abandon();
            for (std::size_t k = 0; k < n; ++k)
                if (after_[i][k] && !reached[k]) {
                    reached[k] = true;
                    todo.push_back(k);
                }
        }
    }

    // --- which graph is this? ---

    static u64 mix(u64 h, u64 v) noexcept {
        h = (h + 0x9e3779b97f4a7c15ULL) ^ (v * 0xff51afd7ed558ccdULL);
        h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ULL;
        h = (h ^ (h >> 27)) * 0x94d049bb133111ebULL;
        return h ^ (h >> 31);
    }
    u64 id(int e) const {
        if (e < 0) return 0xfff;
        const Event& x = events_[static_cast<std::size_t>(e)];
        return static_cast<u64>(x.thread) << 10 | static_cast<u64>(x.number);
    }
    std::pair<u64, u64> graph() const {
        u64 a = 0, b = 0;
        const auto put = [&](u64 h) {  // in any order
            a += mix(h, 1);
            b += mix(h, 2);
        };
        for (std::size_t e = 0; e < events_.size(); ++e) {
            const Event& x = events_[e];
            const u64 at = x.word < 0 ? 0 : reinterpret_cast<u64>(words_[static_cast<std::size_t>(x.word)].at);
            put(mix(mix(mix(mix(mix(3, id(static_cast<int>(e))), at), id(x.from)), x.wakes), static_cast<u64>(x.kind)));
        }
        for (const Word& w : words_) {
            u64 h = mix(5, reinterpret_cast<u64>(w.at));
            for (const int e : w.writes) h = mix(h, id(e));
            put(mix(h, w.wakes));
        }
        for (std::size_t i = 0; i < threads_.size(); ++i)
            put(mix(
                mix(mix(7, i), threads_[i]->asleep < 0
                                   ? 0
                                   : reinterpret_cast<u64>(words_[static_cast<std::size_t>(threads_[i]->asleep)].at)),
                threads_[i]->done));
        return {a, b};
    }
    struct HashPair {
        std::size_t operator()(const std::pair<u64, u64>& p) const noexcept { return p.first ^ (p.second << 1); }
    };

    std::string story() const {
        static const char* const kinds[] = {"load", "store", "update", "fence", "read", "write", "sleep", "wake"};
        std::string all;
        for (std::size_t e = 0; e < events_.size(); ++e) {
            const Event& x = events_[e];
            char line[200];
            const void* at = x.word < 0 ? nullptr : words_[static_cast<std::size_t>(x.word)].at;
            const auto value = x.kind == Kind::Load || x.kind == Kind::Sleep ? value_of(x.word, x.from) : x.value;
            std::snprintf(
                line, sizeof line, "  thread %d: %s %s %s %" PRIx64 "%s%s\n", x.thread, kinds[static_cast<int>(x.kind)],
                name_of(x.order), describe(at).c_str(), value, reads(x) && x.from >= 0 ? ", from thread " : "",
                reads(x) && x.from >= 0 ? std::to_string(events_[static_cast<std::size_t>(x.from)].thread).c_str()
                                        : "");
            all += line;
        }
        return all;
    }

    memory_order order_at(const Site& site, Kind kind, memory_order order) {
        if (uses) uses->try_emplace(site, Use{kind, order});
        return mutant && mutant->site == site ? mutant->order : order;
    }

public:
    std::function<std::string(const void*)> describe = [](const void*) { return std::string("?"); };
    static Explorer*& instance() {
        static Explorer* x = nullptr;
        return x;
    }

private:
    struct Users {
        unsigned all = 0, writers = 0;  // threads
        bool eager = false;
        bool shared() const noexcept { return writers && (all != writers || std::popcount(writers) > 1); }
    };
    std::map<const void*, Users> users_;
    bool again_ = false;
    Result result_;
    ucontext_t scheduler_{};
    std::vector<std::unique_ptr<Thread>> threads_;
    int running_ = -1;
    bool abandoned_ = false;
    std::string failed_;
    std::vector<std::pair<std::size_t, std::size_t>> choices_;  // (taken, of how many)
    std::size_t at_ = 0;
    std::unordered_set<std::pair<u64, u64>, HashPair> seen_, ended_;
    std::vector<Event> events_;
    std::vector<Word> words_;
    std::vector<std::array<unsigned char, kBlock>> blocks_;
    std::map<const void*, std::size_t> by_address_;
    std::vector<std::pair<const char*, std::size_t>> watched_;
    std::unordered_set<const void*> ignored_;
    std::vector<int> sc_;
    std::vector<Set> after_;
};

}  // namespace weak

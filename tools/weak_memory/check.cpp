// Tries the pairs of tests/native/litmus_pairs.hpp in every way that the memory model of C++ allows (explore.hpp), and
// asks of each order in the headers whether a weaker one would do.
//
// usage: check classics              does the model allow and forbid what it should, in programs known from the
// literature?
//        check list                  the names of the pairs
//        check pairs [NAME ...]      a line per pair; exit code 1 if anything forbidden can happen
//        check orders [MOST]         a line per place in the headers: the order it has, the weakest with which no pair
//                                    finds anything, and the pair that finds the next weaker. MOST: graphs to try per
//                                    pair
//        check mutants (FILE:FUNCTION:KIND:NTH:ORDER PAIR) ...   does the pair find it, if this place has that order?
//        Exit
//                                    code 1 if one is not found
#include "replace.hpp"

// After it: the ring, with its atomics replaced.
#include "../../tests/native/litmus_pairs.hpp"

#include <sys/mman.h>

namespace {

using namespace litmus;
using std::memory_order;
using weak::Explorer;
using weak::Kind;
using weak::Mutant;
using weak::Site;
using weak::Use;

class Model : public World {
public:
    bool real() const noexcept override { return false; }
    [[noreturn]] void forbidden(const std::string& what) override { x.fail(what); }
    bool asleep(int thread) const override { return x.asleep(thread); }
    void atomics_in(const void* p, u64 bytes) override { x.watch(p, bytes); }
    void only_diagnoses(const void* p) override { x.ignore(p); }
    void dies(u64 offset) override { weak_death(offset); }
    void held(u64 offset) override { weak::lock_bytes[offset] = 1; }

    Explorer::Result run(const Named& named, const Mutant* mutant, std::map<Site, Use>* uses, u64 most) {
        std::unique_ptr<Pair> pair = named.make();
        const Geometry g = Geometry::plan(pair->slots(), kSlotBytes, 2, 2);
        void* base = mmap(nullptr, g.total_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        Explorer::instance() = &x;
        x.races_allowed = pair->races_by_design();
        x.mutant = mutant;
        x.uses = uses;
        const Ring ring(base, g);
        x.describe = [&](const void* p) { return where(ring, p); };
        const auto make_pair = [&] {
            pair = named.make();
            reset(ring);
            std::fill(std::begin(weak::lock_bytes), std::end(weak::lock_bytes), 0);
            x.watch(base, g.total_bytes);
            x.watch(weak::lock_bytes, sizeof weak::lock_bytes);
            pair->begin(*this, ring);
            for (int i = 0; i < pair->threads(); ++i) x.thread([&pair, i] { pair->thread(i); });
        };
        const Explorer::Result r = x.explore(make_pair, [&] { pair->judge(); }, most);
        munmap(base, g.total_bytes);
        return r;
    }

private:
    // An empty ring again; statistics stay.
    static void reset(const Ring& ring) {
        const Geometry& g = ring.geometry();
        __builtin_memset(static_cast<void*>(&ring.control()), 0, offsetof(Control, batches));
        for (u32 i = 0; i < g.max_publishers; ++i)
            __builtin_memset(static_cast<void*>(&ring.publisher(i)), 0, offsetof(PublisherEntry, buffer_write));
        for (u32 i = 0; i < g.max_subscribers; ++i)
            __builtin_memset(static_cast<void*>(&ring.subscriber(i)), 0, sizeof(SubscriberEntry));
        for (u32 t = 0; t < g.tickets; ++t) ring.entry(t).store(0);
        for (u32 s = 0; s < g.slots; ++s) {
            ring.slot(s).word.store(0);
            __builtin_memset(ring.header_of(s), 0, sizeof(BatchHeader));
            __builtin_memset(ring.payload_of(s), 0, kSlotBytes);
        }
    }
    static std::string where(const Ring& ring, const void* p) {
        const auto is_in = [p](const auto& object) {
            return p >= static_cast<const void*>(&object) && p < static_cast<const void*>(&object + 1);
        };
        const auto offset = [p](const auto& object) {
            return std::to_string(static_cast<const char*>(p) - reinterpret_cast<const char*>(&object));
        };
        const Control& c = ring.control();
        const std::pair<const void*, const char*> named[] = {{&c.tail, "tail"},
                                                             {&c.head, "head"},
                                                             {&c.released, "released"},
                                                             {&c.event, "event"},
                                                             {&c.sleeping, "sleeping"},
                                                             {&c.space_waiters, "space_waiters"},
                                                             {&c.look_around, "look_around"},
                                                             {&c.state, "state"},
                                                             {&c.news, "news"},
                                                             {&c.news_sleepers, "news_sleepers"},
                                                             {&c.slowest, "slowest"},
                                                             {&c.news_held_back, "news_held_back"},
                                                             {&c.quota_waiters, "quota_waiters"}};
        for (const auto& [at, name] : named)
            if (at == p) return name;
        if (is_in(c)) return "control+" + offset(c);
        for (u32 i = 0; i < ring.geometry().max_publishers; ++i) {
            const PublisherEntry& row = ring.publisher(i);
            const std::pair<const void*, const char*> words[] = {{&row.state, "state"},
                                                                 {&row.accepted_seq, "accepted_seq"},
                                                                 {&row.released_batches, "released_batches"},
                                                                 {&row.fault, "fault"},
                                                                 {&row.event, "event"},
                                                                 {&row.sleeping, "sleeping"},
                                                                 {&row.wants_any_slot, "wants_any_slot"},
                                                                 {&row.committed_seq, "committed_seq"}};
            for (const auto& [at, name] : words)
                if (at == p) return "publisher" + std::to_string(i) + "." + name;
            if (is_in(row)) return "publisher" + std::to_string(i) + "+" + offset(row);
        }
        for (u32 i = 0; i < ring.geometry().max_subscribers; ++i) {
            const SubscriberEntry& row = ring.subscriber(i);
            if (p == &row.state) return "subscriber" + std::to_string(i) + ".state";
            if (p == &row.cursor) return "subscriber" + std::to_string(i) + ".cursor";
            if (is_in(row)) return "subscriber" + std::to_string(i) + "+" + offset(row);
        }
        for (u32 t = 0; t < ring.geometry().tickets; ++t)
            if (is_in(ring.entry(t))) return "entry" + std::to_string(t);
        for (u32 s = 0; s < ring.geometry().slots; ++s) {
            if (is_in(ring.slot(s))) return "slot" + std::to_string(s);
            if (p >= ring.header_of(s) && p < ring.payload_of(s)) return "header" + std::to_string(s);
            if (p >= ring.payload_of(s) && p < ring.payload_of(s) + kSlotBytes) return "payload" + std::to_string(s);
        }
        return "elsewhere";
    }

    Explorer x;
};

// --- what the model itself is like ---------------------------------------------------------------------------

// A program of two to four threads that everybody in the field knows, and whether its odd end can happen.
struct Classic {
    const char* name;
    bool possible;
    int threads;
    void (*thread)(int i, Control& c, u64* r);
    bool (*odd)(const Control& c, const u64* r);
};
constexpr memory_order kRelaxed = memory_order::relaxed, kAcquire = memory_order::acquire,
                       kRelease = memory_order::release, kSeqCst = memory_order::seq_cst;

template <memory_order kStore, memory_order kLoad>
void store_buffering(int i, Control& c, u64* r) {
    (i ? c.head : c.tail).store(1, kStore);
    r[i] = (i ? c.tail : c.head).load(kLoad);
}
template <memory_order kStore, memory_order kLoad>
void message_passing(int i, Control& c, u64* r) {
    if (i == 0) {
        c.head.store(1, kRelaxed);
        c.tail.store(1, kStore);
    } else {
        r[0] = c.tail.load(kLoad);
        r[1] = c.head.load(kRelaxed);
    }
}
void message_passing_fences(int i, Control& c, u64* r) {
    if (i == 0) {
        c.head.store(1, kRelaxed);
        std::atomic_thread_fence(kRelease);
        c.tail.store(1, kRelaxed);
    } else {
        r[0] = c.tail.load(kRelaxed);
        std::atomic_thread_fence(kAcquire);
        r[1] = c.head.load(kRelaxed);
    }
}
// The release sequence: what another thread adds to the flag hands on what was released. A plain store does not.
template <bool kUpdate>
void through_another(int i, Control& c, u64* r) {
    if (i == 0) {
        c.head.store(1, kRelaxed);
        c.tail.store(1, kRelease);
    } else if (i == 1) {
        if (kUpdate)
            c.tail.fetch_add(1, kRelaxed);
        else if (c.tail.load(kRelaxed) == 1)
            c.tail.store(2, kRelaxed);
    } else {
        r[0] = c.tail.load(kAcquire);
        r[1] = c.head.load(kRelaxed);
    }
}
template <memory_order kStore, memory_order kLoad>
void independent_reads(int i, Control& c, u64* r) {
    if (i < 2) return (i ? c.head : c.tail).store(1, kStore);
    r[2 * (i - 2)] = (i == 2 ? c.head : c.tail).load(kLoad);
    r[2 * (i - 2) + 1] = (i == 2 ? c.tail : c.head).load(kLoad);
}
void same_word(int i, Control& c, u64* r) {
    if (i == 0) return c.head.store(1, kRelaxed);
    r[0] = c.head.load(kRelaxed);
    r[1] = c.head.load(kRelaxed);
}
template <memory_order kStore>
void crossed_writes(int i, Control& c, u64*) {
    (i ? c.tail : c.head).store(1, kStore);
    (i ? c.head : c.tail).store(2, kStore);
}
void two_additions(int, Control& c, u64*) { c.head.fetch_add(1, kRelaxed); }
template <memory_order kStore, memory_order kLoad>
void load_buffering(int i, Control& c, u64* r) {
    r[i] = (i ? c.head : c.tail).load(kLoad);
    (i ? c.tail : c.head).store(1, kStore);
}

bool both_nothing(const Control&, const u64* r) { return r[0] == 0 && r[1] == 0; }
bool flag_alone(const Control&, const u64* r) { return r[0] == 1 && r[1] == 0; }
bool second_flag_alone(const Control&, const u64* r) { return r[0] == 2 && r[1] == 0; }
bool no_one_order(const Control&, const u64* r) { return r[0] == 1 && r[1] == 0 && r[2] == 1 && r[3] == 0; }
bool both_first(const Control& c, const u64*) { return c.head.load() == 1 && c.tail.load() == 1; }
bool one_lost(const Control& c, const u64*) { return c.head.load() != 2; }
bool both_one(const Control&, const u64* r) { return r[0] == 1 && r[1] == 1; }

constexpr Classic kClassics[] = {
    {"store buffering, relaxed", true, 2, store_buffering<kRelaxed, kRelaxed>, both_nothing},
    {"store buffering, release and acquire", true, 2, store_buffering<kRelease, kAcquire>, both_nothing},
    {"store buffering, seq_cst stores", true, 2, store_buffering<kSeqCst, kAcquire>, both_nothing},
    {"store buffering, seq_cst", false, 2, store_buffering<kSeqCst, kSeqCst>, both_nothing},
    {"message passing, relaxed", true, 2, message_passing<kRelaxed, kRelaxed>, flag_alone},
    {"message passing, release alone", true, 2, message_passing<kRelease, kRelaxed>, flag_alone},
    {"message passing, acquire alone", true, 2, message_passing<kRelaxed, kAcquire>, flag_alone},
    {"message passing, release and acquire", false, 2, message_passing<kRelease, kAcquire>, flag_alone},
    {"message passing, fences", false, 2, message_passing_fences, flag_alone},
    {"through another's addition", false, 3, through_another<true>, second_flag_alone},
    {"through another's store", true, 3, through_another<false>, second_flag_alone},
    {"independent reads, acquire", true, 4, independent_reads<kRelease, kAcquire>, no_one_order},
    {"independent reads, seq_cst", false, 4, independent_reads<kSeqCst, kSeqCst>, no_one_order},
    {"one word, read twice", false, 2, same_word, flag_alone},
    {"crossed writes, release", true, 2, crossed_writes<kRelease>, both_first},
    {"crossed writes, seq_cst", false, 2, crossed_writes<kSeqCst>, both_first},
    {"two additions", false, 2, two_additions, one_lost},
    // Allowed by C++ on paper; not in this model.
    {"load buffering, relaxed", false, 2, load_buffering<kRelaxed, kRelaxed>, both_one},
};

bool classics() {
    bool good = true;
    for (const Classic& classic : kClassics) {
        const auto c = std::make_unique<Control>();
        u64 r[4] = {};
        Explorer x;
        Explorer::instance() = &x;
        const Explorer::Result result = x.explore(
            [&] {
                c->head.store(0);
                c->tail.store(0);
                std::fill(std::begin(r), std::end(r), 0);
                x.watch(c.get(), sizeof *c);
                for (int i = 0; i < classic.threads; ++i) x.thread([&, i] { classic.thread(i, *c, r); });
            },
            [&] {
                if (classic.odd(*c, r)) x.fail("odd");
            });
        const bool found = !result.forbidden.empty();
        good = good && found == classic.possible;
        std::printf("%-38s %s%s\n", classic.name, found ? "can happen" : "cannot happen",
                    found == classic.possible ? "" : ": WRONG");
    }
    return good;
}

constexpr u64 kMostGraphs = 20'000'000;

bool pairs(const std::vector<std::string>& names) {
    bool good = true;
    for (const Named& n : kPairs) {
        if (!names.empty() && std::find(names.begin(), names.end(), n.name) == names.end()) continue;
        Model model;
        const Explorer::Result r = model.run(n, nullptr, nullptr, kMostGraphs);
        good = good && r.forbidden.empty() && r.all;
        std::printf("%-18s %8" PRIu64 " graphs, %6" PRIu64 " ends, %5" PRIu64 " stuck: %s\n", n.name, r.graphs, r.ends,
                    r.stuck,
                    !r.all                ? "too many to try all"
                    : r.forbidden.empty() ? "nothing forbidden"
                                          : ("FORBIDDEN: " + r.forbidden).c_str());
        std::fflush(stdout);
    }
    return good;
}

// --- which orders are needed? -------------------------------------------------------------------------------

// Its name, whatever its arguments: "u64 embar::Ring::commit(u32, u64) const" is Ring::commit.
std::string short_name(std::string_view function) {
    function = function.substr(0, function.find('('));
    if (const auto space = function.rfind(' '); space != function.npos) function = function.substr(space + 1);
    if (function.starts_with("embar::")) function = function.substr(7);
    return std::string(function);
}
const char* kind_name(const Site& site, Kind kind) {
    if (site.part) return "failure";
    switch (kind) {
        case Kind::Load: return "load";
        case Kind::Store: return "store";
        case Kind::Update: return "update";
        default: return "fence";
    }
}
// One step weaker.
std::vector<memory_order> weaker(Kind kind, memory_order order) {
    using enum memory_order;
    switch (order) {
        case seq_cst:
            if (kind == Kind::Load) return {acquire};
            if (kind == Kind::Store) return {release};
            return {acq_rel};
        case acq_rel: return {acquire, release};
        case acquire:
        case release: return {relaxed};
        default: return {};
    }
}

struct Place {
    Site site;
    Use use;
    std::string name;  // FILE:FUNCTION:KIND:NTH
    std::vector<const Named*> pairs;
};

// All that the pairs come through, in the order of the source.
std::vector<Place> places(u64 most) {
    std::map<Site, Place> found;
    for (const Named& n : kPairs) {
        std::map<Site, Use> uses;
        Model model;
        const Explorer::Result r = model.run(n, nullptr, &uses, most);
        if (!r.forbidden.empty())
            std::fprintf(stderr, "%s: FORBIDDEN: %s\n", n.name, r.forbidden.c_str()), std::exit(1);
        for (const auto& [site, use] : uses) {
            if (site.line == 0 || !site.file.ends_with(".hpp") || site.file.ends_with("litmus_pairs.hpp")) continue;
            Place& p = found.try_emplace(site, Place{site, use, "", {}}).first->second;
            p.pairs.push_back(&n);
        }
    }
    std::vector<Place> all;
    for (auto& [site, place] : found) all.push_back(place);
    std::stable_sort(all.begin(), all.end(), [](const Place& a, const Place& b) {
        return std::tie(a.site.file, a.site.line, a.site.column) < std::tie(b.site.file, b.site.line, b.site.column);
    });
    std::map<std::string, int> count;
    for (Place& p : all) {
        const auto file = p.site.file.substr(p.site.file.rfind('/') + 1);
        const std::string name =
            std::string(file) + ":" + short_name(p.site.function) + ":" + kind_name(p.site, p.use.kind);
        p.name = name + ":" + std::to_string(++count[name]);
    }
    return all;
}
// Which pair finds something, if this place has a weaker order?
const Named* finder(const Place& place, memory_order order, u64 most) {
    const Mutant mutant{place.site, order};
    for (const Named* n : place.pairs) {
        Model model;
        if (!model.run(*n, &mutant, nullptr, most).forbidden.empty()) return n;
    }
    return nullptr;
}

void orders(u64 most) {
    for (const Place& p : places(most)) {
        memory_order needed = p.use.order;
        std::string by = "-";
        for (bool down = true; down;) {
            down = false;
            for (const memory_order w : weaker(p.use.kind, needed)) {
                if (const Named* n = finder(p, w, most)) {
                    by = n->name;
                    continue;
                }
                needed = w;
                down = true;
                by = "-";
                break;
            }
        }
        std::printf("%-58s %-8s %-8s %s\n", p.name.c_str(), weak::name_of(p.use.order), weak::name_of(needed),
                    by.c_str());
        std::fflush(stdout);
    }
}

// Is a place with another order found, by the pair that is named? `what`: place, pair, place, pair, ...
bool mutants(const std::vector<std::string>& what) {
    const std::vector<Place> all = places(2'000);
    bool good = !what.empty();
    for (std::size_t i = 0; i + 1 < what.size(); i += 2) {
        const std::string name = what[i].substr(0, what[i].rfind(':')), order = what[i].substr(name.size() + 1);
        const auto place = std::find_if(all.begin(), all.end(), [&](const Place& p) { return p.name == name; });
        const auto pair =
            std::find_if(kPairs.begin(), kPairs.end(), [&](const Named& n) { return n.name == what[i + 1]; });
        int o = 0;
        while (o <= static_cast<int>(memory_order::seq_cst) && order != weak::name_of(static_cast<memory_order>(o)))
            ++o;
        if (place == all.end() || pair == kPairs.end() || o > static_cast<int>(memory_order::seq_cst)) {
            std::printf("%s: there is no such place, order, or pair %s\n", what[i].c_str(), what[i + 1].c_str());
            good = false;
            continue;
        }
        const Mutant m{place->site, static_cast<memory_order>(o)};
        Model model;
        const bool found = !model.run(*pair, &m, nullptr, kMostGraphs).forbidden.empty();
        good = good && found;
        std::printf("%s: %s by %s\n", what[i].c_str(), found ? "found" : "NOT FOUND", pair->name);
    }
    return good;
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    const std::string mode = arguments.empty() ? "" : arguments[0];
    if (!arguments.empty()) arguments.erase(arguments.begin());
    if (mode == "classics") return classics() ? 0 : 1;
    if (mode == "list") {
        for (const Named& n : kPairs) std::printf("%s\n", n.name);
        return 0;
    }
    if (mode == "pairs") return pairs(arguments) ? 0 : 1;
    if (mode == "mutants") return mutants(arguments) ? 0 : 1;
    if (mode == "orders") {
        orders(arguments.empty() ? kMostGraphs : std::strtoull(arguments[0].c_str(), nullptr, 10));
        return 0;
    }
    std::fprintf(stderr,
                 "usage: check classics | list | pairs [NAME ...] | orders [MOST] | mutants (PLACE:ORDER PAIR) ...\n");
    return 2;
}

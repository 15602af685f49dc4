// The configurations, the mutants, and which property each mutant must break. check.py runs them and prints.
//
//   model list                                    one JSON object a line: every run there is
//   model run MODEL CONFIGURATION MUTANT MOST     explores at most MOST states; one JSON object
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string_view>

#include "ring_model.hpp"
#include "sleep_model.hpp"
#include "space_model.hpp"

namespace model {
namespace {

// `on`: the configuration that shows it. `breaks`: the property.
template <class M>
struct Fault {
    M mutant;
    const char* name;
    const char* on;
    const char* breaks;
};

namespace of_ring {
using ring::Mutant;
constexpr const char *kTorn = "torn or misowned payload", *kLost = "committed batch lost",
                     *kTwice = "batch delivered twice", *kStuck = "the living cannot go on", *kLeak = "leaked slot",
                     *kAck = "acknowledged, not in the log", *kCorrupt = "sound ring called corrupt";

constexpr ring::Config kConfigs[] = {
    {.name = "two publishers",
     .about = "2 slots, 2 batches each; a publisher and a broker are killed",
     .reduced = false,
     .publishers = 2,
     .slots = 2,
     .tickets = 2,
     .batches = 2,
     .quota = 2,
     .publisher_kills = 1,
     .broker_kills = 1},
    {.name = "row re-used",
     .about = "1 batch each, quota 1; a publisher and a broker are killed, a new publisher comes",
     .reduced = false,
     .publishers = 2,
     .slots = 2,
     .tickets = 2,
     .batches = 1,
     .quota = 1,
     .publisher_kills = 1,
     .broker_kills = 1,
     .new_publishers = 1},
    {.name = "one slot",
     .about = "2 publishers, 2 batches each, quota 1; one publisher and one broker are killed, a new publisher comes",
     .reduced = true,
     .publishers = 2,
     .slots = 1,
     .tickets = 1,
     .batches = 2,
     .quota = 1,
     .publisher_kills = 1,
     .broker_kills = 1,
     .new_publishers = 1},
    {.name = "two restarts",
     .about = "1 publisher, 3 batches, quota 2; two brokers and the publisher are killed, a new one comes",
     .reduced = true,
     .publishers = 1,
     .slots = 2,
     .tickets = 2,
     .batches = 3,
     .quota = 2,
     .publisher_kills = 1,
     .broker_kills = 2,
     .new_publishers = 1},
    {.name = "publishers alone",
     .about = "2 publishers, 2 batches each; one of them is killed",
     .reduced = true,
     .publishers = 2,
     .slots = 2,
     .tickets = 2,
     .batches = 2,
     .quota = 2,
     .publisher_kills = 1},
    {.name = "subscriber",
     .about = "1 publisher, 2 batches; a reliable subscriber and a broker are killed, a new subscriber comes",
     .reduced = true,
     .publishers = 1,
     .slots = 2,
     .tickets = 2,
     .batches = 2,
     .quota = 2,
     .subscribers = 1,
     .broker_kills = 1,
     .subscriber_kills = 1,
     .new_subscribers = 1},
    {.name = "subscriber, two restarts",
     .about = "1 publisher, 3 batches; a reliable subscriber, the publisher and two brokers are killed",
     .reduced = false,
     .publishers = 1,
     .slots = 2,
     .tickets = 2,
     .batches = 3,
     .quota = 2,
     .subscribers = 1,
     .publisher_kills = 1,
     .broker_kills = 2,
     .subscriber_kills = 1,
     .new_subscribers = 1},
    {.name = "lossy subscriber",
     .about = "1 publisher, 3 batches, 1 slot; a lossy subscriber and a broker are killed",
     .reduced = true,
     .publishers = 1,
     .slots = 1,
     .tickets = 1,
     .batches = 3,
     .quota = 1,
     .subscribers = 1,
     .lossy = true,
     .broker_kills = 1,
     .subscriber_kills = 1,
     .new_subscribers = 1},
    {.name = "retained",
     .about = "as subscriber, and the broker retains one batch",
     .reduced = true,
     .publishers = 1,
     .slots = 2,
     .tickets = 2,
     .batches = 2,
     .quota = 2,
     .subscribers = 1,
     .retain = 1,
     .broker_kills = 1,
     .subscriber_kills = 1,
     .new_subscribers = 1},
    {.name = "repeated batch",
     .about = "as subscriber, and the publisher sends its first batch twice: it is refused once",
     .reduced = true,
     .publishers = 1,
     .slots = 2,
     .tickets = 2,
     .batches = 2,
     .quota = 3,
     .subscribers = 1,
     .repeats = true,
     .broker_kills = 1},
};
constexpr Fault<Mutant> kFaults[] = {
    {Mutant::ReapByTimeout, "reap by timeout", "publishers alone", kTorn},
    {Mutant::LockDropsFirst, "the lock drops before the last store", "publishers alone", kTorn},
    {Mutant::ReapWithoutTickets, "reap without looking at the tickets", "publishers alone", kCorrupt},
    {Mutant::ReapWithoutInherit, "reap without inheriting what is in the log", "publishers alone", kTorn},
    {Mutant::RowFreeBeforeSlots, "free the row before its slots", "one slot", kTorn},
    {Mutant::FreeBeforeRecycle, "free the slot before the entry is recycled", "one slot", kTorn},
    {Mutant::FreeWithoutGeneration, "free the slot without a new generation", "row re-used", kTorn},
    {Mutant::TicketBeforeCommit, "take the ticket before the commit", "publishers alone", kCorrupt},
    {Mutant::NoHelp, "do not help tail on", "publishers alone", kStuck},
    {Mutant::CommitWithoutLap, "commit without looking at the lap", "publishers alone", kTorn},
    {Mutant::AckBeforeHead, "acknowledge before head", "one slot", kAck},
    {Mutant::NoJournal, "do not finish a release at restart", "two restarts", kLeak},
    {Mutant::RedoWithoutGeneration, "finish a release without the generation", "row re-used", kTorn},
    {Mutant::NoRedoOfAck, "do not finish an acknowledgement at restart", "two restarts", kLost},
    {Mutant::NoRedoOfPass, "do not tell again what was passed, at restart", "two restarts", kStuck},
    {Mutant::ReapBeforeRebuild, "reap before the log is rebuilt, at restart", "row re-used", kTorn},
    {Mutant::ReleaseWithoutGate, "release without looking at the gates", "subscriber", kTorn},
    {Mutant::GatesNotRebuilt, "do not rebuild the gates at restart", "subscriber", kTorn},
    {Mutant::AnswerBeforeCursor, "answer a subscriber before its cursor is set", "subscriber", kTorn},
    {Mutant::PassBeforeRead, "move the cursor before the batch is read", "subscriber", kTorn},
    {Mutant::NoSecondLook, "no second look of a lossy subscriber", "lossy subscriber", kTorn},
    {Mutant::RefuseAfterHead, "refuse after head", "repeated batch", kTorn},
    {Mutant::AcceptWithoutSeq, "accept without looking at seq", "repeated batch", kTwice},
};
}  // namespace of_ring

namespace of_sleep {
using sleep::Mutant;
constexpr const char* kWake = "lost wake-up";

constexpr sleep::Config kConfigs[] = {
    {"two waiters", "of one eventcount, 2 rounds each", true, 2, 2, 2},
    {"two waiters, killed", "the same; a waker and a waiter are killed", true, 2, 2, 2, false, 1, 1},
    {"slowest", "the broker waits for two subscribers, 3 rounds", true, 1, 2, 3, true},
    {"slowest, killed", "the same; a subscriber is killed", true, 1, 2, 3, true, 1, 0},
};
constexpr Fault<Mutant> kFaults[] = {
    {Mutant::NoFenceInWaiter, "no fence in the waiter", "two waiters", kWake},
    {Mutant::NoFenceInWaker, "no fence in the waker", "two waiters", kWake},
    {Mutant::NoSecondLook, "no second look after the flag", "two waiters", kWake},
    {Mutant::SeenAfterLook, "read event after the second look", "two waiters", kWake},
    {Mutant::NoEvent, "do not advance event", "two waiters", kWake},
    {Mutant::WakeBeforeCondition, "wake before the condition is true", "two waiters", kWake},
    {Mutant::FlagTakenAfterWake, "take the flag after the wake", "two waiters", kWake},
    {Mutant::WaiterTakesFlag, "the waiter takes the flag back", "two waiters", kWake},
    {Mutant::WatchAfterLook, "name the slowest after the second look", "slowest", kWake},
};
}  // namespace of_sleep

namespace of_space {
using space::Mutant;
constexpr const char* kWake = "lost wake-up";

constexpr space::Config kConfigs[] = {
    {"two for one slot", "2 publishers, 2 batches each", true, 2, 1, 2},
    {"two for one slot, killed", "the same; a publisher and a broker are killed", true, 2, 1, 2, 1, 1},
    {"three for one slot", "3 publishers, 1 batch each; a publisher and a broker are killed", true, 3, 1, 1, 1, 1},
    {"three for two slots", "3 publishers, 1 batch each; a publisher and a broker are killed", false, 3, 2, 1, 1, 1},
};
constexpr Fault<Mutant> kFaults[] = {
    {Mutant::WantsAfterLook, "say that a slot is wanted after the second look", "two for one slot", kWake},
    {Mutant::WaitersFlagNotKept, "do not set space_waiters again", "two for one slot", kWake},
    {Mutant::WaitersFlagTakenLate, "take space_waiters back after the search", "two for one slot", kWake},
    {Mutant::FreeAfterWake, "free the slot after the wake", "two for one slot", kWake},
    {Mutant::GiveBackTellsNobody, "tell nobody of a slot given back", "two for one slot", kWake},
    {Mutant::GiveBackTellsKnownWaiters, "tell of a slot given back only while space_waiters is set", "two for one slot",
     kWake},
    {Mutant::ReapWakesForSlotsOnly, "reap wakes for the slots of the dead only", "two for one slot, killed", kWake},
    {Mutant::RestartWakesSleepersOnly, "restart wakes those only whose flag is set", "two for one slot, killed", kWake},
    {Mutant::RestartWakesNobody, "restart wakes nobody", "two for one slot, killed", kWake},
    {Mutant::RestartBelievesFlag, "restart believes space_waiters", "two for one slot, killed", kWake},
};
}  // namespace of_space

template <class Config, std::size_t N, class M, std::size_t K>
void list(const char* model, const Config (&configs)[N], const Fault<M> (&faults)[K]) {
    for (const Config& c : configs)
        std::printf("{\"model\": \"%s\", \"configuration\": \"%s\", \"about\": \"%s\", \"reduced\": %s}\n", model,
                    c.name, c.about, c.reduced ? "true" : "false");
    for (const auto& f : faults)
        std::printf("{\"model\": \"%s\", \"configuration\": \"%s\", \"mutant\": \"%s\", \"breaks\": \"%s\"}\n", model,
                    f.on, f.name, f.breaks);
}

template <class Model, class Config, std::size_t N, class M, std::size_t K>
int run(const Config (&configs)[N], const Fault<M> (&faults)[K], std::string_view config, std::string_view mutant,
        u64 most) {
    const auto* c = std::find_if(std::begin(configs), std::end(configs), [&](auto& x) { return x.name == config; });
    const auto* f = std::find_if(std::begin(faults), std::end(faults), [&](auto& x) { return x.name == mutant; });
    if (c == std::end(configs) || (f == std::end(faults) && !mutant.empty())) {
        std::fprintf(stderr, "no such configuration, or mutant\n");
        return 2;
    }
    const Model model(*c, mutant.empty() ? M::None : f->mutant);
    const Outcome out = Explorer<Model>(model, most).run();
    std::printf(
        "{\"states\": %llu, \"steps\": %llu, \"depth\": %u, \"complete\": %s, \"property\": \"%s\", \"trace\": [",
        static_cast<unsigned long long>(out.states), static_cast<unsigned long long>(out.steps), out.depth,
        out.complete ? "true" : "false", out.property ? out.property : "");
    const char* comma = "";
    for (const std::string& step : out.trace) {
        std::printf("%s\"%s\"", comma, step.c_str());
        comma = ", ";
    }
    std::printf("]}\n");
    return 0;
}

}  // namespace
}  // namespace model

int main(int argc, char** argv) {
    using namespace model;
    const std::string_view command = argc > 1 ? argv[1] : "";
    if (command == "list" && argc == 2) {
        list("ring", of_ring::kConfigs, of_ring::kFaults);
        list("sleep", of_sleep::kConfigs, of_sleep::kFaults);
        list("space", of_space::kConfigs, of_space::kFaults);
        return 0;
    }
    if (command == "run" && argc == 6) {
        const std::string_view which = argv[2];
        const u64 most = std::strtoull(argv[5], nullptr, 10);
        if (which == "ring") return run<ring::RingModel>(of_ring::kConfigs, of_ring::kFaults, argv[3], argv[4], most);
        if (which == "sleep")
            return run<sleep::SleepModel>(of_sleep::kConfigs, of_sleep::kFaults, argv[3], argv[4], most);
        if (which == "space")
            return run<space::SpaceModel>(of_space::kConfigs, of_space::kFaults, argv[3], argv[4], most);
    }
    std::fprintf(stderr, "model list | model run MODEL CONFIGURATION MUTANT MOST\n");
    return 2;
}

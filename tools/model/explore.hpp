// Explores every state a model can reach, breadth first, and says which property breaks on the shortest way.
//
// A model is a State (bytes only: two states are equal when their bytes are) and
//
//   initial()            the first state
//   steps(state, emit)   emit(next, Kind, "who: does what") for every step some process, or the kernel, can do
//   wrong(state)         the property that this state breaks, or null
//   quiescent(state)     nothing is left to do, and nothing is missing
//   unfinished(state)    what a state is to be called from which no quiescent one can be reached
//
// Two kinds of properties: no reachable state is wrong(), and from every reachable state a quiescent one can be
// reached by Work alone, that is without another fault and without a newcomer. The second finds deadlocks, leaks and
// losses alike, and needs no fairness: it says that the living can finish, not that they must take the way.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace model {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

enum class Kind : u8 {
    Work,   // a step of the protocol, of the kernel, or the start of a broker where there is none
    Fault,  // a kill, or a newcomer: may happen, must not be needed
};

struct Outcome {
    u64 states = 0;
    u64 steps = 0;
    u32 depth = 0;                   // of the farthest state
    bool complete = false;           // every state was seen, or a property broke
    const char* property = nullptr;  // that broke
    std::vector<std::string> trace;  // how, step by step
};

template <class Model>
class Explorer {
public:
    using State = typename Model::State;
    static_assert(std::is_trivially_copyable_v<State> && std::has_unique_object_representations_v<State>,
                  "two equal states must have equal bytes");

    Explorer(const Model& model, u64 most_states) : model_(model), most_(most_states), table_(1U << 16, kNone) {}

    Outcome run() {
        Outcome out;
        add(model_.initial(), kNone);
        u32 level_end = 1;
        for (u32 at = 0; at < states_.size(); ++at) {
            if (at == level_end) {
                ++out.depth;
                level_end = static_cast<u32>(states_.size());
            }
            const State state = states_[at];  // a copy: the vector grows
            if ((out.property = model_.wrong(state))) return finish(out, at);
            first_edge_.push_back(edges_.size());
            model_.steps(state, [&](const State& next, Kind kind, const char*) {
                ++out.steps;
                const u32 to = add(next, at);
                if (kind == Kind::Work) edges_.push_back(to);
            });
            if (states_.size() > most_) return out;  // not complete
        }
        first_edge_.push_back(edges_.size());
        if (const u32 at = first_unfinished(); at != kNone) {
            out.property = model_.unfinished(states_[at]);
            return finish(out, at);
        }
        out.states = states_.size();
        out.complete = true;
        return out;
    }

private:
    static constexpr u32 kNone = ~0U;

    static u64 hash(const State& s) {
        u64 h = 0x9e3779b97f4a7c15ULL;
        const auto* bytes = reinterpret_cast<const unsigned char*>(&s);
        std::size_t i = 0;
        for (; i + 8 <= sizeof s; i += 8) {
            u64 w;
            std::memcpy(&w, bytes + i, 8);
            h = (h ^ w) * 0xff51afd7ed558ccdULL;
            h ^= h >> 32;
        }
        for (; i < sizeof s; ++i) h = (h ^ bytes[i]) * 0xff51afd7ed558ccdULL;
        return h ^ (h >> 29);
    }
    u32 add(const State& s, u32 parent) {
        if (states_.size() * 2 > table_.size()) grow();
        for (u64 at = hash(s) & (table_.size() - 1);; at = (at + 1) & (table_.size() - 1)) {
            const u32 known = table_[at];
            if (known == kNone) {
                table_[at] = static_cast<u32>(states_.size());
                states_.push_back(s);
                parents_.push_back(parent);
                return table_[at];
            }
            if (std::memcmp(&states_[known], &s, sizeof s) == 0) return known;
        }
    }
    void grow() {
        table_.assign(table_.size() * 4, kNone);
        for (u32 i = 0; i < states_.size(); ++i) {
            u64 at = hash(states_[i]) & (table_.size() - 1);
            while (table_[at] != kNone) at = (at + 1) & (table_.size() - 1);
            table_[at] = i;
        }
    }
    // The first state from which no quiescent one can be reached; of those, one that can go nowhere, if there is any:
    // it shows best what is missing.
    u32 first_unfinished() const {
        std::vector<bool> finishes(states_.size());
        for (u32 i = 0; i < states_.size(); ++i) finishes[i] = model_.quiescent(states_[i]);
        for (bool more = true; more;) {  // steps mostly lead to later states: few rounds, from the end
            more = false;
            for (u32 i = static_cast<u32>(states_.size()); i-- > 0;) {
                if (finishes[i]) continue;
                for (u64 e = first_edge_[i]; e < first_edge_[i + 1]; ++e)
                    if (finishes[edges_[e]]) {
                        finishes[i] = more = true;
                        break;
                    }
            }
        }
        u32 found = kNone;
        for (u32 i = 0; i < states_.size(); ++i) {
            if (finishes[i]) continue;
            if (first_edge_[i] == first_edge_[i + 1]) return i;
            if (found == kNone) found = i;
        }
        return found;
    }
    Outcome& finish(Outcome& out, u32 at) {
        out.states = states_.size();
        out.complete = true;
        for (; parents_[at] != kNone; at = parents_[at]) {
            std::string what;
            model_.steps(states_[parents_[at]], [&](const State& next, Kind, const char* label) {
                if (what.empty() && std::memcmp(&next, &states_[at], sizeof next) == 0) what = label;
            });
            out.trace.insert(out.trace.begin(), what);
        }
        return out;
    }

    const Model& model_;
    u64 most_;
    std::vector<State> states_;
    std::vector<u32> parents_;
    std::vector<u32> table_;  // open addressing: indices into states_
    std::vector<u32> edges_;  // of Kind::Work; those of state i from first_edge_[i] to first_edge_[i + 1]
    std::vector<u64> first_edge_;
};

}  // namespace model

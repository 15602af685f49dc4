// Messages that can prove where they belong: stamped by the publisher, checked by every subscriber.
//
// A stamp is the first 32 bytes of a message: a checksum of everything behind it, who sent the message, which of
// its messages it is (1, 2, 3, ...), and when it was due. Whoever reads a publisher's messages in the order of the
// log expects the numbers without a gap; what comes instead is one of four faults:
//
//   corrupt      the checksum does not fit, or the stamp names another publisher than the batch
//   lost         a number is skipped and never comes
//   reordered    a number is skipped and comes later
//   duplicated   a number comes again
//
// Whether a skipped number is lost or late is known in the end only; the Verifier remembers what is missing.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

namespace embar {

struct Stamp {
    std::uint64_t check;
    std::uint64_t publisher;
    std::uint64_t sequence;
    std::uint64_t due_ns;  // CLOCK_MONOTONIC; 0: the message was not due at any time
};
static_assert(sizeof(Stamp) == 32);

namespace checksum {
// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), applied
// per word; in four lanes, because one would wait for its own multiplications.
inline constexpr std::uint64_t kMultiplier = 0xbf58476d1ce4e5b9ULL;
inline constexpr std::uint64_t kSeed = 0x9e3779b97f4a7c15ULL;

inline std::uint64_t mixed(std::uint64_t sum, std::uint64_t word) noexcept {
    sum = (sum ^ word) * kMultiplier;
    return sum ^ (sum >> 31);
}

inline std::uint64_t of(const char* data, std::size_t size) noexcept {
    std::uint64_t lanes[4] = {kSeed, kSeed ^ 1, kSeed ^ 2, kSeed ^ 3}, word;
    std::size_t at = 0;
    for (; size - at >= 32; at += 32)
        for (unsigned i = 0; i < 4; ++i) {
            std::memcpy(&word, data + at + 8 * i, 8);
            lanes[i] = mixed(lanes[i], word);
        }
    for (; at < size; at += 8) {
        word = 0;
        std::memcpy(&word, data + at, size - at < 8 ? size - at : 8);
        lanes[0] = mixed(lanes[0], word);
    }
    std::uint64_t sum = mixed(kSeed, size);  // zeros at the end count
    for (const std::uint64_t lane : lanes) sum = mixed(sum, lane);
    return sum;
}
}  // namespace checksum

inline std::uint64_t check_of(const char* message, std::size_t size) noexcept {
    return checksum::of(message + sizeof(Stamp::check), size - sizeof(Stamp::check));
}

// Stamps `count` messages of `size` bytes, back to back; `first` is the number of the first.
inline void stamp(char* messages, std::size_t size, std::size_t count, std::uint64_t publisher, std::uint64_t first,
                  std::uint64_t due_ns) noexcept {
    for (std::size_t i = 0; i < count; ++i, messages += size) {
        Stamp s{0, publisher, first + i, due_ns};
        std::memcpy(messages, &s, sizeof s);
        s.check = check_of(messages, size);
        std::memcpy(messages, &s.check, sizeof s.check);
    }
}

enum class Misplaced : int { Corrupt = 0, Lost = 1, Reordered = 2, Duplicated = 3 };

// What one subscriber has seen of all publishers.
class Verifier {
public:
    struct Finding {
        Misplaced kind;
        std::uint64_t publisher, expected, found, ticket;
    };
    struct Counts {
        std::uint64_t messages = 0, lost = 0, duplicated = 0, reordered = 0, corrupt = 0;
        std::uint64_t overrun = 0;  // skipped where a gap was announced
        std::uint64_t resent = 0;   // came again from a publisher that was told to start again
    };
    struct Publisher {
        std::uint64_t expected = 1;                        // the number that comes next
        std::uint64_t high = 1;                            // above all numbers that came
        std::uint64_t excuse = 0;                          // the last one used, of `excuses_`
        std::uint64_t skipped = 0;                         // with an excuse
        std::map<std::uint64_t, std::uint64_t> missing{};  // [from, to): skipped without an excuse
    };

    // The messages of one batch. `gap`: batches were overrun just before it, so numbers may be skipped.
    void batch(const char* body, std::size_t size, std::size_t count, std::uint64_t publisher, std::uint64_t ticket,
               bool gap) {
        if (gap) ++excuses_;
        Publisher& p = publishers_[publisher];
        for (std::size_t i = 0; i < count; ++i, body += size) {
            Stamp s;
            std::memcpy(&s, body, sizeof s);
            ++counts_.messages;
            if (s.check != check_of(body, size) || s.publisher != publisher) {
                ++counts_.corrupt;
                note({Misplaced::Corrupt, publisher, p.expected, s.sequence, ticket});
                ++p.expected;  // it stands in the place of the one that was expected
                if (p.expected > p.high) p.high = p.expected;
            } else {
                message(p, publisher, s.sequence, ticket);
            }
        }
    }

    // Another log begins: each publisher may begin anywhere, also with what came before.
    void restart() noexcept {
        ++excuses_;
        resends_ = excuses_;
    }

    // The first fault, as it looks now; none: all is well so far.
    std::optional<Finding> first() const {
        if (!first_ || first_->kind != Misplaced::Lost) return first_;
        Finding found = *first_;
        const auto& missing = publishers_.at(found.publisher).missing;
        const auto after = missing.lower_bound(found.found);
        // The last range that begins before `found`: ranges never overlap, so only that can reach behind `expected`.
        const bool still = after != missing.begin() && std::prev(after)->second > found.expected;
        if (!still) found.kind = Misplaced::Reordered;
        return found;
    }
    const Counts& counts() const noexcept { return counts_; }
    const std::map<std::uint64_t, Publisher>& publishers() const noexcept { return publishers_; }

private:
    void message(Publisher& p, std::uint64_t publisher, std::uint64_t sequence, std::uint64_t ticket) {
        if (sequence != p.expected) {
            const bool excused = p.excuse < excuses_;
            if (excused && (sequence > p.expected || p.excuse < resends_)) {
                if (sequence > p.high) {
                    counts_.overrun += sequence - p.high;
                    p.skipped += sequence - p.high;
                }
                p.expected = sequence;
            } else if (sequence > p.expected) {
                counts_.lost += sequence - p.expected;
                p.missing[p.expected] = sequence;
                note({Misplaced::Lost, publisher, p.expected, sequence, ticket});
                p.expected = sequence;
            } else {
                late(p, publisher, sequence, ticket);
                return;
            }
        }
        p.excuse = excuses_;
        ++p.expected;
        if (sequence < p.high)
            ++counts_.resent;
        else
            p.high = p.expected;
    }

    // A number below the expected one: missing until now, or a second time.
    void late(Publisher& p, std::uint64_t publisher, std::uint64_t sequence, std::uint64_t ticket) {
        auto range = p.missing.upper_bound(sequence);
        if (range == p.missing.begin() || (--range)->second <= sequence) {
            ++counts_.duplicated;
            note({Misplaced::Duplicated, publisher, p.expected, sequence, ticket});
            return;
        }
        const auto [from, to] = *range;
        p.missing.erase(range);
        if (from < sequence) p.missing[from] = sequence;
        if (sequence + 1 < to) p.missing[sequence + 1] = to;
        --counts_.lost;
        ++counts_.reordered;
    }

    void note(const Finding& finding) {
        if (!first_) first_ = finding;
    }

    std::map<std::uint64_t, Publisher> publishers_;
    Counts counts_;
    std::optional<Finding> first_;
    std::uint64_t excuses_ = 0;  // gaps and restarts so far
    std::uint64_t resends_ = 0;  // the last of them that was a restart
};

}  // namespace embar

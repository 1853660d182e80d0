// Event types, patterns of them, and which handler an event goes to. Pure, fuzzed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace outbox::detail {

// Two or more segments of A-Z a-z 0-9 _ -, separated by dots, at most 200 bytes: what outbox.emit() takes.
bool is_event_type(std::string_view text) noexcept;

// One or more such segments, at most 100 bytes.
bool is_topic(std::string_view text) noexcept;

// An event type in which a segment may be "*", or "*" alone, or "segment.*".
bool is_pattern(std::string_view text) noexcept;

// "*" is one segment; as the last segment of the pattern, one or more. Time is linear in the two lengths.
bool matches(std::string_view pattern, std::string_view type) noexcept;

// The topic that a pattern's events are in unless they are emitted with another: its first segment; empty if that is "*".
std::string_view topic_of(std::string_view pattern) noexcept;

// Finds the handler (a number that the caller gave) of an event. The type itself wins over patterns, there the exact version
// over any (0); among patterns the most literal segments win, then the one that was added first.
class routes {
  public:
    // False if this pattern and version are taken.
    bool add(std::string_view pattern, int version, std::size_t handler);

    enum class verdict { found, unhandled, unknown_version };
    struct result {
        verdict is = verdict::unhandled;
        std::size_t handler = 0;
    };
    // unknown_version: contracts of this very type are registered, but none of this version, and no handler of any version
    // nor pattern takes it.
    result find(std::string_view type, int version) const;

    bool empty() const noexcept;
    const std::vector<std::string> &patterns() const noexcept; // each once, as added

  private:
    struct route {
        std::string pattern;
        int version;
        std::size_t handler;
        std::size_t literals;
    };
    struct hash : std::hash<std::string_view> {
        using is_transparent = void;
    };
    std::unordered_map<std::string, std::vector<route>, hash, std::equal_to<>> exact_;
    std::vector<route> wild_; // best first
    std::vector<std::string> patterns_;
};

} // namespace outbox::detail

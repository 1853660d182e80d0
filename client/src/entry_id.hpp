// A Redis stream entry's ID, <ms>-<n>, in Redis' own range. Pure.
#pragma once

#include <charconv>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace outbox::detail {

struct entry_id {
    std::uint64_t ms = 0;
    std::uint64_t n = 0;

    friend auto operator<=>(const entry_id &, const entry_id &) = default;
};

inline std::string to_string(entry_id id) {
    char text[44];
    char *end = std::to_chars(text, text + 20, id.ms).ptr;
    *end++ = '-';
    end = std::to_chars(end, end + 20, id.n).ptr;
    return {text, end};
}

// False for anything but two decimal numbers with a dash between.
inline bool parse(std::string_view text, entry_id &id) noexcept {
    auto dash = text.find('-');
    if (dash == std::string_view::npos)
        return false;
    auto number = [](std::string_view digits, std::uint64_t &result) {
        auto end = digits.data() + digits.size();
        auto parsed = std::from_chars(digits.data(), end, result);
        return !digits.empty() && parsed.ptr == end && parsed.ec == std::errc();
    };
    return number(text.substr(0, dash), id.ms) && number(text.substr(dash + 1), id.n);
}

// The one before; 0-0 has none and stays.
inline entry_id predecessor(entry_id id) noexcept {
    if (id.n > 0)
        return {id.ms, id.n - 1};
    if (id.ms > 0)
        return {id.ms - 1, std::numeric_limits<std::uint64_t>::max()};
    return id;
}

} // namespace outbox::detail

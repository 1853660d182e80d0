// A position is an event's place in the total order of its sink, and its entry ID: <ms>-<n>. Pure.
#pragma once

#include <charconv>
#include <compare>
#include <cstdint>
#include <limits>
#include <string_view>

namespace outbox {

struct position {
    std::int64_t ms = 0; // names the tick
    std::int64_t n = -1; // index among all events of the tick's batch; -1: before the first

    friend auto operator<=>(const position &, const position &) = default;
};

constexpr std::size_t position_text_size = 44;

// Writes "<ms>-<n>" and returns its length; `text` holds position_text_size bytes.
inline std::size_t print(position value, char *text) noexcept {
    char *end = std::to_chars(text, text + 20, value.ms).ptr;
    *end++ = '-';
    end = std::to_chars(end, end + 20, value.n < 0 ? 0 : value.n).ptr;
    return static_cast<std::size_t>(end - text);
}

// False for anything but two decimal numbers with a dash between. Redis counts in unsigned 64 bits: what is beyond our range
// is cut to its end, which is as far in the future as any position needs to be.
inline bool parse(std::string_view text, position &value) noexcept {
    auto dash = text.find('-');
    if (dash == std::string_view::npos)
        return false;
    auto number = [](std::string_view digits, std::int64_t &result) {
        std::uint64_t wide = 0;
        auto end = digits.data() + digits.size();
        auto parsed = std::from_chars(digits.data(), end, wide);
        if (digits.empty() || parsed.ptr != end || parsed.ec != std::errc())
            return false;
        constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
        result = static_cast<std::int64_t>(wide < most ? wide : most);
        return true;
    };
    return number(text.substr(0, dash), value.ms) && number(text.substr(dash + 1), value.n);
}

} // namespace outbox

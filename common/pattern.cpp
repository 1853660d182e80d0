#include "common/pattern.hpp"

namespace outbox {

// Cuts the first segment off; `text` is empty after the last.
static std::string_view take_segment(std::string_view &text) noexcept {
    auto dot = text.find('.');
    std::string_view segment = text.substr(0, dot);
    text = dot == std::string_view::npos ? std::string_view() : text.substr(dot + 1);
    return segment;
}

static bool is_word(std::string_view segment) noexcept {
    for (char c : segment)
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-'))
            return false;
    return !segment.empty();
}

std::size_t count_pattern_segments(std::string_view text) noexcept {
    if (text.empty() || text.back() == '.')
        return 0;
    std::size_t segments = 0;
    for (; !text.empty(); ++segments) {
        std::string_view segment = take_segment(text);
        if (segment != "*" && !is_word(segment))
            return 0;
    }
    return segments;
}

bool matches(std::string_view pattern, std::string_view text) noexcept {
    while (!pattern.empty() && !text.empty()) {
        std::string_view wanted = take_segment(pattern);
        if (wanted == "*" && pattern.empty())
            return true; // whatever is left
        std::string_view segment = take_segment(text);
        if (wanted != "*" && wanted != segment)
            return false;
    }
    return pattern.empty() && text.empty();
}

} // namespace outbox

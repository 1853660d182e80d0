// Event types, patterns and routes: see pattern.hpp.
#include "src/pattern.hpp"

#include "common/pattern.hpp"

#include <algorithm>

namespace outbox::detail {

namespace {

bool is_letter(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

// Cuts the first segment off; `text` is empty after the last.
std::string_view take_segment(std::string_view &text) noexcept {
    auto dot = text.find('.');
    std::string_view segment = text.substr(0, dot);
    text = dot == std::string_view::npos ? std::string_view() : text.substr(dot + 1);
    return segment;
}

// The number of segments, or 0 where one is empty or holds anything else.
std::size_t count_segments(std::string_view text) noexcept {
    std::size_t segments = 1;
    bool empty = true;
    for (char c : text) {
        if (is_letter(c)) {
            empty = false;
        } else if (c == '.' && !empty) {
            empty = true;
            ++segments;
        } else {
            return 0;
        }
    }
    return empty ? 0 : segments;
}

bool has_star(std::string_view pattern) noexcept {
    return pattern.find('*') != std::string_view::npos;
}

std::size_t count_literals(std::string_view pattern) noexcept {
    std::size_t literals = 0;
    while (!pattern.empty())
        literals += take_segment(pattern) != "*";
    return literals;
}

} // namespace

bool is_event_type(std::string_view text) noexcept {
    return text.size() <= 200 && count_segments(text) >= 2;
}

bool is_topic(std::string_view text) noexcept {
    return text.size() <= 100 && count_segments(text) >= 1;
}

bool is_pattern(std::string_view text) noexcept {
    return text == "*" || (text.size() <= 200 && count_pattern_segments(text) >= 2);
}

bool matches(std::string_view pattern, std::string_view type) noexcept { return outbox::matches(pattern, type); }

std::string_view topic_of(std::string_view pattern) noexcept {
    std::string_view first = take_segment(pattern);
    return first == "*" ? std::string_view() : first;
}

bool routes::add(std::string_view pattern, int version, std::size_t handler) {
    auto same = [&](const route &each) {
        return each.pattern == pattern && each.version == version;
    };
    auto &list = has_star(pattern) ? wild_ : exact_[std::string(pattern)];
    if (std::any_of(list.begin(), list.end(), same))
        return false;

    route added{std::string(pattern), version, handler, count_literals(pattern)};
    auto better = [](const route &one, const route &other) {
        return one.literals != other.literals ? one.literals > other.literals
                                              : (one.version != 0) > (other.version != 0);
    };
    list.insert(std::upper_bound(list.begin(), list.end(), added, better), std::move(added));
    if (std::find(patterns_.begin(), patterns_.end(), pattern) == patterns_.end())
        patterns_.emplace_back(pattern);
    return true;
}

routes::result routes::find(std::string_view type, int version) const {
    // The lists are sorted: the first that takes it is the best.
    auto takes = [version](const route &each) {
        return each.version == 0 || each.version == version;
    };
    auto exact = exact_.find(type);
    if (exact != exact_.end())
        for (const route &each : exact->second)
            if (takes(each))
                return {verdict::found, each.handler};
    for (const route &each : wild_)
        if (takes(each) && matches(each.pattern, type))
            return {verdict::found, each.handler};
    return {exact != exact_.end() ? verdict::unknown_version : verdict::unhandled, 0};
}

bool routes::empty() const noexcept { return patterns_.empty(); }

const std::vector<std::string> &routes::patterns() const noexcept { return patterns_; }

} // namespace outbox::detail

// Patterns and routes, against a slow reference that looks at segments.
#include "src/pattern.hpp"

#include "test/fuzz/fuzz.hpp"
#include "test/unit/grammar.hpp"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

using namespace outbox::detail;

namespace {

std::vector<std::string> split(std::string_view text, char at) {
    std::vector<std::string> parts(1);
    for (char c : text) {
        if (c == at)
            parts.emplace_back();
        else
            parts.back() += c;
    }
    return parts;
}

bool slow_is_pattern(const std::string &text) {
    std::string filled;
    for (const auto &segment : split(text, '.'))
        filled += "." + (segment == "*" ? "x" : segment);
    return text == "*" || outbox_test::matches(filled.substr(1), 2, 200);
}

bool slow_matches(std::string_view pattern, std::string_view type) {
    auto wanted = split(pattern, '.'), found = split(type, '.');
    if (wanted.back() == "*" && found.size() > wanted.size())
        found.resize(wanted.size());
    if (wanted.size() != found.size())
        return false;
    for (std::size_t i = 0; i < wanted.size(); ++i)
        if (wanted[i] != "*" && wanted[i] != found[i])
            return false;
    return true;
}

struct slow_route {
    std::string pattern;
    int version;
};

// Smaller is better; what was added first comes first.
auto rank(const slow_route &route, std::size_t added) {
    auto segments = split(route.pattern, '.');
    auto stars = std::count(segments.begin(), segments.end(), "*");
    auto literals = static_cast<std::ptrdiff_t>(segments.size()) - stars;
    return std::tuple(stars != 0, stars != 0 ? -literals : 0, route.version == 0, added);
}

} // namespace

// Lines: an event type, and then patterns, each with a digit for its version before it.
int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    auto lines = split(text_of(data, size), '\n');
    for (const auto &line : lines) {
        EXPECT(is_event_type(line) == outbox_test::matches(line, 2, 200));
        EXPECT(is_topic(line) == outbox_test::matches(line, 1, 100));
        EXPECT(is_pattern(line) == slow_is_pattern(line));
        EXPECT(!is_event_type(line) || (is_pattern(line) && matches(line, line)));
    }

    const std::string &type = lines[0];
    if (!is_event_type(type))
        return 0;
    routes routes;
    std::vector<slow_route> added;
    for (std::size_t i = 1; i < lines.size(); ++i) {
        if (lines[i].empty())
            continue;
        slow_route route{lines[i].substr(1), (lines[i][0] & 3)};
        if (!is_pattern(route.pattern))
            continue;
        EXPECT(matches(route.pattern, type) == slow_matches(route.pattern, type));
        auto first = split(route.pattern, '.')[0];
        EXPECT(topic_of(route.pattern) == (first == "*" ? "" : first));

        bool taken = std::any_of(added.begin(), added.end(), [&](const slow_route &other) {
            return other.pattern == route.pattern && other.version == route.version;
        });
        EXPECT(routes.add(route.pattern, route.version, added.size()) == !taken);
        if (!taken)
            added.push_back(route);
    }
    EXPECT(routes.empty() == added.empty());

    for (int version = 1; version < 5; ++version) {
        std::size_t best = added.size();
        bool exact = false;
        for (std::size_t i = 0; i < added.size(); ++i) {
            exact = exact || added[i].pattern == type;
            if (slow_matches(added[i].pattern, type) &&
                (added[i].version == 0 || added[i].version == version) &&
                (best == added.size() || rank(added[i], i) < rank(added[best], best)))
                best = i;
        }
        auto result = routes.find(type, version);
        if (best != added.size())
            EXPECT(result.is == routes::verdict::found && result.handler == best);
        else
            EXPECT(result.is ==
                   (exact ? routes::verdict::unknown_version : routes::verdict::unhandled));
    }
    return 0;
}

// The grammar of event types and topics once more, slowly: cut at the dots, look at each segment.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace outbox_test {

inline bool matches(const std::string &text, std::size_t least_segments, std::size_t most_bytes) {
    static const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    std::vector<std::string> segments(1);
    for (char c : text) {
        if (c == '.')
            segments.emplace_back();
        else
            segments.back() += c;
    }
    for (const auto &segment : segments) {
        if (segment.empty())
            return false;
        for (char c : segment)
            if (letters.find(c) == std::string::npos)
                return false;
    }
    return segments.size() >= least_segments && text.size() <= most_bytes;
}

} // namespace outbox_test

// Text from outside, as it may be quoted in a message: it may hold anything, also what forges a log line. Pure C++.
#pragma once

#include <cstddef>
#include <string_view>

namespace outbox {

// Gives `append`, piece by piece, at most `limit` bytes of the text, those that are not printable ASCII as \xNN, and "..."
// where it was longer. The caller says where it goes: the server may hold no std::string where an error can jump.
template <typename Append> void append_printable(std::string_view value, std::size_t limit, Append append) {
    static constexpr char hex[] = "0123456789abcdef";
    for (const char &c : value.substr(0, limit)) {
        auto byte = static_cast<unsigned char>(c);
        const char escaped[] = {'\\', 'x', hex[byte >> 4], hex[byte & 15]};
        append(byte >= 0x20 && byte < 0x7f ? std::string_view(&c, 1) : std::string_view(escaped, sizeof escaped));
    }
    if (value.size() > limit)
        append(std::string_view("..."));
}

} // namespace outbox

// A second opinion on the wire format: reads RESP commands back, byte by byte, with nothing of the code under test.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace outbox_test {

using command = std::vector<std::string>;

// False unless the text is whole commands (arrays of bulk strings) and nothing else.
inline bool parse_commands(std::string_view text, std::vector<command> &commands) {
    std::size_t at = 0;
    auto number_after = [&](char kind, std::size_t &number) {
        if (at >= text.size() || text[at] != kind)
            return false;
        ++at;
        std::size_t digits = 0;
        number = 0;
        while (at < text.size() && text[at] >= '0' && text[at] <= '9' && digits < 19) {
            number = number * 10 + static_cast<std::size_t>(text[at] - '0');
            ++at;
            ++digits;
        }
        if (digits == 0 || text.substr(at, 2) != "\r\n")
            return false;
        at += 2;
        return true;
    };
    commands.clear();
    while (at < text.size()) {
        std::size_t arguments;
        if (!number_after('*', arguments) || arguments == 0)
            return false;
        command parsed;
        for (std::size_t i = 0; i < arguments; ++i) {
            std::size_t length;
            if (!number_after('$', length) || length > text.size() - at)
                return false;
            parsed.emplace_back(text.substr(at, length));
            at += length;
            if (text.substr(at, 2) != "\r\n")
                return false;
            at += 2;
        }
        commands.push_back(parsed);
    }
    return true;
}

} // namespace outbox_test

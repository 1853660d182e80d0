// Encoding of Redis commands (RESP2) into one buffer. Every argument goes with its length, so no byte in it can be taken for
// the protocol. Pure.
#pragma once

#include <charconv>
#include <string>
#include <string_view>

namespace outbox::resp {

inline void header(std::string &out, char kind, std::size_t number) {
    char digits[24];
    digits[0] = kind;
    auto end = std::to_chars(digits + 1, digits + 22, number).ptr;
    *end++ = '\r';
    *end++ = '\n';
    out.append(digits, static_cast<std::size_t>(end - digits));
}

// Begins a command of `arguments` arguments, its name included; they follow one by one.
inline void command(std::string &out, std::size_t arguments) { header(out, '*', arguments); }

inline void argument(std::string &out, std::string_view value) {
    header(out, '$', value.size());
    out.append(value);
    out.append("\r\n", 2);
}

// A whole command.
template <typename... Arguments> void append(std::string &out, const Arguments &...arguments) {
    command(out, sizeof...(arguments));
    (argument(out, std::string_view(arguments)), ...);
}

} // namespace outbox::resp

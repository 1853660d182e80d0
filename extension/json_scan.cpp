#include "extension/json_scan.hpp"

#include <cstdint>
#include <cstring>

namespace outbox {

constexpr unsigned max_depth = 64;

static const char *skip_blanks(const char *at, const char *end) noexcept {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
        ++at;
    return at;
}

static bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

static bool is_hex(char c) noexcept { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// Is one of eight bytes a quote, a backslash or a control character?
static bool is_special(const char *at) noexcept {
    constexpr std::uint64_t ones = 0x0101010101010101, highs = 0x8080808080808080;
    std::uint64_t bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    std::uint64_t quote = bytes ^ (ones * '"'), backslash = bytes ^ (ones * '\\');
    return (((bytes - ones * 0x20) & ~bytes) | ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash)) & highs;
}

// All of these take where something begins and give where it ends; null where it is not as it should be.

static const char *string(const char *at, const char *end) noexcept {
    if (at == end || *at != '"')
        return nullptr;
    ++at;
    for (;;) {
        while (end - at >= 8 && !is_special(at))
            at += 8;
        while (at < end && *at != '"' && *at != '\\' && static_cast<unsigned char>(*at) >= 0x20)
            ++at;
        if (at == end || static_cast<unsigned char>(*at) < 0x20)
            return nullptr;
        if (*at == '"')
            return at + 1;
        if (end - at < 2)
            return nullptr;
        switch (at[1]) {
        case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't':
            at += 2;
            break;
        case 'u':
            if (end - at < 6 || !is_hex(at[2]) || !is_hex(at[3]) || !is_hex(at[4]) || !is_hex(at[5]))
                return nullptr;
            at += 6;
            break;
        default:
            return nullptr;
        }
    }
}

static const char *digits(const char *at, const char *end) noexcept {
    if (at == end || !is_digit(*at))
        return nullptr;
    while (at < end && is_digit(*at))
        ++at;
    return at;
}

static const char *number(const char *at, const char *end) noexcept {
    if (at < end && *at == '-')
        ++at;
    at = at < end && *at == '0' ? at + 1 : digits(at, end);
    if (at && at < end && *at == '.')
        at = digits(at + 1, end);
    if (at && at < end && (*at == 'e' || *at == 'E')) {
        ++at;
        if (at < end && (*at == '+' || *at == '-'))
            ++at;
        at = digits(at, end);
    }
    return at;
}

static const char *word(const char *at, const char *end, std::string_view wanted) noexcept {
    return std::string_view(at, static_cast<std::size_t>(end - at)).starts_with(wanted) ? at + wanted.size() : nullptr;
}

static const char *scalar(const char *at, const char *end) noexcept {
    switch (*at) {
    case '"': return string(at, end);
    case 't': return word(at, end, "true");
    case 'f': return word(at, end, "false");
    case 'n': return word(at, end, "null");
    default: return number(at, end);
    }
}

// A key with its colon.
static const char *key(const char *at, const char *end) noexcept {
    at = string(skip_blanks(at, end), end);
    if (!at)
        return nullptr;
    at = skip_blanks(at, end);
    return at < end && *at == ':' ? at + 1 : nullptr;
}

bool is_plain_json(std::string_view text) noexcept {
    const char *at = text.data(), *end = at + text.size();
    std::uint64_t objects = 0; // a bit for each level, the innermost is the lowest: is it an object?
    unsigned depth = 0;
    for (;;) {
        // here a value begins
        at = skip_blanks(at, end);
        if (at == end)
            return false;
        if (*at == '{' || *at == '[') {
            bool object = *at == '{';
            if (depth == max_depth)
                return false;
            const char *inside = skip_blanks(at + 1, end);
            if (inside < end && *inside == (object ? '}' : ']')) {
                at = inside + 1;
            } else {
                ++depth;
                objects = objects << 1 | object;
                at = object ? key(inside, end) : inside;
                if (!at)
                    return false;
                continue;
            }
        } else if (!(at = scalar(at, end))) {
            return false;
        }
        // here it has ended, and perhaps what it is in
        for (;;) {
            at = skip_blanks(at, end);
            if (depth == 0)
                return at == end;
            if (at == end)
                return false;
            bool object = objects & 1;
            char c = *at++;
            if (c == ',') {
                if (object && !(at = key(at, end)))
                    return false;
                break;
            }
            if (c != (object ? '}' : ']'))
                return false;
            --depth;
            objects >>= 1;
        }
    }
}

} // namespace outbox

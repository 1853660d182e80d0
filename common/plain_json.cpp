#include "common/plain_json.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace outbox {

namespace {

class scanner {
  public:
    explicit scanner(std::string_view text) noexcept : at_(text.data()), end_(at_ + text.size()) {}

    // What stands open is a bit for each level: 1 for an object.
    bool whole(bool only_object) noexcept {
        std::uint64_t open = 0;
        int level = 0;
        skip_space();
        if (only_object && !is('{'))
            return false;
        for (;;) {
            // a value
            if (at_ == end_)
                return false;
            char opening = *at_;
            if (opening == '{' || opening == '[') {
                if (level == 64)
                    return false;
                ++at_;
                ++level;
                open = open << 1 | (opening == '{');
                skip_space();
                if (!is(opening == '{' ? '}' : ']')) {
                    if (opening == '{' && !key())
                        return false;
                    continue;
                }
            } else if (!scalar()) {
                return false;
            }
            // and what comes after it
            for (;;) {
                skip_space();
                if (level == 0)
                    return at_ == end_;
                bool in_object = (open & 1) != 0;
                if (skip(',')) {
                    skip_space();
                    if (in_object && !key())
                        return false;
                    break;
                }
                if (!skip(in_object ? '}' : ']'))
                    return false;
                open >>= 1;
                --level;
            }
        }
    }

  private:
    bool is(char wanted) const noexcept { return at_ != end_ && *at_ == wanted; }
    bool skip(char wanted) noexcept {
        if (!is(wanted))
            return false;
        ++at_;
        return true;
    }

    void skip_space() noexcept {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r'))
            ++at_;
    }

    bool key() noexcept {
        if (!string())
            return false;
        skip_space();
        if (!skip(':'))
            return false;
        skip_space();
        return true;
    }

    bool scalar() noexcept {
        switch (*at_) {
        case '"':
            return string();
        case 't':
            return literal("true");
        case 'f':
            return literal("false");
        case 'n':
            return literal("null");
        default:
            return number();
        }
    }

    bool literal(std::string_view word) noexcept {
        if (static_cast<std::size_t>(end_ - at_) < word.size() || std::memcmp(at_, word.data(), word.size()) != 0)
            return false;
        at_ += word.size();
        return true;
    }

    int digits() noexcept {
        const char *from = at_;
        while (at_ != end_ && *at_ >= '0' && *at_ <= '9')
            ++at_;
        return static_cast<int>(std::min<std::ptrdiff_t>(at_ - from, 1000));
    }

    // Up to 1e199: a double has room for more.
    bool number() noexcept {
        skip('-');
        bool zero = is('0');
        int before = digits();
        if (before == 0 || before > 100 || (zero && before > 1))
            return false;
        if (skip('.') && digits() == 0)
            return false;
        if (skip('e') || skip('E')) {
            if (!skip('-'))
                skip('+');
            int exponent = digits();
            return exponent == 1 || exponent == 2;
        }
        return true;
    }

    bool string() noexcept {
        if (!skip('"'))
            return false;
        for (;;) {
            skip_ordinary();
            if (at_ == end_)
                return false;
            auto byte = static_cast<unsigned char>(*at_);
            if (byte == '"') {
                ++at_;
                return true;
            }
            if (byte != '\\' && byte < 0x80) // a control character
                return false;
            if (byte == '\\' ? !escape() : !utf8())
                return false;
        }
    }

    // Eight bytes at a time as long as they are ASCII without control characters, quotes and backslashes: where one of them is
    // something else, one of the differences has its highest bit set.
    void skip_ordinary() noexcept {
        constexpr std::uint64_t each = 0x0101010101010101U;
        while (end_ - at_ >= 8) {
            std::uint64_t bytes;
            std::memcpy(&bytes, at_, 8);
            std::uint64_t other = (bytes - each * 0x20) | ((bytes ^ each * '"') - each) | ((bytes ^ each * '\\') - each) | bytes;
            other &= each * 0x80;
            if (other != 0) {
                if constexpr (std::endian::native == std::endian::little) {
                    at_ += std::countr_zero(other) / 8; // the first one: only those behind it may be taken for something else
                    return;
                }
                break;
            }
            at_ += 8;
        }
        while (at_ != end_ && static_cast<unsigned char>(*at_ - 0x20) < 0x60 && *at_ != '"' && *at_ != '\\')
            ++at_;
    }

    bool escape() noexcept {
        ++at_;
        if (at_ == end_)
            return false;
        char what = *at_++;
        if (what != 'u')
            return what != '\0' && std::strchr("\"\\/bfnrt", what) != nullptr;
        unsigned code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            if (at_ == end_)
                return false;
            int lower = *at_ | 0x20;
            if (*at_ >= '0' && *at_ <= '9')
                code = code * 16 + static_cast<unsigned>(*at_ - '0');
            else if (lower >= 'a' && lower <= 'f')
                code = code * 16 + static_cast<unsigned>(lower - 'a' + 10);
            else
                return false;
        }
        return code < 0xd800 || code > 0xdfff;
    }

    // One character of two to four bytes: the shortest form, no surrogate, not above U+10FFFF.
    bool utf8() noexcept {
        auto first = static_cast<unsigned char>(*at_);
        int more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
        if (first < 0xc2 || first > 0xf4 || end_ - at_ <= more)
            return false;
        auto second = static_cast<unsigned char>(at_[1]);
        if (second < (first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80) ||
            second > (first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf))
            return false;
        for (int i = 2; i <= more; ++i)
            if ((static_cast<unsigned char>(at_[i]) & 0xc0) != 0x80)
                return false;
        at_ += more + 1;
        return true;
    }

    const char *at_, *end_;
};

} // namespace

bool is_plain_json(std::string_view text, bool only_object) noexcept { return scanner(text).whole(only_object); }

} // namespace outbox

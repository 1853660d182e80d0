// Encoding of Redis commands (RESP2) into one buffer. Every argument goes with its length, so no byte in it can be taken for
// the protocol. Pure.
#pragma once

#include <charconv>
#include <cstring>
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

// The same into room that is made once, for the commands that there are many of. The room must suffice.
class writer {
  public:
    writer(std::string &out, std::size_t room) : out_(out) {
        std::size_t old = out.size();
        out.resize(old + room);
        at_ = out.data() + old;
    }
    ~writer() { out_.resize(static_cast<std::size_t>(at_ - out_.data())); }
    writer(const writer &) = delete;
    writer &operator=(const writer &) = delete;

    // What an argument of `size` bytes takes, and a header alone.
    static constexpr std::size_t room_for(std::size_t size) { return size + header_room + 2; }
    static constexpr std::size_t header_room = 24;

    void raw(std::string_view text) {
        std::memcpy(at_, text.data(), text.size());
        at_ += text.size();
    }
    void header(char kind, std::size_t number) {
        *at_++ = kind;
        if (number < 10) {
            *at_++ = static_cast<char>('0' + number);
        } else if (number < 100) {
            *at_++ = static_cast<char>('0' + number / 10);
            *at_++ = static_cast<char>('0' + number % 10);
        } else {
            at_ = std::to_chars(at_, at_ + 20, number).ptr;
        }
        *at_++ = '\r';
        *at_++ = '\n';
    }
    void argument(std::string_view value) {
        header('$', value.size());
        if (!value.empty())
            raw(value);
        raw("\r\n");
    }

  private:
    std::string &out_;
    char *at_;
};

} // namespace outbox::resp

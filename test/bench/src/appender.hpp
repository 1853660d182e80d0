// Appends events to a stream with pipelined XADDs on one connection: encodes into one buffer,
// writes what the socket takes, counts the replies, and never waits. What a relay needs that has no
// library do it.
#pragma once

#include "redis_socket.hpp"

#include <array>
#include <charconv>
#include <cstdint>
#include <fcntl.h>
#include <poll.h>
#include <string>
#include <string_view>

// in the order of `appender::names`
using event_fields = std::array<std::string_view, 8>;

class appender {
  public:
    static constexpr std::array<std::string_view, 8> names = {
        "event_id", "event_type",  "aggregate_type", "aggregate_id",
        "version",  "occurred_at", "headers",        "payload"};

    appender(const std::string &where, const std::string &stream) : fd_(connect_redis(where)) {
        fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) | O_NONBLOCK);
        prefixes_[0] = "*19\r\n$4\r\nXADD\r\n" + bulk(stream) + bulk("*");
        for (std::size_t i = 0; i < names.size(); ++i)
            prefixes_[i] += bulk(names[i]) + "$";
    }

    int fd() const { return fd_; }
    std::uint64_t appended() const { return appended_; }
    std::uint64_t confirmed() const { return confirmed_; }

    // More should not be appended now: Redis is behind.
    bool full() const { return out_.size() - sent_ > 256 * 1024 || appended_ - confirmed_ > 10000; }

    // Some hundred events. Fewer are written only when no reply is due, as Nagle has it: while
    // Redis works there is time for more.
    bool worth_a_write() const { return out_.size() - sent_ > 48 * 1024; }

    short events_to_wait_for() const {
        return static_cast<short>((appended_ > confirmed_ ? POLLIN : 0) |
                                  (wants_to_write() ? POLLOUT : 0));
    }

    void append(const event_fields &fields) {
        for (std::size_t i = 0; i < fields.size(); ++i) {
            char length[24];
            char *end = std::to_chars(length, length + 20, fields[i].size()).ptr;
            *end++ = '\r';
            *end++ = '\n';
            out_.append(prefixes_[i]).append(length, end).append(fields[i]).append("\r\n");
        }
        ++appended_;
    }

    // Sends and receives what is possible now; true when it was anything.
    bool exchange() {
        bool some = false;
        if (wants_to_write()) {
            ssize_t count = send(fd_, out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL);
            if (count > 0) {
                some = true;
                sent_ += static_cast<std::size_t>(count);
                if (sent_ == out_.size()) {
                    out_.clear();
                    sent_ = 0;
                    written_ = appended_;
                } else if (sent_ > 1024 * 1024) {
                    out_.erase(0, sent_ - 1); // 1: it is in the middle of a write
                    sent_ = 1;
                }
            } else if (errno != EAGAIN && errno != EINTR) {
                options::fail(std::string("could not write to Redis: ") + std::strerror(errno));
            }
        }
        if (appended_ > confirmed_) {
            char in[65536];
            ssize_t count = recv(fd_, in, sizeof in, 0);
            if (count > 0) {
                some = true;
                count_replies({in, static_cast<std::size_t>(count)});
            } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
                options::fail("Redis closed the connection");
            }
        }
        return some;
    }

  private:
    bool wants_to_write() const {
        return sent_ < out_.size() && (sent_ > 0 || worth_a_write() || written_ == confirmed_);
    }

    static std::string bulk(std::string_view word) {
        std::string text = "$";
        text.append(std::to_string(word.size())).append("\r\n").append(word).append("\r\n");
        return text;
    }

    // A reply is two lines: $<length>, and the ID. Anything else is an error.
    void count_replies(std::string_view in) {
        while (!in.empty()) {
            if (at_line_start_ && !in_id_ && in[0] != '$')
                options::fail("Redis answered " + std::string(in.substr(0, in.find('\r'))));
            std::size_t end = in.find('\n');
            at_line_start_ = end != in.npos;
            if (!at_line_start_)
                return;
            if (in_id_)
                ++confirmed_;
            in_id_ = !in_id_;
            in.remove_prefix(end + 1);
        }
    }

    int fd_;
    std::array<std::string, 8> prefixes_;
    std::string out_;
    std::size_t sent_ = 0;
    std::uint64_t appended_ = 0, written_ = 0, confirmed_ = 0;
    bool at_line_start_ = true, in_id_ = false;
};

// "2026-11-21 08:55:15.964+00" as ISO 8601 writes it, into a buffer: what PostgreSQL prints where
// the time zone is UTC.
inline std::string_view iso_time(std::string_view text, std::array<char, 40> &buffer) {
    if (text.size() < 22 || text.size() > buffer.size() || !text.ends_with("+00"))
        options::fail("this is no time of UTC: " + std::string(text));
    std::memcpy(buffer.data(), text.data(), text.size());
    buffer[10] = 'T';
    buffer[text.size() - 3] = 'Z';
    return {buffer.data(), text.size() - 2};
}

// A connection to Redis: a non-blocking socket with hiredis' reader. No PostgreSQL header, never waits, never throws
// outwards; the dispatcher waits for it. With rediss:// there is TLS between the socket and the reader.
#pragma once

#include "bgworker/resolve.hpp"
#include "common/channel.hpp"
#include "common/url.hpp"

#include <hiredis/hiredis.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace outbox {

struct free_reply {
    void operator()(redisReply *reply) const noexcept { freeReplyObject(reply); }
};
using reply_pointer = std::unique_ptr<redisReply, free_reply>;

class redis_connection {
  public:
    redis_connection() noexcept = default;
    ~redis_connection() { close(); }
    redis_connection(const redis_connection &) = delete;
    redis_connection &operator=(const redis_connection &) = delete;

    // Begins to look up and connect; pump() until ready() or failed().
    void open(const redis_url &url) noexcept;
    void close() noexcept;

    bool ready() const noexcept { return channel_.ready() && !error_[0]; }
    bool failed() const noexcept { return error_[0] != '\0'; }
    bool is_open() const noexcept { return is_resolving_ || (channel_.fd() >= 0 && !failed()); }
    // It is connected, and the two sides are making out who the other is.
    bool is_shaking_hands() const noexcept { return channel_.is_shaking_hands(); }
    const char *error() const noexcept { return error_; }

    // What to wait for before the next pump(). While a name is looked up, fd() may be -1: then wait some milliseconds.
    int fd() const noexcept { return channel_.fd(); }
    bool wants_write() const noexcept { return channel_.wants_write(); }

    // Does what can be done without waiting.
    void pump() noexcept;

    // Hands over commands; pump() writes them. `commands` is taken over and left empty.
    void send(std::string &commands) noexcept;
    // Bytes that have come, and that the other side has taken: does it move at all?
    std::uint64_t traffic() const noexcept { return channel_.traffic(); }
    bool all_sent() const noexcept { return channel_.all_sent(); }

    // Has the server said `expected`, byte for byte? If so it is taken. Work that goes well has one possible answer, and comparing
    // costs a hundredth of parsing. `differs`: what has come is left for next_reply().
    enum class answer { incomplete, equals, differs };
    answer take(std::string_view expected) noexcept;

    // The next complete reply, null where there is none yet.
    reply_pointer next_reply() noexcept;

  private:
    void fail(const char *reason) noexcept;
    void connect_next() noexcept;
    void move_on() noexcept;
    void read_some() noexcept;
    bool feed() noexcept;

    redis_url url_;
    resolver resolver_;
    bool is_resolving_ = false;
    std::vector<socket_address> addresses_;
    std::size_t address_ = 0;
    channel channel_;
    std::string in_; // has come, and was not given to the reader yet
    redisReader *reader_ = nullptr;
    char error_[256] = ""; // set: it has failed
};

} // namespace outbox

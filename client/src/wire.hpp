// A channel on a libuv loop: looks up the host, connects, shakes hands, and says what has come. For the thread of the loop
// alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <uv.h>

#include "common/channel.hpp"

namespace outbox::detail {

class wire {
  public:
    struct events {
        std::function<void()> connected;
        std::function<void(std::string_view)> received;
        std::function<void(std::string_view why)> failed; // it is to be closed then
    };

    wire(uv_loop_t &loop, events events) : loop_(loop), events_(std::move(events)) {}
    ~wire() { close(); }
    wire(const wire &) = delete;
    wire &operator=(const wire &) = delete;

    // `attempt` counts those that failed: with a server that has several addresses, each begins with another one.
    void open(const redis_url &url, int attempt);
    // Nothing is said any more. libuv closes its handle in one of the loop's next rounds.
    void close() noexcept;

    bool is_resolving() const noexcept { return resolver_ != nullptr; }
    bool is_shaking_hands() const noexcept { return channel_.is_shaking_hands(); }
    bool ready() const noexcept { return channel_.ready(); }

    // What flush() sends; what does not fit goes out when it does.
    std::string &outgoing() noexcept { return channel_.outgoing(); }
    void flush();

  private:
    struct poller;

    void resolve();
    void connect_next();
    void move_on();
    void step();
    void read_all();
    void watch();
    void forget_socket() noexcept;

    uv_loop_t &loop_;
    events events_;
    redis_url url_;
    int attempt_ = 0;
    std::uint64_t opened_ = 0; // counts: whatever is said may lead to close(), or to another open()
    channel channel_;
    bool is_told_ = false; // that it is connected
    std::vector<socket_address> addresses_;
    std::size_t address_ = 0;
    uv_getaddrinfo_t *resolver_ = nullptr;
    poller *poller_ = nullptr;
};

} // namespace outbox::detail

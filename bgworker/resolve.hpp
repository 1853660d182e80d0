// Host names to addresses without waiting: c-ares does the look-up on sockets of its own, and nobody is kept from a signal by
// a name server that does not answer.
#pragma once

#include "common/channel.hpp"

#include <string>
#include <vector>

struct ares_addrinfo;
struct ares_channeldata;

namespace outbox {

class resolver {
  public:
    resolver() noexcept = default;
    ~resolver() { cancel(); }
    resolver(const resolver &) = delete;
    resolver &operator=(const resolver &) = delete;

    void start(const std::string &host, int port) noexcept;
    void cancel() noexcept;
    void pump() noexcept;

    bool done() const noexcept { return done_; }
    // Empty when it was found.
    const std::string &error() const noexcept { return error_; }
    const std::vector<socket_address> &addresses() const noexcept { return addresses_; }

  private:
    static void on_socket(void *self, int fd, int readable, int writable);
    static void on_result(void *self, int status, int timeouts, ares_addrinfo *result);

    struct watched {
        int fd;
        bool read, write;
    };

    ares_channeldata *channel_ = nullptr;
    std::vector<watched> sockets_;
    std::vector<socket_address> addresses_;
    std::string error_;
    bool done_ = false;
};

} // namespace outbox

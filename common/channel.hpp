// A non-blocking connection to one address, with TLS where the URL asks for it: bytes out and bytes in. Never waits, never
// throws; its user waits for the socket. The worker and the client have their own ways to look up, to wait and to understand.
#pragma once

#include "common/tls.hpp"
#include "common/url.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <sys/socket.h>

namespace outbox {

struct socket_address {
    sockaddr_storage address;
    socklen_t length;
};

// Of the path or of a host that is an address; false where the host is a name.
bool address_of(const redis_url &url, socket_address &result) noexcept;

class channel {
  public:
    channel() noexcept = default;
    ~channel() { close(); }
    channel(const channel &) = delete;
    channel &operator=(const channel &) = delete;

    // advance() until ready() or failed(). The URL says whose certificate the server must have.
    void open(const redis_url &url, const socket_address &address) noexcept;
    void close() noexcept;

    bool is_connecting() const noexcept { return phase_ == phase::connecting; }
    bool is_shaking_hands() const noexcept { return phase_ == phase::shaking_hands; }
    bool ready() const noexcept { return phase_ == phase::ready; }
    bool failed() const noexcept { return phase_ == phase::failed; }
    // It has failed before there was a connection: another address may do.
    bool was_unreachable() const noexcept { return failed() && !reached_; }
    const char *error() const noexcept { return error_; }

    // What to wait for. Bytes that come are always waited for.
    int fd() const noexcept { return fd_; }
    bool wants_write() const noexcept;

    void advance() noexcept;

    // Hands over bytes, which flush() writes; `bytes` is taken over and left empty. Or they are appended to outgoing() itself.
    void send(std::string &bytes) noexcept;
    std::string &outgoing() noexcept;
    bool all_sent() const noexcept { return written_ == out_.size(); }
    void flush() noexcept;

    // What has come: 0 where there is nothing for now, or where it failed. With TLS this is to be called until it says 0, as
    // the socket does not tell of what was decrypted with the bytes before.
    std::size_t read(char *buffer, std::size_t size) noexcept;
    bool must_be_emptied() const noexcept { return tls_ != nullptr; }

    // Bytes that have come, and that the other side has taken: does it move at all?
    std::uint64_t traffic() const noexcept;

  private:
    enum class phase { closed, connecting, shaking_hands, ready, failed };

    void fail(const char *reason) noexcept;
    void connected() noexcept;
    void shake_hands() noexcept;

    phase phase_ = phase::closed;
    bool reached_ = false;
    int fd_ = -1;
    std::unique_ptr<tls_session> tls_;
    redis_url url_;
    std::string out_;
    std::size_t written_ = 0;
    std::uint64_t traffic_ = 0;
    char error_[256] = "";
};

} // namespace outbox

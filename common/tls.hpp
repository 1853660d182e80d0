// TLS on a non-blocking socket: OpenSSL, verified always and with nothing to turn that off. Never waits, never throws, and knows
// neither PostgreSQL nor libuv: its user waits for the socket.
#pragma once

#include "common/url.hpp"

#include <cstddef>
#include <string>
#include <string_view>

#include <sys/types.h>

struct ssl_st;

namespace outbox {

class tls_session {
  public:
    tls_session() noexcept = default;
    ~tls_session() { end(); }
    tls_session(const tls_session &) = delete;
    tls_session &operator=(const tls_session &) = delete;

    // Reads the files and prepares to shake hands on a connected socket, which stays the caller's. `host` is the name or
    // address that the certificate must be for. False: see error().
    bool begin(int fd, const std::string &host, const tls_files &files) noexcept;
    void end() noexcept;

    // Nothing of the user's goes out before this says `done`: then the server is who it should be.
    enum class step { done, again, failed };
    step shake_hands() noexcept;

    // As recv() and send(): -1 with EAGAIN where they would have to wait; -1 with any other errno: see error(). read() is to
    // be called until it says EAGAIN: of what OpenSSL has decrypted no poll tells.
    ssize_t read(char *buffer, std::size_t size) noexcept;
    ssize_t write(const char *data, std::size_t size) noexcept;

    // Whether what was not done waits until the socket takes bytes; if not, until some come.
    bool wants_write() const noexcept { return read_waits_ == waiting::to_write || write_waits_ == waiting::to_write; }
    // A write that waits for bytes to come: to be tried again after a read.
    bool write_wants_read() const noexcept { return write_waits_ == waiting::to_read; }

    // Which check failed. These begin with "TLS: "; what the network has to say does not.
    const std::string &error() const noexcept { return error_; }

  private:
    enum class waiting { no, to_read, to_write };

    bool fail(std::string_view why) noexcept;
    bool prepare(int fd, const std::string &host, const tls_files &files);
    bool judge(int result, waiting &waits) noexcept;
    std::string explain(bool without_certificate) const;
    static int on_certificate_request(ssl_st *ssl, void *self) noexcept;

    ssl_st *ssl_ = nullptr;
    std::string host_, error_;
    waiting read_waits_ = waiting::no, write_waits_ = waiting::no;
    bool asked_ = false; // by the server, for a certificate of ours
    bool has_certificate_ = false, heard_ = false;
};

// What to do about an error of a session, for whoever reads it.
const char *tls_hint(std::string_view error) noexcept;

} // namespace outbox

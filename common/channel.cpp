#include "common/channel.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/crash_point.hpp"

namespace outbox {

bool address_of(const redis_url &url, socket_address &result) noexcept {
    result = {};
    if (!url.path.empty()) {
        auto *local = reinterpret_cast<sockaddr_un *>(&result.address);
        local->sun_family = AF_UNIX;
        std::memcpy(local->sun_path, url.path.c_str(), std::min(url.path.size(), sizeof local->sun_path - 1));
        result.length = sizeof *local;
        return true;
    }
    auto *v4 = reinterpret_cast<sockaddr_in *>(&result.address);
    auto *v6 = reinterpret_cast<sockaddr_in6 *>(&result.address);
    auto port = htons(static_cast<std::uint16_t>(url.port));
    if (inet_pton(AF_INET, url.host.c_str(), &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = port;
        result.length = sizeof *v4;
        return true;
    }
    if (inet_pton(AF_INET6, url.host.c_str(), &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = port;
        result.length = sizeof *v6;
        return true;
    }
    return false;
}

void channel::fail(const char *reason) noexcept {
    std::snprintf(error_, sizeof error_, "%s", reason);
    tls_.reset();
    if (fd_ >= 0)
        ::close(fd_);
    fd_ = -1;
    phase_ = phase::failed;
}

void channel::close() noexcept {
    tls_.reset();
    if (fd_ >= 0)
        ::close(fd_);
    fd_ = -1;
    out_.clear();
    written_ = 0;
    phase_ = phase::closed;
}

void channel::open(const redis_url &url, const socket_address &address) noexcept {
    close();
    url_ = url;
    reached_ = false;
    error_[0] = '\0';
    fd_ = ::socket(address.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd_ < 0)
        return fail(std::strerror(errno));
    if (address.address.ss_family != AF_UNIX) {
        int on = 1;
        setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd_, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
    if (::connect(fd_, reinterpret_cast<const sockaddr *>(&address.address), address.length) == 0)
        connected();
    else if (errno == EINPROGRESS)
        phase_ = phase::connecting;
    else // EAGAIN too: the backlog of a unix socket is full, and waiting on this socket would not tell when it is not
        fail(std::strerror(errno));
}

void channel::connected() noexcept {
    reached_ = true;
    if (!url_.tls) {
        phase_ = phase::ready;
        return;
    }
    tls_ = std::make_unique<tls_session>();
    if (!tls_->begin(fd_, url_.host, url_.files))
        return fail(tls_->error().c_str());
    phase_ = phase::shaking_hands;
    shake_hands();
}

void channel::shake_hands() noexcept {
    switch (tls_->shake_hands()) {
    case tls_session::step::done:
        phase_ = phase::ready;
        break;
    case tls_session::step::failed:
        fail(tls_->error().c_str());
        break;
    case tls_session::step::again:
        break;
    }
}

void channel::advance() noexcept {
    if (phase_ == phase::shaking_hands)
        return shake_hands();
    if (phase_ != phase::connecting)
        return;
    pollfd connecting = {fd_, POLLOUT, 0};
    if (::poll(&connecting, 1, 0) <= 0)
        return;
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error == 0)
        connected();
    else
        fail(std::strerror(error));
}

bool channel::wants_write() const noexcept {
    if (tls_)
        return tls_->wants_write();
    return phase_ == phase::connecting || (phase_ == phase::ready && !all_sent());
}

std::uint64_t channel::traffic() const noexcept {
    if (!ready())
        return 0; // the time to connect is one, however slowly a handshake goes on
    int queued = 0; // in the socket's own buffer
    if (ioctl(fd_, SIOCOUTQ, &queued) != 0)
        queued = 0;
    return traffic_ - static_cast<std::uint64_t>(std::max(queued, 0));
}

void channel::send(std::string &bytes) noexcept {
    if (all_sent()) {
        out_.clear();
        written_ = 0;
        out_.swap(bytes);
    } else {
        out_.append(bytes);
        bytes.clear();
    }
}

std::string &channel::outgoing() noexcept {
    if (written_ > 0 && written_ * 2 >= out_.size()) {
        out_.erase(0, written_);
        written_ = 0;
    }
    return out_;
}

#ifdef OUTBOX_CRASH_POINTS
constexpr std::size_t write_at_once = 1000; // so that there is a moment between two parts of a chunk
#else
constexpr std::size_t write_at_once = SIZE_MAX;
#endif

void channel::flush() noexcept {
    while (phase_ == phase::ready && written_ < out_.size()) {
        const char *next = out_.data() + written_;
        std::size_t size = std::min(out_.size() - written_, write_at_once);
        ssize_t count = tls_ ? tls_->write(next, size) : ::send(fd_, next, size, MSG_NOSIGNAL);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            // The other side has closed: what it said before that is the reason, and read() finds it, and the end.
            if (!tls_ && (errno == EPIPE || errno == ECONNRESET))
                written_ = out_.size();
            else if (errno != EAGAIN && errno != EWOULDBLOCK)
                fail(tls_ ? tls_->error().c_str() : std::strerror(errno));
            return;
        }
        written_ += static_cast<std::size_t>(count);
        traffic_ += static_cast<std::uint64_t>(count);
        OUTBOX_CRASH_POINT(written_ < out_.size() ? "chunk_half_written" : "");
    }
}

std::size_t channel::read(char *buffer, std::size_t size) noexcept {
    while (phase_ == phase::ready) {
        ssize_t count = tls_ ? tls_->read(buffer, size) : ::recv(fd_, buffer, size, 0);
        if (count > 0) {
            traffic_ += static_cast<std::uint64_t>(count);
            return static_cast<std::size_t>(count);
        }
        if (count == 0) {
            fail("server closed the connection");
        } else if (errno != EINTR) {
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                fail(tls_ ? tls_->error().c_str() : std::strerror(errno));
            else if (tls_ && tls_->write_wants_read())
                flush(); // what it waited for may have come
            break;
        }
    }
    return 0;
}

} // namespace outbox

#include "bgworker/redis.hpp"

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/crash_point.hpp"

namespace outbox {

// More than any reply of ours: whoever sends this is no Redis, or none that we can afford to listen to.
constexpr std::size_t max_unread = 256 * 1024 * 1024;
constexpr std::size_t max_line = 64 * 1024;

void redis_connection::fail(const char *reason) noexcept {
    std::snprintf(error_, sizeof error_, "%s", reason);
    if (fd_ >= 0)
        ::close(fd_);
    fd_ = -1;
    phase_ = phase::failed;
}

void redis_connection::fail_errno(int error) noexcept { fail(std::strerror(error)); }

void redis_connection::close() noexcept {
    resolver_.cancel();
    if (fd_ >= 0)
        ::close(fd_);
    fd_ = -1;
    if (reader_)
        redisReaderFree(reader_);
    reader_ = nullptr;
    in_.clear();
    out_.clear();
    written_ = 0;
    phase_ = phase::closed;
}

static bool numeric_address(const redis_url &url, socket_address &result) noexcept {
    result = {};
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

// More than any reply of ours has. hiredis makes room for as many elements as a server announces, before they come.
constexpr std::size_t max_elements = 100000;

#if HIREDIS_MAJOR >= 1
using element_count = std::size_t;
#else
using element_count = int;
#endif

static void *(*create_array)(const redisReadTask *, element_count) = nullptr;

static void *create_bounded_array(const redisReadTask *task, element_count elements) {
    return static_cast<std::size_t>(elements) > max_elements ? nullptr : create_array(task, elements);
}

static redisReader *create_reader() noexcept {
    redisReader *reader = redisReaderCreate();
    if (!reader)
        return nullptr;
    static redisReplyObjectFunctions functions = *reader->fn;
    if (!create_array) {
        create_array = functions.createArray;
        functions.createArray = create_bounded_array;
    }
    reader->fn = &functions;
    return reader;
}

void redis_connection::open(const redis_url &url) noexcept {
    close();
    url_ = url;
    addresses_.clear();
    address_ = 0;
    error_[0] = '\0';
    reader_ = create_reader();
    if (!reader_)
        return fail("out of memory");

    socket_address address = {};
    if (!url.path.empty()) {
        auto *local = reinterpret_cast<sockaddr_un *>(&address.address);
        local->sun_family = AF_UNIX;
        std::memcpy(local->sun_path, url.path.c_str(), std::min(url.path.size(), sizeof local->sun_path - 1));
        address.length = sizeof *local;
        addresses_.push_back(address);
    } else if (numeric_address(url, address)) {
        addresses_.push_back(address);
    } else {
        phase_ = phase::resolving;
        resolver_.start(url.host, url.port);
        return pump();
    }
    connect_next();
}

void redis_connection::connect_next() noexcept {
    if (fd_ >= 0)
        ::close(fd_);
    fd_ = -1;
    if (address_ >= addresses_.size())
        return fail(error_[0] ? std::string(error_).c_str() : "no address found");
    const auto &address = addresses_[address_++];
    fd_ = ::socket(address.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd_ < 0)
        return fail_errno(errno);
    if (address.address.ss_family != AF_UNIX) {
        int on = 1;
        setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd_, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
    if (::connect(fd_, reinterpret_cast<const sockaddr *>(&address.address), address.length) == 0) {
        phase_ = phase::ready;
    } else if (errno == EINPROGRESS) {
        phase_ = phase::connecting;
    } else { // EAGAIN too: the backlog of a unix socket is full, and waiting on this socket would not tell when it is not
        std::snprintf(error_, sizeof error_, "%s", std::strerror(errno));
        connect_next();
    }
}

std::uint64_t redis_connection::traffic() const noexcept {
    int queued = 0; // in the socket's own buffer
    if (fd_ >= 0 && ioctl(fd_, SIOCOUTQ, &queued) != 0)
        queued = 0;
    return traffic_ - static_cast<std::uint64_t>(std::max(queued, 0));
}

int redis_connection::fd() const noexcept { return phase_ == phase::resolving ? -1 : fd_; }

bool redis_connection::wants_write() const noexcept {
    return phase_ == phase::connecting || (phase_ == phase::ready && !all_sent());
}

void redis_connection::pump() noexcept {
    if (phase_ == phase::resolving) {
        resolver_.pump();
        if (!resolver_.done())
            return;
        if (!resolver_.error().empty())
            return fail(("could not look up host: " + resolver_.error()).c_str());
        addresses_ = resolver_.addresses();
        connect_next();
    }
    if (phase_ == phase::connecting) {
        pollfd ready = {fd_, POLLOUT, 0};
        if (::poll(&ready, 1, 0) <= 0)
            return;
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error == 0) {
            phase_ = phase::ready;
        } else {
            std::snprintf(error_, sizeof error_, "%s", std::strerror(error));
            connect_next();
        }
    }
    if (phase_ == phase::ready)
        write_some();
    if (phase_ == phase::ready)
        read_some();
}

void redis_connection::send(std::string &commands) noexcept {
    if (all_sent()) {
        out_.clear();
        written_ = 0;
        out_.swap(commands);
    } else {
        out_.append(commands);
        commands.clear();
    }
    if (ready())
        write_some();
}

#ifdef OUTBOX_CRASH_POINTS
constexpr std::size_t write_at_once = 1000; // so that there is a moment between two parts of a chunk
#else
constexpr std::size_t write_at_once = SIZE_MAX;
#endif

void redis_connection::write_some() noexcept {
    while (written_ < out_.size()) {
        ssize_t count = ::send(fd_, out_.data() + written_, std::min(out_.size() - written_, write_at_once), MSG_NOSIGNAL);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                fail_errno(errno);
            return;
        }
        written_ += static_cast<std::size_t>(count);
        traffic_ += static_cast<std::uint64_t>(count);
        OUTBOX_CRASH_POINT(written_ < out_.size() ? "chunk_half_written" : "");
    }
}

void redis_connection::read_some() noexcept {
    char buffer[65536];
    for (;;) {
        ssize_t count = ::recv(fd_, buffer, sizeof buffer, 0);
        if (count > 0) {
            traffic_ += static_cast<std::uint64_t>(count);
            in_.append(buffer, static_cast<std::size_t>(count));
            if (in_.size() > max_unread)
                return fail("the reply is too large");
            if (static_cast<std::size_t>(count) < sizeof buffer)
                return;
            continue;
        }
        if (count == 0)
            return fail("server closed the connection");
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            fail_errno(errno);
        return;
    }
}

redis_connection::answer redis_connection::take(std::string_view expected) noexcept {
    if (!reader_ || reader_->pos < reader_->len)
        return answer::differs; // part of a reply is with the reader
    std::size_t common = std::min(in_.size(), expected.size());
    if (std::memcmp(in_.data(), expected.data(), common) != 0)
        return answer::differs;
    if (common < expected.size())
        return answer::incomplete;
    in_.erase(0, common);
    return answer::equals;
}

bool redis_connection::feed() noexcept {
    constexpr std::size_t step = 16384;
    for (std::size_t from = 0; from < in_.size(); from += step) {
        std::size_t size = std::min(step, in_.size() - from);
        if (redisReaderFeed(reader_, in_.data() + from, size) != REDIS_OK) {
            fail(std::string(reader_->errstr).c_str());
            return false;
        }
    }
    in_.clear();
    if (reader_->len > max_unread) {
        fail("the reply is too large");
        return false;
    }
    // Whatever comes next begins with a short line. hiredis would look for its end from the start each time.
    if (reader_->len - reader_->pos > max_line && !std::memchr(reader_->buf + reader_->pos, '\r', max_line)) {
        fail("protocol error: a line without an end");
        return false;
    }
    return true;
}

reply_pointer redis_connection::next_reply() noexcept {
    if (!reader_ || !(ready() || failed()))
        return nullptr;
    if (!in_.empty() && !feed())
        return nullptr;
    void *reply = nullptr;
    if (redisReaderGetReply(reader_, &reply) != REDIS_OK) {
        // Bytes that are no Redis protocol: another server, or a corrupted stream.
        fail(reader_->errstr[0] ? std::string(reader_->errstr).c_str() : "protocol error");
        return nullptr;
    }
    return reply_pointer(static_cast<redisReply *>(reply));
}

} // namespace outbox

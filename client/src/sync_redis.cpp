// A channel that is waited for, errors as exceptions.
#include "src/sync_redis.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <netdb.h>
#include <poll.h>

#include "common/resp.hpp"
#include "common/sentinel.hpp"
#include "src/reply.hpp"
#include "src/text.hpp"

namespace outbox::detail {

constexpr std::string_view connecting = "could not connect to";

static std::string code_of(std::string_view error) { return std::string(error.substr(0, error.find(' '))); }

sync_redis::sync_redis(redis_url url, std::chrono::milliseconds timeout)
    : url_(std::move(url)), target_(url_), timeout_(timeout) {}

void sync_redis::close() noexcept {
    channel_.close();
    reader_.reset();
}

void sync_redis::fail(std::string_view doing, std::string_view why) {
    auto message = std::string(doing).append(" Redis at \"").append(target_.endpoint()).append("\": ").append(printable(why, 300));
    if (why.find("TLS: ") != why.npos)
        message.append(" (").append(tls_hint(why)).append(")");
    close();
    throw connection_error(message);
}

// What is late may still come, and would be taken for the answer to the next command.
void sync_redis::fail_late(std::string_view doing) {
    std::string during = channel_.is_shaking_hands() ? "TLS: the handshake timed out, " : "";
    auto message = std::string(doing).append(" Redis at \"").append(target_.endpoint()).append("\": ").append(during);
    message.append("no answer within ").append(std::to_string(timeout_.count())).append(" ms");
    close();
    throw timeout_error(message);
}

// Until the socket has something to tell.
void sync_redis::wait(clock::time_point deadline, std::string_view doing) {
    for (;;) {
        auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - clock::now()).count();
        if (left <= 0)
            fail_late(doing);
        pollfd socket{channel_.fd(), static_cast<short>(POLLIN | (channel_.wants_write() ? POLLOUT : 0)), 0};
        int ready = ::poll(&socket, 1, static_cast<int>(std::min<decltype(left)>(left, 1000 * 1000)));
        if (ready > 0)
            return;
        if (ready < 0 && errno != EINTR)
            fail(doing, std::strerror(errno));
    }
}

static std::vector<socket_address> addresses_of(const redis_url &url, std::string &why) {
    std::vector<socket_address> result(1);
    if (address_of(url, result[0]))
        return result;
    result.clear();
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_family = AF_UNSPEC;
    if (int status = getaddrinfo(url.host.c_str(), std::to_string(url.port).c_str(), &hints, &found); status != 0) {
        why = std::string("the host name could not be resolved: ") + gai_strerror(status);
        return result;
    }
    for (const addrinfo *one = found; one != nullptr; one = one->ai_next) {
        socket_address address{};
        std::memcpy(&address.address, one->ai_addr, one->ai_addrlen);
        address.length = one->ai_addrlen;
        result.push_back(address);
    }
    freeaddrinfo(found);
    return result;
}

void sync_redis::connect_to(redis_url target) {
    target_ = std::move(target);
    reader_.reset(redisReaderCreate());
    if (!reader_)
        throw std::bad_alloc();
    std::string why = "no address found";
    for (const socket_address &address : addresses_of(target_, why)) {
        auto deadline = clock::now() + timeout_;
        channel_.open(target_, address);
        while (!channel_.ready() && !channel_.failed()) {
            wait(deadline, connecting);
            channel_.advance();
        }
        if (channel_.ready()) {
            if (!target_.user.empty())
                command({"AUTH", target_.user, target_.password});
            else if (!target_.password.empty())
                command({"AUTH", target_.password});
            return;
        }
        why = channel_.error();
        if (!channel_.was_unreachable())
            break;
    }
    fail(connecting, why);
}

// Each sentinel in turn, first the one that answered last.
bool sync_redis::find_master(redis_url &master, std::string &why) {
    for (std::size_t i = 0; i < url_.sentinels.size(); ++i) {
        std::size_t index = (sentinel_ + i) % url_.sentinels.size();
        std::string reason;
        bool reached = true;
        try {
            connect_to(url_.at_sentinel(index));
            redis_url::server server;
            auto named = command({"SENTINEL", "GET-MASTER-ADDR-BY-NAME", url_.master});
            if (read_master_address(*named, server, reason)) {
                close();
                sentinel_ = index;
                master = url_.at_master(std::move(server));
                return true;
            }
        } catch (const reply_error &failure) {
            reason = failure.what();
        } catch (const error &failure) {
            reached = false;
            reason = failure.what();
        }
        close();
        // what one had to say, before that others cannot be reached
        if (why.empty() || reached)
            why = reached ? "sentinel at \"" + url_.at_sentinel(index).endpoint() + "\": " + reason : reason;
    }
    return false;
}

void sync_redis::connect() {
    try {
        redis_url server = url_;
        std::string why;
        if (!url_.sentinels.empty() && !find_master(server, why)) {
            target_ = url_;
            fail(connecting, why);
        }
        connect_to(std::move(server));
        if (!url_.sentinels.empty() && !is_master(*command({"ROLE"}), why))
            fail(connecting, why);
        if (target_.database != 0)
            command({"SELECT", std::to_string(target_.database)});
    } catch (const reply_error &) {
        close(); // the next call must not find it half logged in
        throw;
    }
}

sync_redis::reply sync_redis::receive(std::string_view doing) {
    auto deadline = clock::now() + timeout_;
    for (;;) {
        void *result = nullptr;
        if (redisReaderGetReply(reader_.get(), &result) != REDIS_OK)
            fail(doing, reader_->errstr);
        if (result != nullptr)
            return reply(static_cast<redisReply *>(result));
        channel_.flush();
        char buffer[16384];
        if (std::size_t count = channel_.read(buffer, sizeof buffer)) {
            deadline = clock::now() + timeout_;
            if (redisReaderFeed(reader_.get(), buffer, count) != REDIS_OK)
                fail(doing, reader_->errstr);
        } else if (channel_.failed()) {
            fail(doing, channel_.error());
        } else {
            wait(deadline, doing);
        }
    }
}

std::vector<sync_redis::reply> sync_redis::pipeline(std::span<const words> commands) {
    if (!reader_)
        connect();
    std::string &out = channel_.outgoing();
    for (const auto &command : commands) {
        resp::command(out, command.size());
        for (auto word : command)
            resp::argument(out, word);
    }
    std::vector<reply> replies;
    for (std::size_t i = 0; i < commands.size(); ++i)
        replies.push_back(receive("lost the connection to"));
    for (const auto &one : replies)
        if (one->type == REDIS_REPLY_ERROR)
            throw reply_error(printable(text(*one)), code_of(text(*one)));
    return replies;
}

sync_redis::reply sync_redis::command(const words &command) {
    return std::move(pipeline(std::span(&command, 1)).front());
}

sync_redis::reply sync_redis::run(const script &script, std::initializer_list<std::string_view> keys,
                                  std::initializer_list<std::string_view> arguments) {
    auto count = std::to_string(keys.size());
    words all{"EVALSHA", script.sha, count};
    all.insert(all.end(), keys);
    all.insert(all.end(), arguments);
    try {
        return command(all);
    } catch (const reply_error &error) {
        if (error.code() != "NOSCRIPT")
            throw;
    }
    all[0] = "EVAL";
    all[1] = script.text;
    return command(all);
}

} // namespace outbox::detail

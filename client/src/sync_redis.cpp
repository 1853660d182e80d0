// Blocking hiredis, with what it lacks: credentials, errors as exceptions, no SIGPIPE.
#include "src/sync_redis.hpp"

#include <cerrno>
#include <utility>

#include <sys/time.h>

#include "src/reply.hpp"
#include "src/signals.hpp"
#include "src/text.hpp"

namespace outbox::detail {

static std::string code_of(std::string_view error) { return std::string(error.substr(0, error.find(' '))); }

sync_redis::sync_redis(redis_url url, std::chrono::milliseconds timeout) : url_(std::move(url)), timeout_(timeout) {}

void sync_redis::fail(std::string_view doing) {
    bool late = context_ && context_->err == REDIS_ERR_IO && (errno == EAGAIN || errno == ETIMEDOUT);
#ifdef REDIS_ERR_TIMEOUT
    late = late || (context_ && context_->err == REDIS_ERR_TIMEOUT);
#endif
    auto message = std::string(doing).append(" Redis at \"").append(url_.endpoint()).append("\": ");
    if (late)
        message.append("no answer within ").append(std::to_string(timeout_.count())).append(" ms");
    else
        message.append(context_ ? context_->errstr : "out of memory");
    // What is late may still come, and would be taken for the answer to the next command.
    context_.reset();
    if (late)
        throw timeout_error(message);
    throw connection_error(message);
}

void sync_redis::connect() {
    constexpr std::string_view doing = "could not connect to";
    auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout_);
    auto microseconds = std::chrono::microseconds(timeout_ - seconds);
    timeval timeout{};
    timeout.tv_sec = static_cast<decltype(timeout.tv_sec)>(seconds.count());
    timeout.tv_usec = static_cast<decltype(timeout.tv_usec)>(microseconds.count());

    errno = 0;
    context_.reset(url_.path.empty() ? redisConnectWithTimeout(url_.host.c_str(), url_.port, timeout)
                                     : redisConnectUnixWithTimeout(url_.path.c_str(), timeout));
    if (!context_ || context_->err != 0 || redisSetTimeout(context_.get(), timeout) != REDIS_OK)
        fail(doing);

    try {
        if (!url_.password.empty() && url_.user.empty())
            command({"AUTH", url_.password});
        else if (!url_.user.empty())
            command({"AUTH", url_.user, url_.password});
        if (url_.database != 0)
            command({"SELECT", std::to_string(url_.database)});
    } catch (const reply_error &) {
        context_.reset(); // the next call must not find it half logged in
        throw;
    }
}

void sync_redis::send(const words &command) {
    std::vector<const char *> texts;
    std::vector<std::size_t> sizes;
    for (auto word : command) {
        texts.push_back(word.data());
        sizes.push_back(word.size());
    }
    if (redisAppendCommandArgv(context_.get(), static_cast<int>(command.size()), texts.data(), sizes.data()) != REDIS_OK)
        fail("could not write to");
}

sync_redis::reply sync_redis::receive() {
    no_sigpipe guard;
    void *result = nullptr;
    errno = 0;
    if (redisGetReply(context_.get(), &result) != REDIS_OK)
        fail("lost the connection to");
    return reply(static_cast<redisReply *>(result));
}

std::vector<sync_redis::reply> sync_redis::pipeline(std::span<const words> commands) {
    if (!context_)
        connect();
    for (const auto &command : commands)
        send(command);
    std::vector<reply> replies;
    for (std::size_t i = 0; i < commands.size(); ++i)
        replies.push_back(receive());
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

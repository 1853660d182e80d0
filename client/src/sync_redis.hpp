// A connection to Redis for callers that wait: one command or script at a time.
#pragma once

#include <chrono>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hiredis/hiredis.h>

#include <outbox/error.hpp>

#include "common/channel.hpp"
#include "common/url.hpp"
#include "src/scripts.hpp"

namespace outbox::detail {

class sync_redis {
  public:
    struct free_reply {
        void operator()(redisReply *reply) const noexcept { freeReplyObject(reply); }
    };
    using reply = std::unique_ptr<redisReply, free_reply>;
    using words = std::vector<std::string_view>;

    // Connects at the first call, to the server or to the one that a sentinel names, and anew after a connection_error. The
    // timeout is that of each step: connecting, logging in, waiting for a reply.
    sync_redis(redis_url url, std::chrono::milliseconds timeout);

    // All of these throw connection_error, timeout_error and reply_error.
    reply command(const words &command);
    reply run(const script &script, std::initializer_list<std::string_view> keys,
              std::initializer_list<std::string_view> arguments);

    // Sends them all, then waits for all replies.
    std::vector<reply> pipeline(std::span<const words> commands);

  private:
    struct free_reader {
        void operator()(redisReader *reader) const noexcept { redisReaderFree(reader); }
    };
    using clock = std::chrono::steady_clock;

    void connect();
    void connect_to(redis_url target);
    bool find_master(redis_url &master, std::string &why);
    void wait(clock::time_point deadline, std::string_view doing);
    void close() noexcept;
    reply receive(std::string_view doing);
    [[noreturn]] void fail(std::string_view doing, std::string_view why);
    [[noreturn]] void fail_late(std::string_view doing);

    redis_url url_, target_;
    std::size_t sentinel_ = 0; // that answered last
    std::chrono::milliseconds timeout_;
    channel channel_;
    std::unique_ptr<redisReader, free_reader> reader_;
};

} // namespace outbox::detail

// The Redis that the sink appends to: where it is, and what it answers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/url.hpp"
#include "src/entry_id.hpp"
#include "src/reply.hpp"
#include "src/sync_redis.hpp"

namespace outbox::ctl {

class database;
struct options;

struct redis_address {
    redis_url url;
    std::string source; // where it was found, for messages

    // The whole URL, with the password: for the client library, never to be shown.
    std::string secret_text() const;
    // Without the password.
    std::string shown() const;
};

// --redis, else OUTBOX_REDIS_URL, else what outbox.sink shows of the sink. The password, where it is not in the
// environment's URL: from --redis-password-file, OUTBOX_REDIS_PASSWORD_FILE, OUTBOX_REDIS_PASSWORD, or the sink's own file,
// if this role may know it and this user may read it. Throws failure, also if a password is on the command line.
redis_address find_redis(const options &common, const std::function<database &()> &ask);

// A connection that connects at its first command. Everything throws connection_error, timeout_error and reply_error.
class redis {
  public:
    using reply = detail::sync_redis::reply;
    using words = detail::sync_redis::words;

    explicit redis(const redis_address &address) : connection_(address.url, std::chrono::seconds(5)) {}

    reply command(const words &command) { return connection_.command(command); }
    std::vector<reply> pipeline(const std::vector<words> &commands) { return connection_.pipeline(commands); }

    // Nothing if the reply is an error whose message begins with one of these words; other errors are thrown.
    reply unless(std::initializer_list<std::string_view> errors, const words &command);

    std::chrono::sys_time<std::chrono::microseconds> time();

    // Keys of streams that match a pattern, sorted.
    std::vector<std::string> streams(std::string_view pattern);

    // The names of INFO, all sections.
    std::vector<std::pair<std::string, std::string>> info();

  private:
    detail::sync_redis connection_;
};

// A value by its name in a reply of names and values, as XINFO gives them; null if it is not there.
const redisReply *named(const redisReply &reply, std::string_view name) noexcept;
std::optional<std::int64_t> number(const redisReply &reply, std::string_view name) noexcept;
std::string text(const redisReply &reply, std::string_view name);

// "wallet" of "outbox:{wallet}"; empty if the key is no stream of events.
std::string topic_of(std::string_view key);

// Throws failure if it is none.
void require_topic(std::string_view topic);

} // namespace outbox::ctl

// What tests of the consumer share: consumers that run in a thread, entries as the outbox writes them, and notes of what was
// handled.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <outbox/outbox.hpp>

#include "redis_server.hpp"
#include "servers.hpp"

namespace outbox::test {

using namespace std::chrono_literals;

// Options that notice quickly what takes its time in a service. But for leases and timeouts, which would be over as well when
// the machine stands still for a moment: a test that is about them has shorter ones of its own.
inline consumer_options quick_options(const redis_server &redis, std::string group = "billing") {
    consumer_options options;
    options.redis_url = redis.url();
    options.group = std::move(group);
    options.claim_idle = 30s;
    options.block = 50ms;
    options.retry = {.max_attempts = 3, .initial = 10ms, .max = 50ms, .multiplier = 2, .jitter = 0.1};
    options.reconnect_min = 20ms;
    options.reconnect_max = 200ms;
    options.response_timeout = options.connect_timeout = 30s;
    options.handle_signals = false;
    return options;
}

// An event's id, the same for the same number.
inline std::string event_id(std::uint64_t number) {
    char text[48]; // more than it takes, for compilers that reckon with every number
    std::snprintf(text, sizeof text, "01900000-0000-7000-8000-%012llx", static_cast<unsigned long long>(number));
    return text;
}

// An entry as the outbox writes it.
struct entry {
    std::string id = event_id(1);
    std::string type = "wallet.created";
    std::string aggregate_type = "wallet";
    std::string aggregate_id;
    std::string version = "1";
    std::string headers;
    std::string payload = "{}";
};

// Appends it to the topic's stream (by default that of its type), under the position or the next one; answers the position.
inline std::string append(redis_server &redis, const entry &entry, const std::string &position = "*", std::string topic = {}) {
    if (topic.empty())
        topic = entry.type.substr(0, entry.type.find('.'));
    redis_reply reply = redis.command({"XADD", "outbox:{" + topic + "}", position, "event_id", entry.id, "event_type", entry.type,
                                       "aggregate_type", entry.aggregate_type, "aggregate_id", entry.aggregate_id, "version",
                                       entry.version, "occurred_at", "2026-11-21T08:55:15.964060Z", "headers", entry.headers,
                                       "payload", entry.payload});
    if (reply->type != REDIS_REPLY_STRING && reply->type != REDIS_REPLY_STATUS)
        throw std::runtime_error("XADD: " + std::string(reply->str != nullptr ? reply->str : "no answer"));
    return reply->str;
}

// So many events, one after the other, spread over so many aggregates; event n is event_id(n) with the payload {"n": n}.
inline void append_many(redis_server &redis, std::uint64_t first, std::uint64_t count, std::uint64_t aggregates) {
    for (std::uint64_t n = first; n < first + count; ++n)
        append(redis, {.id = event_id(n),
                       .aggregate_id = aggregates == 0 ? "" : std::to_string(n % aggregates),
                       .payload = "{\"n\": " + std::to_string(n) + "}"});
}

// What handlers saw, in the order in which they began; from any thread.
class notes {
  public:
    void take(std::string what) {
        std::lock_guard guard(lock_);
        taken_.push_back(std::move(what));
    }
    std::vector<std::string> all() const {
        std::lock_guard guard(lock_);
        return taken_;
    }
    std::size_t count() const {
        std::lock_guard guard(lock_);
        return taken_.size();
    }
    std::size_t count(std::string_view what) const {
        std::lock_guard guard(lock_);
        return static_cast<std::size_t>(std::count(taken_.begin(), taken_.end(), what));
    }
    bool contain(std::string_view words) const {
        std::lock_guard guard(lock_);
        return std::any_of(taken_.begin(), taken_.end(),
                           [words](const std::string &note) { return note.find(words) != std::string::npos; });
    }

  private:
    mutable std::mutex lock_;
    std::vector<std::string> taken_;
};

// Handlers wait here until it is opened; at the latest when the test is over.
class gate {
  public:
    ~gate() { open(); }
    void pass() {
        std::unique_lock guard(lock_);
        ++waiting_;
        opened_.wait_for(guard, 60s, [this] { return open_; });
        --waiting_;
    }
    void open() {
        std::lock_guard guard(lock_);
        open_ = true;
        opened_.notify_all();
    }
    int waiting() const {
        std::lock_guard guard(lock_);
        return waiting_;
    }

  private:
    mutable std::mutex lock_;
    std::condition_variable opened_;
    bool open_ = false;
    int waiting_ = 0;
};

// A consumer that runs in a thread until it is stopped, or goes out of scope. Its log is kept.
class running_consumer {
  public:
    // `set_up` registers the handlers.
    template <typename F> running_consumer(consumer_options options, F set_up) {
        options.log = [log = log_](log_level level, std::string_view message) {
            log->take(std::string(to_string(level)) + ": " + std::string(message));
        };
        consumer_ = std::make_unique<consumer>(std::move(options));
        set_up(*consumer_);
        thread_ = std::thread([this] { clean_ = consumer_->run(); });
    }
    ~running_consumer() { stop(); }

    // Whether every handler ended in time.
    bool stop() {
        if (thread_.joinable()) {
            consumer_->stop();
            thread_.join();
        }
        return clean_;
    }

    consumer *operator->() { return consumer_.get(); }
    const notes &log() const { return *log_; }

  private:
    std::shared_ptr<notes> log_ = std::make_shared<notes>();
    std::unique_ptr<consumer> consumer_;
    std::thread thread_;
    bool clean_ = false;
};

// The summary of XPENDING: how many entries the group has been given and not acknowledged. -1 if there is no such group.
inline long long pending(redis_server &redis, const std::string &stream, const std::string &group) {
    redis_reply reply = redis.command({"XPENDING", stream, group});
    return reply->type == REDIS_REPLY_ARRAY ? reply->element[0]->integer : -1;
}

// Whether the group has been given the whole stream, and has acknowledged it. In this order: while something is yet to be
// read, nothing may be pending either.
inline bool is_through(redis_server &redis, const std::string &stream, const std::string &group) {
    auto field = [](const redisReply &map, std::string_view name) -> std::string {
        for (std::size_t i = 0; i + 1 < map.elements; i += 2)
            if (map.element[i]->str == name && map.element[i + 1]->str != nullptr)
                return map.element[i + 1]->str;
        return {};
    };
    redis_reply about = redis.command({"XINFO", "STREAM", stream}), groups = redis.command({"XINFO", "GROUPS", stream});
    for (std::size_t i = 0; groups->type == REDIS_REPLY_ARRAY && i < groups->elements; ++i)
        if (field(*groups->element[i], "name") == group)
            return field(*groups->element[i], "last-delivered-id") == field(*about, "last-generated-id") &&
                   pending(redis, stream, group) == 0;
    return false;
}

// The names of the group's consumers on the stream.
inline std::vector<std::string> names(redis_server &redis, const std::string &stream, const std::string &group) {
    redis_reply reply = redis.command({"XINFO", "CONSUMERS", stream, group});
    std::vector<std::string> all;
    for (std::size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; ++i)
        all.emplace_back(reply->element[i]->element[1]->str);
    return all;
}

// How often the server has executed the command, also in scripts: "xgroup|create".
inline long long executed(redis_server &redis, const std::string &command) {
    redis_reply reply = redis.command({"INFO", "commandstats"});
    std::string stats(reply->str, reply->len), name = "\r\ncmdstat_" + command + ":calls=";
    auto at = stats.find(name);
    return at == stats.npos ? 0 : std::stoll(stats.substr(at + name.size()));
}

} // namespace outbox::test

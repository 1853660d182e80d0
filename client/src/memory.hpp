// What the in-memory broker has in place of Redis: streams, and what a group keeps about a topic. A group_topic does what
// the scripts do (src/scripts.hpp), by the same names; leases and dead processes have no place here.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <hiredis/hiredis.h>

#include <outbox/consumer.hpp>
#include <outbox/dead_letter.hpp>

#include "src/engine.hpp"
#include "src/keys.hpp"
#include "src/scripts.hpp"

namespace outbox::detail::memory {

using time = std::chrono::sys_time<std::chrono::milliseconds>;
using field_list = std::vector<std::pair<std::string, std::string>>;

struct clock {
    static constexpr time start = std::chrono::sys_days(std::chrono::year(2000) / 1 / 1);
    time now = start;
    entry_id last;

    // Above all before it, whatever their stream: so entries are in one order, that in which they came.
    entry_id next_id() noexcept;
};

// An entry, which never changes, and the reply that Redis would bring it in. Events are views of it.
class entry {
  public:
    entry(std::string_view topic, entry_id id, field_list fields);
    entry(const entry &) = delete;
    entry &operator=(const entry &) = delete;

    const std::string topic, id;
    const field_list fields;
    const redisReply &reply() const noexcept { return reply_; }

  private:
    std::vector<redisReply> texts_;
    std::vector<redisReply *> elements_;
    redisReply reply_{};
};

using entries = std::map<entry_id, std::shared_ptr<const entry>>;

class group_topic;

// A stream as a group reads it; a delivery's `stream` is one.
struct source : stream {
    memory::group_topic *group_topic;
    memory::entries *entries;
    entry_id delivered; // up to here

    struct claim {
        const void *owner; // a consumer; null once it has given it back
        std::uint64_t aggregate;
        int attempts;
    };
    std::map<entry_id, claim> pending;
};

inline source &source_of(const delivery &one) noexcept { return static_cast<source &>(*one.stream); }

class group_topic {
  public:
    group_topic(std::string_view topic, std::string_view group, memory::entries &stream, memory::clock &clock, entry_id start);
    group_topic(const group_topic &) = delete;
    group_topic &operator=(const group_topic &) = delete;

    source main, redriven;

    begin_verdict begin(const delivery &one, const void *owner, const consumer_options &options);
    void finish(const delivery &one, const consumer_options &options);
    // False if it is not the owner's.
    bool bury(const delivery &one, const void *owner, const consumer_options &options);
    bool redrive(entry_id id);
    bool discard(entry_id id);

    std::vector<dead_letter> dead() const;
    std::size_t unfinished() const;

  private:
    // In place of the idempotency key.
    struct event_mark {
        std::optional<time> done_until; // else it is a lease
        entry_id holder;
    };
    // In place of a field of the parked hash: "dead <first>" or "draining <first> <last>".
    struct standing {
        bool dead;
        entry_id first, last;
    };
    struct buried {
        dead_letter letter;
        std::string aggregate;
    };

    const standing *obstacle(const std::string &aggregate);
    bool lease_holds(const event_mark &mark) const;
    void set_aside(const delivery &one, const std::string &aggregate);
    entry_id append_redriven(field_list fields);
    void release(const std::string &aggregate, std::optional<entry_id> first);
    void leave(source &source, entry_id id); // acknowledged
    bool is_parked_behind(const std::string &aggregate, entry_id id) const;

    std::string topic_;
    topic_keys keys_;
    memory::clock &clock_;
    memory::entries redriven_;
    std::map<std::string, event_mark, std::less<>> marks_;   // by event id
    std::map<std::string, standing> parked_;                 // by aggregate
    std::map<std::string, std::vector<field_list>> waiting_; // what is parked, by aggregate
    std::map<entry_id, buried> dead_;
};

// What the processes of a group share across topics.
struct group {
    std::map<std::string, time, std::less<>> inbox; // when events were handled, by id
    double arrival = 0;                             // of the rate limit, in microseconds

    // As the script take_tokens, one at a time.
    bool take_token(time now, double rate) noexcept;
};

} // namespace outbox::detail::memory

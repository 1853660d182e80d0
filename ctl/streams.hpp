// What Redis knows of the streams of events and of their consumer groups.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ctl/postgres.hpp"
#include "ctl/redis.hpp"

namespace outbox::ctl {

struct group_state {
    std::string name;
    std::optional<std::int64_t> lag; // entries not delivered to it; nothing where Redis cannot tell
    std::int64_t pending = 0;
    std::optional<detail::entry_id> oldest_pending;
    std::optional<double> oldest_pending_age;  // seconds since its position, by the clock of Redis
    std::optional<double> oldest_pending_idle; // seconds since it was delivered last, or its lease renewed
    std::int64_t consumers = 0;
    std::int64_t dead_letters = 0; // of the client library
    std::int64_t redriven = 0;     // redriven and not handled yet
    std::string last_delivered;
    std::optional<std::int64_t> entries_read;
};

struct stream_state {
    std::string key, topic;
    std::int64_t length = 0;
    std::string first, last; // IDs; `first` is empty when the stream is, `last` is also that of an entry that is gone
    std::vector<group_state> groups;
};

// The streams of these topics, or all there are. One that is deleted meanwhile is left out.
std::vector<stream_state> survey(redis &redis, const std::vector<std::string> &topics = {});

// Of one stream, without its groups; nothing if it is not there, or something else is in its place.
std::optional<stream_state> look_at(redis &redis, const std::string &topic);

// A row for each group, as the commands show it.
json to_json(const stream_state &stream, const group_state &group);
json to_json(const stream_state &stream);

// One for each stream of dead letters.
struct dead_letter_stream {
    std::string key, topic, group;
    std::int64_t letters = 0;
    std::string oldest; // ID
};
std::vector<dead_letter_stream> dead_letter_streams(redis &redis);

} // namespace outbox::ctl

#include "ctl/streams.hpp"

#include <algorithm>

#include "src/keys.hpp"

namespace outbox::ctl {

static std::string key_of(const std::string &topic) { return "outbox:{" + topic + "}"; }

// The ID of an entry as XINFO STREAM shows it, nil if there is none.
static std::string id_of(const redisReply *entry) {
    if (entry == nullptr || entry->type != REDIS_REPLY_ARRAY || entry->elements == 0)
        return {};
    return std::string(detail::text(*entry->element[0]));
}

std::optional<stream_state> look_at(redis &redis, const std::string &topic) {
    stream_state stream;
    stream.topic = topic;
    stream.key = key_of(topic);
    auto about = redis.unless({"ERR no such key", "WRONGTYPE"}, {"XINFO", "STREAM", stream.key});
    if (!about)
        return std::nullopt;
    stream.length = number(*about, "length").value_or(0);
    stream.last = text(*about, "last-generated-id");
    stream.first = id_of(named(*about, "first-entry"));
    return stream;
}

// Redis counts from 7.0 on, and not where entries were deleted in the middle. Two cases need no count.
static std::optional<std::int64_t> lag_of(const stream_state &stream, const redisReply &row,
                                          const std::string &last_delivered) {
    detail::entry_id delivered, first, last;
    if (detail::parse(last_delivered, delivered) && detail::parse(stream.last, last)) {
        if (stream.length == 0 || delivered >= last)
            return 0;
        if (detail::parse(stream.first, first) && delivered < first)
            return stream.length;
    }
    return number(row, "lag");
}

static std::int64_t length(redis &redis, const std::string &key) { return redis.command({"XLEN", key})->integer; }

static void look_at_pending(redis &redis, const stream_state &stream, group_state &group, std::int64_t now_ms) {
    auto reply = redis.unless({"NOGROUP", "ERR no such key"}, {"XPENDING", stream.key, group.name, "-", "+", "1"});
    std::vector<detail::pending_entry> entries;
    detail::entry_id id;
    if (!reply || !detail::interpret_pending_list(*reply, entries) || entries.empty() || !detail::parse(entries[0].id, id))
        return;
    group.oldest_pending = id;
    group.oldest_pending_age =
        static_cast<double>(std::max<std::int64_t>(0, now_ms - static_cast<std::int64_t>(id.ms))) / 1000;
    group.oldest_pending_idle = static_cast<double>(entries[0].idle) / 1000;
}

static void look_at_groups(redis &redis, stream_state &stream, std::int64_t now_ms) {
    auto rows = redis.unless({"ERR no such key"}, {"XINFO", "GROUPS", stream.key});
    for (std::size_t i = 0; rows && i < rows->elements; ++i) {
        const redisReply &row = *rows->element[i];
        group_state group;
        group.name = text(row, "name");
        group.consumers = number(row, "consumers").value_or(0);
        group.pending = number(row, "pending").value_or(0);
        group.last_delivered = text(row, "last-delivered-id");
        group.entries_read = number(row, "entries-read");
        group.lag = lag_of(stream, row, group.last_delivered);
        if (group.pending > 0)
            look_at_pending(redis, stream, group, now_ms);
        detail::topic_keys keys(stream.topic, group.name);
        group.dead_letters = length(redis, keys.dead);
        group.redriven = length(redis, keys.redrive);
        stream.groups.push_back(std::move(group));
    }
}

std::vector<stream_state> survey(redis &redis, const std::vector<std::string> &topics) {
    std::vector<std::string> wanted = topics;
    if (wanted.empty())
        for (const auto &key : redis.streams("outbox:{*}"))
            if (auto topic = topic_of(key); !topic.empty())
                wanted.push_back(topic);
    std::int64_t now_ms = std::chrono::duration_cast<std::chrono::milliseconds>(redis.time().time_since_epoch()).count();
    std::vector<stream_state> streams;
    for (const auto &topic : wanted)
        if (auto stream = look_at(redis, topic)) {
            look_at_groups(redis, *stream, now_ms);
            streams.push_back(std::move(*stream));
        }
    return streams;
}

static json or_null(const auto &value) { return value ? json(*value) : json(nullptr); }

json to_json(const stream_state &stream, const group_state &group) {
    return {{"stream", stream.key},
            {"topic", stream.topic},
            {"group", group.name},
            {"lag", or_null(group.lag)},
            {"pending", group.pending},
            {"oldest_pending", group.oldest_pending ? json(detail::to_string(*group.oldest_pending)) : json(nullptr)},
            {"oldest_pending_age_seconds", or_null(group.oldest_pending_age)},
            {"oldest_pending_idle_seconds", or_null(group.oldest_pending_idle)},
            {"consumers", group.consumers},
            {"dead_letters", group.dead_letters},
            {"redriven", group.redriven},
            {"last_delivered", group.last_delivered},
            {"entries_read", or_null(group.entries_read)}};
}

json to_json(const stream_state &stream) {
    return {{"stream", stream.key},    {"topic", stream.topic},
            {"length", stream.length}, {"first", stream.first.empty() ? json(nullptr) : json(stream.first)},
            {"last", stream.last},     {"groups", stream.groups.size()}};
}

std::vector<dead_letter_stream> dead_letter_streams(redis &redis) {
    std::vector<dead_letter_stream> found;
    for (const auto &key : redis.streams("outbox:{*}:dlq:*")) {
        auto close = key.find('}');
        constexpr std::string_view infix = ":dlq:";
        dead_letter_stream one;
        one.key = key;
        one.topic = topic_of(key.substr(0, close + 1));
        if (one.topic.empty() || key.compare(close + 1, infix.size(), infix) != 0)
            continue;
        one.group = key.substr(close + 1 + infix.size());
        if (auto about = redis.unless({"ERR no such key"}, {"XINFO", "STREAM", key})) {
            one.letters = number(*about, "length").value_or(0);
            one.oldest = id_of(named(*about, "first-entry"));
        }
        if (one.letters > 0) // a stream that was emptied stays
            found.push_back(std::move(one));
    }
    return found;
}

} // namespace outbox::ctl

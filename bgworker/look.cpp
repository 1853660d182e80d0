// The looks that the worker takes at its streams between two batches: who reads them, and how far (outbox.stat_consumer), and what
// can be trimmed. It goes through all streams, a few at a time, and spends a twentieth of its time on that at most.

#include "bgworker/consumers.hpp"
#include "bgworker/dispatcher.hpp"
#include "bgworker/entry.hpp"
#include "bgworker/reply.hpp"
#include "common/resp.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

constexpr int streams_at_once = 16;
constexpr int groups_at_once = 100;
constexpr int share = 20;                         // a step is followed by as many times of what it took
constexpr int redis_interval = 60000;             // ms between two looks at how Redis is configured
constexpr int refusal_rest = 60000;               // ms until what was refused is tried again
constexpr int refusal_complaint_interval = 3600000; // ms between two log lines about it

static std::string_view text_of(const redisReply &reply) {
    return reply.type == REDIS_REPLY_STRING || reply.type == REDIS_REPLY_STATUS
               ? std::string_view(reply.str, static_cast<std::size_t>(reply.len))
               : std::string_view();
}

static bool is_about_rights(std::string_view error) {
    return has(error, "NOPERM") || has(error, "ACL failure") || has(error, "executing the script can't");
}

// Is an error to be told of? A stream that is something else, or not ours to see, is none of this room's business, and what is
// wrong with Redis as a whole shows when the next event is sent.
bool dispatcher::is_refusal_of(const redisReply &reply, refusal &of) {
    std::string_view error = reply.str;
    if (has(error, "no such key") || has(error, "WRONGTYPE") || has(error, "one of the keys") || has(error, "access a key"))
        return false;
    if (!is_about_rights(error) && blame_for(error, false) == blame::sink)
        return false;
    of.until = TimestampTzPlusMilliseconds(steady_now(), refusal_rest);
    return true;
}

void dispatcher::complain(refusal &about, const char *what, const char *why) {
    if (about.complained_at != 0 && !TimestampDifferenceExceeds(about.complained_at, steady_now(), refusal_complaint_interval))
        return;
    about.complained_at = steady_now();
    ereport(WARNING, errmsg("%s: %s", what, printable(why, 200)), errdetail("Events go on; it is tried again every minute."),
            is_about_rights(why) ? errhint("Grant the Redis user what the README lists under \"Redis privileges\".") : 0);
}

bool dispatcher::look_is_due() const {
    return link_.is_open() && memory_loaded_ && stats_.state == shared::worker_state::streaming && cursor_ >= heal_until_ &&
           steady_now() >= look_at_;
}

// One step. False when Redis is lost.
bool dispatcher::look_after_streams() {
    TimestampTz began = steady_now();
    if (look_place_ >= look_count_) {
        looks_at_groups_ = groups_due_ <= began;
        if (looks_at_groups_) {
            ++look_pass_;
            groups_due_ = TimestampTzPlusMilliseconds(began, settings::consumer_interval);
        }
        trims_more_ = false;
        look_place_ = 0;
        MemoryContextReset(looks_);
        MemoryContext old = MemoryContextSwitchTo(looks_);
        look_streams_ = all_streams(look_count_);
        MemoryContextSwitchTo(old);
        if (redis_due_ <= began) {
            redis_due_ = TimestampTzPlusMilliseconds(began, redis_interval);
            if (!look_at_redis())
                return false;
        }
    }
    int count = std::min(streams_at_once, look_count_ - look_place_);
    stream_state **streams = look_streams_ + look_place_;
    if (count > 0 && (!trim(streams, count, marker_text_) || (looks_at_groups_ && !look_at_groups(streams, count))))
        return false;
    look_place_ += count;
    TimestampTz now = steady_now();
    look_at_ = now + (now - began) * share;
    if (look_place_ >= look_count_) {
        if (looks_at_groups_)
            consumers::forget_others(sink_id_, look_pass_);
        if (!trims_more_)
            look_at_ = std::max(look_at_, groups_due_);
    }
    publish();
    return true;
}

// A stream's group, while we ask for it.
struct asked_group {
    const stream_state *stream;
    std::string_view name;
    position delivered;
    consumers::group seen;
};

static void read_group(const redisReply &fields, asked_group &group) {
    group.seen.lag = -1;
    group.seen.oldest_pending_ms = -1;
    for (std::size_t i = 0; i + 1 < fields.elements; i += 2) {
        std::string_view name = text_of(*fields.element[i]);
        const redisReply &value = *fields.element[i + 1];
        if (name == "last-delivered-id")
            parse(text_of(value), group.delivered);
        if (value.type != REDIS_REPLY_INTEGER)
            continue;
        if (name == "consumers")
            group.seen.consumers = value.integer;
        else if (name == "pending")
            group.seen.pending = value.integer;
        else if (name == "lag")
            group.seen.lag = std::max(value.integer, 0LL);
    }
}

static std::string_view name_in(const redisReply &fields) {
    for (std::size_t i = 0; i + 1 < fields.elements; i += 2)
        if (text_of(*fields.element[i]) == "name")
            return text_of(*fields.element[i + 1]);
    return {};
}

bool dispatcher::look_at_groups(stream_state *const *streams, int count) {
    if (steady_now() < look_refusal_.until || settings::max_consumer_groups == 0)
        return true;
    TimestampTz now = GetCurrentTimestamp(); // nothing that is shown is older
    cpp_call([&] {
        commands_->clear();
        for (int i = 0; i < count; ++i)
            resp::append(*commands_, "XINFO", "GROUPS", name_of(*streams[i]));
    });
    if (!link_.ask(*commands_, static_cast<std::size_t>(count)))
        return false;
    std::size_t total = 0;
    for (int i = 0; i < count; ++i)
        if (link_.reply(static_cast<std::size_t>(i)).type == REDIS_REPLY_ARRAY)
            total += link_.reply(static_cast<std::size_t>(i)).elements;
    int most = static_cast<int>(std::min(total, static_cast<std::size_t>(settings::max_consumer_groups)));
    auto *groups = static_cast<asked_group *>(palloc0(sizeof(asked_group) * (static_cast<Size>(most) + 1)));
    int found = 0;
    for (int i = 0; i < count; ++i) {
        const redisReply &reply = link_.reply(static_cast<std::size_t>(i));
        if (reply.type == REDIS_REPLY_ERROR && is_refusal_of(reply, look_refusal_))
            complain(look_refusal_, psprintf("could not look at the consumer groups of sink \"%s\"", sink_.name), reply.str);
        for (std::size_t k = 0; reply.type == REDIS_REPLY_ARRAY && k < reply.elements && found < most; ++k) {
            const redisReply &fields = *reply.element[k];
            if (fields.type != REDIS_REPLY_ARRAY)
                continue;
            std::string_view name = name_in(fields);
            asked_group &group = groups[found++];
            group.stream = streams[i];
            group.name = {pnstrdup(name.data(), name.size()), name.size()};
            consumers::set_key(group.seen, sink_id_, streams[i]->name(), name);
            read_group(fields, group);
            group.seen.pass = look_pass_;
            group.seen.refreshed_at = now;
        }
    }
    for (int begin = 0; begin < found; begin += groups_at_once)
        if (!look_into_groups(groups + begin, std::min(groups_at_once, found - begin)))
            return false;
    return complete_lags(groups, found);
}

// What is pending in these groups, and how many dead letters they have.
bool dispatcher::look_into_groups(asked_group *groups, int count) {
    std::size_t asked = 0;
    cpp_call([&] {
        commands_->clear();
        for (int i = 0; i < count; ++i) {
            const char *stream = name_of(*groups[i].stream);
            resp::append(*commands_, "XPENDING", stream, groups[i].name);
            resp::append(*commands_, "XLEN", std::string(stream).append(":dlq:").append(groups[i].name));
            asked += 2;
        }
    });
    if (!link_.ask(*commands_, asked))
        return false;
    for (int i = 0; i < count; ++i) {
        const redisReply &pending = link_.reply(static_cast<std::size_t>(i) * 2), &dead = link_.reply(static_cast<std::size_t>(i) * 2 + 1);
        for (const redisReply *reply : {&pending, &dead})
            if (reply->type == REDIS_REPLY_ERROR && !has(reply->str, "NOGROUP") && is_refusal_of(*reply, look_refusal_))
                complain(look_refusal_, psprintf("could not look at the consumer groups of sink \"%s\"", sink_.name), reply->str);
        consumers::group &seen = groups[i].seen;
        if (pending.type == REDIS_REPLY_ARRAY && pending.elements >= 2 && pending.element[0]->type == REDIS_REPLY_INTEGER) {
            position oldest;
            seen.pending = pending.element[0]->integer;
            if (parse(text_of(*pending.element[1]), oldest))
                seen.oldest_pending_ms = oldest.ms;
        }
        seen.dead_letters = dead.type == REDIS_REPLY_INTEGER ? dead.integer : 0;
    }
    return true;
}

// Redis before 7 does not tell the lag, and later ones not always. Two cases can be told from the ends of the stream: nothing was
// delivered of what is there, or everything.
bool dispatcher::complete_lags(asked_group *groups, int count) {
    for (int i = 0; i < count; ++i)
        if (groups[i].seen.lag < 0) {
            const stream_state *stream = groups[i].stream;
            cpp_call([&] {
                commands_->clear();
                append_xinfo(*commands_, stream->name(), naming_);
            });
            if (!link_.ask(*commands_, 1))
                return false;
            stream_info info = read_stream_info(link_.reply(0));
            for (int k = i; k < count && groups[k].stream == stream; ++k) {
                consumers::group &seen = groups[k].seen;
                if (!info.exists || seen.lag >= 0)
                    continue;
                if (groups[k].delivered >= info.last || info.length == 0)
                    seen.lag = 0;
                else if (groups[k].delivered < info.first)
                    seen.lag = info.length;
            }
            while (i + 1 < count && groups[i + 1].stream == stream)
                ++i;
        }
    for (int i = 0; i < count; ++i)
        consumers::keep(groups[i].seen);
    return true;
}

// May Redis evict streams? They have no time to live, so only by the policies for all keys, and only where there is a limit.
bool dispatcher::look_at_redis() {
    cpp_call([&] {
        commands_->clear();
        resp::append(*commands_, "INFO", "memory");
    });
    if (!link_.ask(*commands_, 1))
        return false;
    std::string_view info = text_of(link_.reply(0));
    auto value_of = [info](std::string_view name) {
        auto at = info.find(name);
        return at == std::string_view::npos ? std::string_view() : info.substr(at + name.size(), info.find('\r', at) - at - name.size());
    };
    std::string_view limit = value_of("\nmaxmemory:"), policy = value_of("\nmaxmemory_policy:");
    stats_.evicts = policy.empty() || limit.empty()                      ? shared::eviction::unknown
                    : limit != "0" && policy.starts_with("allkeys-") ? shared::eviction::yes
                                                                         : shared::eviction::no;
    return true;
}

} // namespace outbox

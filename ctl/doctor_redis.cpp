#include "ctl/doctor.hpp"

#include <cstdlib>
#include <map>

#include "ctl/streams.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

using values = std::map<std::string, std::string>;

static std::string at(const values &info, const std::string &name) {
    auto found = info.find(name);
    return found != info.end() ? found->second : std::string();
}

// Whether a version is at least that one.
static bool at_least(const std::string &version, int major, int minor) {
    char *end = nullptr;
    long first = std::strtol(version.c_str(), &end, 10), second = *end == '.' ? std::strtol(end + 1, nullptr, 10) : 0;
    return first > major || (first == major && second >= minor);
}

static void examine_version(const values &info, const std::string &where, report &report) {
    auto valkey = at(info, "valkey_version"), version = at(info, "redis_version");
    auto name = (valkey.empty() ? "Redis " + version : "Valkey " + valkey) + " at \"" + where + "\"";
    if (!at_least(version, 6, 2))
        report.error("redis_version", name + " is too old", "outbox needs Redis 6.2 or later.");
    else if (!at_least(version, 7, 0))
        report.warning("redis_version", name + " cannot always tell lost entries from trimmed ones",
                       "Use Redis 7.0 or later.");
    else
        report.ok("redis_version", name);
    if (at(info, "role") != "master")
        report.error("redis_role", name + " is a replica: it refuses writes",
                     "Point the sink, and --redis, to the primary.");
    if (at(info, "cluster_enabled") == "1")
        report.error("redis_cluster", name + " is a node of a cluster, which is not supported", "Use a Redis of its own.");
}

static void examine_persistence(const values &info, report &report) {
    bool aof = at(info, "aof_enabled") == "1";
    if (at(info, "loading") == "1")
        report.warning("persistence", "Redis is loading its data", "Wait, and look again.");
    if ((aof && at(info, "aof_last_write_status") != "ok") || at(info, "rdb_last_bgsave_status") == "err")
        report.error("persistence", "Redis could not write its data to disk",
                     "See its log: the disk is full or not writable. It may refuse writes (MISCONF).");
    else if (!aof)
        report.warning("persistence", "Redis has no append-only file: a restart loses entries",
                       "CONFIG SET appendonly yes, and in redis.conf. The worker appends again what is retained, but "
                       "consumer groups are lost.");
    else
        report.ok("persistence", "Redis writes an append-only file");
}

static void examine_memory(const values &info, report &report) {
    auto policy = at(info, "maxmemory_policy");
    auto most = std::strtoull(at(info, "maxmemory").c_str(), nullptr, 10),
         used = std::strtoull(at(info, "used_memory").c_str(), nullptr, 10);
    if (policy.starts_with("allkeys-"))
        report.error("eviction", "maxmemory-policy is " + policy + ": Redis may evict streams",
                     "CONFIG SET maxmemory-policy noeviction, and in redis.conf.");
    else if (policy.starts_with("volatile-"))
        report.warning("eviction", "maxmemory-policy is " + policy + ": Redis may evict the consumers' idempotency marks",
                       "CONFIG SET maxmemory-policy noeviction, unless another user of this Redis needs it.");
    else
        report.ok("eviction", "maxmemory-policy is " + policy);
    auto text = "Redis uses " + std::to_string(used / 1048576) + " MB" +
                (most > 0 ? " of maxmemory " + std::to_string(most / 1048576) + " MB" : ", without a limit");
    if (most > 0 && used > most / 10 * 9)
        report.warning(
            "memory", text,
            "Trim the streams, or raise maxmemory: a full Redis refuses entries, and events wait in the database.");
    else
        report.ok("memory", text);
}

// The sink's marker: without it this is another Redis, or it has lost its data.
static void examine_marker(context &context, report &report) {
    json sink = context.database().row(R"(
        SELECT s.uuid::text AS uuid, (t.published > 0 OR c.ms > s.start_ms) AS used FROM outbox.sink s
          JOIN outbox.stat_sink t ON t.sink = s.name JOIN outbox.sink_cursor c ON c.sink_id = s.id WHERE s.name = $1)",
                                       {context.common().sink});
    if (sink.is_null() || sink.at("uuid").is_null() || !sink.at("used").is_boolean() || !sink.at("used").get<bool>())
        return; // nothing was ever published: a new sink has a cursor, and no marker before it has begun
    auto marker = context.redis().command({"EXISTS", "outbox:sink:" + sink.at("uuid").get<std::string>()});
    if (marker->integer == 1)
        report.ok("marker", "this is the Redis that sink \"" + context.common().sink + "\" appends to");
    else
        report.error("marker",
                     "Redis at \"" + context.address().url.endpoint() + "\" has no marker of sink \"" +
                         context.common().sink + "\": it is another one, or it has lost its data",
                     "Give the right --redis (it came from " + context.address().source +
                         "). If it is right, the worker heals it by itself.");
}

static void examine_groups(redis &redis, report &report) {
    auto streams = survey(redis);
    std::size_t groups = 0;
    for (const auto &stream : streams) {
        groups += stream.groups.size();
        for (const auto &group : stream.groups) {
            auto name = "group \"" + group.name + "\" of " + stream.key;
            if (group.dead_letters > 0)
                report.warning("group_dead_letters", name + " has " + counted(group.dead_letters, "dead letter"),
                               "See \"outboxctl dlq ls --topic " + stream.topic + " --group " + group.name + "\".");
            if (group.consumers == 0 && (group.pending > 0 || group.lag.value_or(0) > 0))
                report.warning("group_idle", name + " has entries to handle and no consumer",
                               "Start the service, or remove the group: XGROUP DESTROY.");
        }
    }
    report.ok("streams", counted(static_cast<std::int64_t>(streams.size()), "stream") + " with " +
                             counted(static_cast<std::int64_t>(groups), "consumer group"));
}

// A check that the user of Redis may not make.
template <typename Check> static void attempt(const char *name, report &report, Check check) {
    try {
        check();
    } catch (const reply_error &error) {
        if (error.code() != "NOPERM")
            throw;
        report.unknown(name, std::string("Redis does not let this user look: ") + error.what(),
                       "Use a user as in REDIS PRIVILEGES of outboxctl(1).");
    }
}

void examine_redis(context &context, bool database_works, report &report) {
    if (!database_works && context.common().redis_url.empty() && std::getenv("OUTBOX_REDIS_URL") == nullptr) {
        report.unknown("redis", "where Redis is cannot be asked of the database",
                       "Say it with --redis or OUTBOX_REDIS_URL.");
        return;
    }
    redis &redis = context.redis();
    attempt("redis_version", report, [&] {
        auto read = redis.info();
        values info(read.begin(), read.end());
        examine_version(info, context.address().url.endpoint(), report);
        examine_persistence(info, report);
        examine_memory(info, report);
    });
    if (database_works)
        attempt("marker", report, [&] { examine_marker(context, report); });
    attempt("streams", report, [&] { examine_groups(redis, report); });
}

} // namespace outbox::ctl

// What an error reply of Redis is about. Pure.
#pragma once

#include "common/tls.hpp"

#include <initializer_list>
#include <string_view>

namespace outbox {

enum class blame {
    sink,     // the server, the connection or our rights: stop, back off, spend nobody's attempts
    stream,   // one key: hold that stream, let the others go on
    rejected, // the entry ID is not above the stream's last: our own earlier entry, or somebody else's
};

inline bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// An error to an XADD. `queued` says that it came when the command was queued, which aborts the whole chunk.
inline blame blame_for(std::string_view error, bool queued) noexcept {
    // Of the rights, only those on the key are the stream's matter; and only while the rest of the chunk can go on without it.
    // EXEC has words of its own for a right that was taken away since.
    if (error.starts_with("NOPERM"))
        return has(error, "to run the") || has(error, "to execute the") || has(error, "channels used") ? blame::sink : blame::stream;
    if (queued)
        return blame::sink;
    if (has(error, "equal or smaller than the target stream top item"))
        return blame::rejected;
    for (std::string_view prefix : {"OOM", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS",
                                    "NOAUTH", "BUSY ", "TRYAGAIN", "MOVED", "ASK", "CROSSSLOT", "UNKILLABLE"})
        if (error.starts_with(prefix))
            return blame::sink;
    return blame::stream;
}

// Means that the address no longer leads to a server that takes writes: connect again, perhaps to another one.
// `of_setting`: the address is outbox.redis_url, and no sink's own.
inline const char *hint_for(std::string_view error, bool of_setting = true) noexcept {
    if (has(error, "TLS: "))
        return tls_hint(error);
    if (has(error, "AUTH") || has(error, "WRONGPASS") || has(error, "without a password"))
        return of_setting ? "Check the user and password in outbox.redis_url or outbox.redis_password_file."
                          : "Check the user in the sink's URL and the password in outbox.sink_password_file.";
    if (has(error, "WAITAOF") && has(error, "appendonly"))
        return "Set appendonly yes in Redis, or ask for less with outbox.alter_sink(sink, confirm => 'memory').";
    if (has(error, "WAITAOF") && has(error, "unknown command"))
        return "Redis has WAITAOF since 7.2. Use such a server, or ask for less with outbox.alter_sink(sink, confirm => 'memory').";
    if (error.starts_with("NOPERM"))
        return "Grant the Redis user what the README lists under \"Redis privileges\".";
    if (error.starts_with("OOM"))
        return "Trim the streams, or raise Redis' maxmemory; events wait in the database until then.";
    if (error.starts_with("READONLY") || has(error, "cannot be used with replica instances"))
        return of_setting ? "This Redis is a replica; outbox.redis_url must lead to the primary."
                          : "This Redis is a replica; the sink's URL must lead to the primary.";
    if (error.starts_with("sentinel at"))
        return of_setting ? "Check the sentinels and the name of the master in outbox.redis_url."
                          : "Check the sentinels and the name of the master in the sink's URL.";
    if (error.starts_with("MOVED") || error.starts_with("ASK") || error.starts_with("CLUSTERDOWN") ||
        error.starts_with("CROSSSLOT"))
        return "Redis Cluster is not supported; use a Redis server of its own.";
    if (error.starts_with("MISCONF"))
        return "Redis cannot write to its disk; see its log.";
    if (has(error, "rotocol error") || has(error, "too large"))
        return of_setting ? "Check that outbox.redis_url leads to a Redis server."
                          : "Check that the sink's URL leads to a Redis server.";
    if (!of_setting)
        return "Check the sink's URL and the Redis server; events wait in the database until it is back.";
    return "Check outbox.redis_url and the Redis server; events wait in the database until it is back.";
}

} // namespace outbox

// What one writes first: LISTEN, select what is not published, XADD it, mark it as published. Written for speed: prepared
// statements, one pipeline, and its marks need not be durable. It is not safe: who dies between XADD and UPDATE has them
// published again, and ids that commit late come late.
#include "clock.hpp"
#include "options.hpp"

#include <csignal>
#include <cstring>
#include <hiredis/hiredis.h>
#include <libpq-fe.h>
#include <poll.h>
#include <string>

namespace {

volatile std::sig_atomic_t stopped = 0;

PGresult *expect(PGconn *connection, PGresult *result, ExecStatusType wanted) {
    if (PQresultStatus(result) != wanted)
        options::fail(PQerrorMessage(connection));
    return result;
}

void execute(PGconn *connection, const char *statement) {
    PQclear(expect(connection, PQexec(connection, statement), PGRES_COMMAND_OK));
}

void prepare(PGconn *connection, const char *name, const char *statement) {
    PQclear(expect(connection, PQprepare(connection, name, statement, 0, nullptr), PGRES_COMMAND_OK));
}

} // namespace

int main(int argc, char **argv) {
    options given(argc, argv, "Carries the rows of bench.outbox to a Redis stream, woken by NOTIFY, until SIGTERM.",
                  {"conninfo", "", "of the database", "redis", "", "path of a unix socket, or port of 127.0.0.1", "stream",
                   "outbox:{billing}", "key of the stream"});
    struct sigaction action = {};
    action.sa_handler = [](int) { stopped = 1; };
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);

    const std::string &where = given.text("redis"), &stream = given.text("stream");
    redisContext *redis = where.starts_with('/') ? redisConnectUnix(where.c_str()) : redisConnect("127.0.0.1", std::atoi(where.c_str()));
    if (!redis || redis->err)
        options::fail("could not connect to Redis at \"" + where + "\"");
    PGconn *connection = PQconnectdb(given.text("conninfo").c_str());
    if (PQstatus(connection) != CONNECTION_OK)
        options::fail(PQerrorMessage(connection));
    execute(connection, "SET synchronous_commit = off");
    execute(connection, "LISTEN bench_outbox");
    prepare(connection, "pending",
            "SELECT id, event_id, event_type, aggregate_type, aggregate_id, version, "
            "to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), headers, payload "
            "FROM bench.outbox WHERE published_at IS NULL ORDER BY id LIMIT 1000");
    prepare(connection, "published", "UPDATE bench.outbox SET published_at = now() WHERE id = ANY ($1::bigint[])");

    static const char *names[] = {"event_id", "event_type", "aggregate_type", "aggregate_id",
                                  "version",  "occurred_at", "headers",       "payload"};
    long events = 0;
    while (!stopped) {
        PGresult *rows = expect(connection, PQexecPrepared(connection, "pending", 0, nullptr, nullptr, nullptr, 0), PGRES_TUPLES_OK);
        int count = PQntuples(rows);
        std::string ids;
        for (int row = 0; row < count; ++row) {
            const char *words[19] = {"XADD", stream.c_str(), "*"};
            std::size_t lengths[19] = {4, stream.size(), 1};
            for (int i = 0; i < 8; ++i) {
                words[3 + 2 * i] = names[i];
                lengths[3 + 2 * i] = std::strlen(names[i]);
                words[4 + 2 * i] = PQgetvalue(rows, row, i + 1);
                lengths[4 + 2 * i] = static_cast<std::size_t>(PQgetlength(rows, row, i + 1));
            }
            redisAppendCommandArgv(redis, 19, words, lengths);
            ids += row ? ',' : '{';
            ids += PQgetvalue(rows, row, 0);
        }
        for (int row = 0; row < count; ++row) {
            void *reply = nullptr;
            if (redisGetReply(redis, &reply) != REDIS_OK || static_cast<redisReply *>(reply)->type == REDIS_REPLY_ERROR)
                options::fail("Redis refused an entry");
            freeReplyObject(reply);
        }
        PQclear(rows);
        if (count > 0) {
            ids += '}';
            const char *values[] = {ids.c_str()};
            PQclear(expect(connection, PQexecPrepared(connection, "published", 1, values, nullptr, nullptr, 0), PGRES_COMMAND_OK));
            events += count;
        }
        // What came meanwhile is in the next SELECT; one that finds nothing is all that it costs.
        bool notified = false;
        while (!stopped && !notified && count < 1000) {
            if (!PQconsumeInput(connection))
                options::fail(PQerrorMessage(connection));
            while (PGnotify *notify = PQnotifies(connection)) {
                PQfreemem(notify);
                notified = true;
            }
            if (notified)
                break;
            pollfd ready = {PQsocket(connection), POLLIN, 0};
            poll(&ready, 1, 1000);
        }
    }
    std::printf(R"({"events":%ld,"cpu":%.6f})"
                "\n",
                events, cpu_seconds());
    PQfinish(connection);
    redisFree(redis);
}

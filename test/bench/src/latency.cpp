// How long after COMMIT returned an entry is seen by a reader that is blocked in XREAD. One thread commits at a steady rate: a
// business INSERT and a statement that records the event; another one reads. An event is told by the invoice in its payload,
// so it does not matter who carries it.
#include "clock.hpp"
#include "options.hpp"
#include "redis_socket.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <hiredis/hiredis.h>
#include <libpq-fe.h>
#include <string>
#include <thread>
#include <vector>

namespace {

struct seen {
    long invoice;
    std::int64_t at;
};

// Once all was committed, no entry may take longer.
constexpr std::int64_t patience = 30'000'000'000;

void execute(PGconn *connection, const char *statement) {
    PGresult *result = PQexec(connection, statement);
    auto status = PQresultStatus(result);
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
        options::fail(std::string(statement) + ": " + PQerrorMessage(connection));
    PQclear(result);
}

void execute_prepared(PGconn *connection, const char *name, std::initializer_list<const char *> values) {
    PGresult *result = PQexecPrepared(connection, name, static_cast<int>(values.size()), values.begin(), nullptr, nullptr, 0);
    auto status = PQresultStatus(result);
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
        options::fail(std::string(name) + ": " + PQerrorMessage(connection));
    PQclear(result);
}

// The number after "invoice" in what an entry has as its payload, however a database prints JSON; -1 when it is none of ours.
long invoice_of(const redisReply &fields) {
    for (std::size_t i = 0; i + 1 < fields.elements; i += 2) {
        std::string_view name(fields.element[i]->str, fields.element[i]->len);
        std::string_view value(fields.element[i + 1]->str, fields.element[i + 1]->len);
        if (name != "payload")
            continue;
        auto at = value.find("\"invoice\"");
        if (at == std::string_view::npos)
            return -1;
        at = value.find_first_of("0123456789", at);
        return at == std::string_view::npos ? -1 : std::strtol(value.data() + at, nullptr, 10);
    }
    return -1;
}

redisReply *command(redisContext *redis, std::initializer_list<std::string> words) {
    std::vector<const char *> texts;
    std::vector<std::size_t> lengths;
    for (const std::string &word : words) {
        texts.push_back(word.data());
        lengths.push_back(word.size());
    }
    auto *reply = static_cast<redisReply *>(
        redisCommandArgv(redis, static_cast<int>(texts.size()), texts.data(), lengths.data()));
    if (!reply)
        options::fail(std::string("Redis: ") + redis->errstr);
    if (reply->type == REDIS_REPLY_ERROR)
        options::fail(std::string("Redis: ") + reply->str);
    return reply;
}

redisContext *connect_reader(const std::string &where) {
    redisContext *redis = where.starts_with('/') ? redisConnectUnix(where.c_str()) : redisConnect("127.0.0.1", std::atoi(where.c_str()));
    if (!redis || redis->err)
        options::fail("could not connect to Redis at \"" + where + "\"");
    return redis;
}

// Reads until it has seen so many entries.
void read_stream(redisContext *redis, const std::string &stream, std::string last, long count, const std::atomic<std::int64_t> &until,
                 std::vector<seen> &entries) {
    while (static_cast<long>(entries.size()) < count) {
        redisReply *reply = command(redis, {"XREAD", "COUNT", "1000", "BLOCK", "1000", "STREAMS", stream, last});
        std::int64_t now = now_ns();
        if (reply->type == REDIS_REPLY_ARRAY) {
            const redisReply &list = *reply->element[0]->element[1];
            for (std::size_t i = 0; i < list.elements; ++i)
                entries.push_back({invoice_of(*list.element[i]->element[1]), now});
            last = list.element[list.elements - 1]->element[0]->str;
        }
        freeReplyObject(reply);
        if (now > until)
            options::fail("only " + std::to_string(entries.size()) + " of " + std::to_string(count) + " entries came in time");
    }
}

double quantile(const std::vector<double> &sorted, double q) {
    return sorted[static_cast<std::size_t>(std::llround(q * static_cast<double>(sorted.size() - 1)))];
}

} // namespace

int main(int argc, char **argv) {
    options given(argc, argv, "Measures the time from COMMIT to the entry in a Redis stream.",
                  {"conninfo", "", "of the database", "redis", "", "path of a unix socket, or port of 127.0.0.1", "stream",
                   "outbox:{billing}", "key of the stream", "samples", "4000", "events that are measured", "warm-up", "200",
                   "events before them", "rate", "200", "transactions a second", "business",
                   "INSERT INTO bench.invoice (number, customer, amount) VALUES ($1, $2, 12.50)",
                   "the business statement; $1: a number, $2: a text", "statement",
                   "SELECT outbox.emit('billing.invoice.paid', $1, aggregate_id => $2, aggregate_type => 'invoice', headers => '{}')",
                   "what records the event; $1: payload, $2: id of the aggregate", "then", "",
                   "one more statement before COMMIT, as NOTIFY"});
    long samples = given.number("samples"), warm_up = given.number("warm-up"), rate = given.number("rate");
    if (samples < 1 || warm_up < 0 || rate < 1)
        options::fail("--samples and --rate must be at least 1, --warm-up 0");
    long count = samples + warm_up;
    const std::string &stream = given.text("stream"), &then = given.text("then");

    PGconn *connection = PQconnectdb(given.text("conninfo").c_str());
    if (PQstatus(connection) != CONNECTION_OK)
        options::fail(PQerrorMessage(connection));
    for (const char *name : {"business", "statement"}) {
        PGresult *result = PQprepare(connection, name, given.text(name).c_str(), 0, nullptr);
        if (PQresultStatus(result) != PGRES_COMMAND_OK)
            options::fail(std::string(name) + ": " + PQerrorMessage(connection));
        PQclear(result);
    }
    redisContext *redis = connect_reader(given.text("redis"));
    redisReply *newest = command(redis, {"XREVRANGE", stream, "+", "-", "COUNT", "1"});
    std::string last = newest->elements ? newest->element[0]->element[0]->str : "0-0";
    freeReplyObject(newest);

    std::vector<seen> entries;
    entries.reserve(static_cast<std::size_t>(count) + 1000);
    std::atomic<std::int64_t> until{INT64_MAX};
    std::thread reader([&] { read_stream(redis, stream, last, count, until, entries); });

    std::vector<std::int64_t> committed(static_cast<std::size_t>(count));
    std::vector<double> commits(static_cast<std::size_t>(count));
    const std::string filler = "thank you for your order; thank you for your order; thank you for your order; thank you for your order; "
                               "please pay within 14 days.";
    std::int64_t began = now_ns();
    for (long i = 0; i < count; ++i) {
        std::int64_t due = began + i * 1'000'000'000 / rate;
        timespec when = {due / 1'000'000'000, due % 1'000'000'000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, nullptr);
        char payload[400], number[32], aggregate[32];
        std::snprintf(payload, sizeof payload, R"({"invoice":"%012ld","amount":"12.50","currency":"EUR","note":"%s"})", i,
                      filler.c_str());
        std::snprintf(number, sizeof number, "%ld", i);
        std::snprintf(aggregate, sizeof aggregate, "i%ld", i % 1000);
        std::int64_t start = now_ns();
        execute(connection, "BEGIN");
        execute_prepared(connection, "business", {number, aggregate});
        execute_prepared(connection, "statement", {payload, aggregate});
        if (!then.empty())
            execute(connection, then.c_str());
        execute(connection, "COMMIT");
        auto index = static_cast<std::size_t>(i);
        committed[index] = now_ns();
        commits[index] = static_cast<double>(committed[index] - start) / 1e3;
    }
    double seconds = static_cast<double>(now_ns() - began) / 1e9;
    until = now_ns() + patience;
    reader.join();

    std::vector<double> latencies;
    std::vector<char> found(static_cast<std::size_t>(count));
    for (const seen &entry : entries) {
        if (entry.invoice < 0 || entry.invoice >= count)
            options::fail("there is an entry in the stream that nobody committed");
        auto index = static_cast<std::size_t>(entry.invoice);
        if (found[index]++)
            options::fail("invoice " + std::to_string(entry.invoice) + " came twice");
        if (entry.invoice >= warm_up)
            latencies.push_back(static_cast<double>(entry.at - committed[index]) / 1e3);
    }
    std::sort(latencies.begin(), latencies.end());
    std::sort(commits.begin(), commits.end());
    std::printf(R"({"samples":%zu,"p50_us":%.1f,"p90_us":%.1f,"p99_us":%.1f,"p999_us":%.1f,"max_us":%.1f,"min_us":%.1f,)"
                R"("transaction_p50_us":%.1f,"rate":%.1f})"
                "\n",
                latencies.size(), quantile(latencies, 0.5), quantile(latencies, 0.9), quantile(latencies, 0.99),
                quantile(latencies, 0.999), latencies.back(), latencies.front(), quantile(commits, 0.5),
                static_cast<double>(count) / seconds);
    redisFree(redis);
    PQfinish(connection);
}

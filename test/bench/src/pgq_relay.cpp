// A consumer of a PgQ queue: takes batch after batch (next_batch, get_batch_events, finish_batch)
// and appends with pipelined XADDs. A batch is finished in the transaction that reads the one after
// it, and that transaction commits when Redis has all of the first: PostgreSQL reads while Redis
// appends, and a crash sends a batch again and loses none.
#include "appender.hpp"
#include "clock.hpp"

#include <csignal>
#include <libpq-fe.h>
#include <memory>

namespace {

volatile std::sig_atomic_t stopping = 0;

using result = std::unique_ptr<PGresult, decltype(&PQclear)>;

struct relay {
    PGconn *postgres;
    appender &redis;

    [[noreturn]] void fail() {
        options::fail(std::string("PostgreSQL: ") + PQerrorMessage(postgres));
    }

    // Redis is served while PostgreSQL works. The result of the last statement.
    result run(const std::string &statements) {
        if (!PQsendQuery(postgres, statements.c_str()))
            fail();
        result last{nullptr, PQclear};
        for (;;) {
            while (PQisBusy(postgres)) {
                pollfd ready[] = {{PQsocket(postgres), POLLIN, 0},
                                  {redis.fd(), redis.events_to_wait_for(), 0}};
                if (poll(ready, 2, -1) < 0 && errno != EINTR)
                    options::fail(std::string("poll: ") + std::strerror(errno));
                redis.exchange();
                if (ready[0].revents && !PQconsumeInput(postgres))
                    fail();
            }
            PGresult *next = PQgetResult(postgres);
            if (!next)
                return last;
            last.reset(next);
            if (PQresultStatus(next) != PGRES_COMMAND_OK && PQresultStatus(next) != PGRES_TUPLES_OK)
                fail();
        }
    }

    // Redis has everything that was appended.
    void settle() {
        while (redis.confirmed() < redis.appended()) {
            if (redis.exchange())
                continue;
            pollfd ready = {redis.fd(), redis.events_to_wait_for(), 0};
            if (poll(&ready, 1, -1) < 0 && errno != EINTR)
                options::fail(std::string("poll: ") + std::strerror(errno));
        }
    }

    void append(PGresult *batch) {
        auto value = [&](int row, int column) {
            return std::string_view(PQgetvalue(batch, row, column),
                                    static_cast<std::size_t>(PQgetlength(batch, row, column)));
        };
        std::array<char, 40> time;
        for (int row = 0; row < PQntuples(batch); ++row) {
            // PgQ has room for four values beside type and data: version and headers share one
            std::string_view both = value(row, 4);
            std::size_t space = both.find(' ');
            if (space == both.npos)
                options::fail("ev_extra4 is not \"<version> <headers>\"");
            redis.append({value(row, 0), value(row, 1), value(row, 2), value(row, 3),
                          both.substr(0, space), iso_time(value(row, 5), time),
                          both.substr(space + 1), value(row, 6)});
            if (redis.worth_a_write())
                redis.exchange();
        }
        redis.exchange();
    }
};

} // namespace

int main(int argc, char **argv) {
    options given(argc, argv, "Reads events from a PgQ queue and appends them to a Redis stream.",
                  {"conninfo", "",      "of the database",
                   "redis",    "",      "path of a unix socket, or port of 127.0.0.1",
                   "stream",   "",      "key of the stream",
                   "queue",    "bench", "the queue",
                   "consumer", "relay", "its consumer, registered",
                   "poll",     "5",     "ms between two looks for a batch",
                   "events",   "0",     "end after so many; 0: at SIGTERM"});
    struct sigaction action = {};
    action.sa_handler = [](int) { stopping = 1; };
    sigaction(SIGTERM, &action, nullptr);
    auto wanted = static_cast<std::uint64_t>(given.number("events"));
    appender redis(given.text("redis"), given.text("stream"));
    relay relay{PQconnectdb(given.text("conninfo").c_str()), redis};
    if (PQstatus(relay.postgres) != CONNECTION_OK)
        relay.fail();
    // a commit that is lost with the server is a batch sent again, so nobody waits for the log
    relay.run("SET timezone = 'UTC'; SET synchronous_commit = off");
    const std::string next =
        "SELECT pgq.next_batch('" + given.text("queue") + "', '" + given.text("consumer") + "')";

    double cpu = cpu_seconds();
    std::int64_t began = now_ns();
    std::string finish; // of the batch that is on its way to Redis
    while (!stopping && !(wanted && redis.confirmed() >= wanted)) {
        result answer = relay.run("BEGIN; " + finish + next);
        finish.clear();
        if (PQgetisnull(answer.get(), 0, 0)) {
            relay.settle();
            relay.run("COMMIT");
            if (!(wanted && redis.confirmed() >= wanted))
                poll(nullptr, 0, static_cast<int>(given.number("poll")));
            continue;
        }
        std::string id = PQgetvalue(answer.get(), 0, 0);
        result batch = relay.run("SELECT ev_extra1, ev_type, ev_extra2, ev_extra3, ev_extra4, "
                                 "ev_time, ev_data FROM pgq.get_batch_events(" +
                                 id + ")");
        relay.settle();
        relay.run("COMMIT");
        relay.append(batch.get());
        finish = "SELECT pgq.finish_batch(" + id + "); ";
        if (wanted && redis.appended() >= wanted)
            relay.settle();
    }
    relay.settle();
    if (!finish.empty())
        relay.run(finish);
    double seconds = static_cast<double>(now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    auto events = static_cast<double>(redis.confirmed());
    std::printf(R"({"events":%.0f,"seconds":%.6f,"rate":%.0f,"cpu":%.6f,"cpu_us":%.4f})"
                "\n",
                events, seconds, events / seconds, cpu, events > 0 ? cpu / events * 1e6 : 0);
    PQfinish(relay.postgres);
}

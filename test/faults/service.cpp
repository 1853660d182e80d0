// A service that consumes while faults happen: with an inbox, where its effect is a row in torture.effect, or with marks in
// Redis, where its effect is the line "end" in the journal. Both write down each start and end of a handler, and when the process
// has not run for so long that its leases may be gone:
//
//   <CLOCK_MONOTONIC ns> start|end|failed <event id> <aggregate> <version> <pid> <attempt>
//   <CLOCK_MONOTONIC ns> stalled - - <for so many ns> <pid> 0
//
//   service --redis URL --group GROUP --mode inbox|redis --conninfo CONNINFO --journal FILE --topics A,B,…
//           [--name NAME] [--claim-idle MS] [--fail PERCENT]
//
// --fail: of so many events the first attempt fails (2 by default); which ones is a matter of the event's id.
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <outbox/outbox.hpp>

#include "common/crash_point.hpp"

using namespace std::chrono_literals;

namespace {

std::map<std::string, std::string, std::less<>> words;
int journal = -1;
unsigned long fail_percent = 0;

std::string option(std::string_view name, const char *otherwise = nullptr) {
    auto found = words.find(name);
    if (found != words.end())
        return found->second;
    if (otherwise == nullptr)
        throw std::invalid_argument("--" + std::string(name) + " is missing");
    return otherwise;
}

std::string header(const outbox::event &event, const char *name) {
    auto found = event.header(name);
    if (!found)
        throw outbox::reject("an event without the header \"" + std::string(name) + "\"");
    return *found;
}

std::int64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1'000'000'000) + now.tv_nsec;
}

// In one write, so that nothing is lost or torn when the process is killed: the page cache outlives it.
void note(const char *what, const std::string &facts, int attempt) {
    std::string line = std::to_string(now_ns()) + " " + what + " " + facts + " " + std::to_string(getpid()) + " " +
                       std::to_string(attempt) + "\n";
    if (write(journal, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
        std::perror("journal");
        _exit(98);
    }
}

void note(const char *what, const outbox::event &event) {
    note(what, std::string(event.id()) + " " + header(event, "aggregate") + " " + header(event, "version"), event.attempt());
}

// A process that stands still loses its leases, and others begin what it has begun: that is right, and the machine's doing. Nothing
// of the consumer runs in this thread.
void watch_for_stalls(std::chrono::milliseconds lease) {
    const std::int64_t least = std::chrono::nanoseconds(lease).count() / 4;
    for (std::int64_t before = now_ns();;) {
        std::this_thread::sleep_for(lease / 20);
        const std::int64_t now = now_ns();
        if (now - before > least)
            note("stalled", "- - " + std::to_string(now - before), 0);
        before = now;
    }
}

void begin(const outbox::event &event) {
    note("start", event);
    const unsigned long lot = std::hash<std::string_view>()(event.id());
    if (lot % 100 < fail_percent && event.attempt() == 1) {
        note("failed", event);
        throw std::runtime_error("no luck yet");
    }
    // up to a millisecond, so that a kill has a handler to hit
    std::this_thread::sleep_for(std::chrono::microseconds(lot / 10'000 % 1000));
    OUTBOX_CRASH_POINT("before_effect");
}

void handle(const outbox::event &event) {
    begin(event);
    note("end", event);
    OUTBOX_CRASH_POINT("after_effect");
}

void handle_in_transaction(const outbox::event &event, outbox::transaction &transaction) {
    begin(event);
    const std::string id(event.id()), aggregate = header(event, "aggregate"), version = header(event, "version"),
                                      consumer = option("group");
    const char *values[] = {id.c_str(), aggregate.c_str(), version.c_str(), consumer.c_str()};
    std::unique_ptr<PGresult, decltype(&PQclear)> result(
        PQexecParams(transaction.connection(),
                     "INSERT INTO torture.effect (event_id, aggregate, version, consumer) VALUES ($1, $2, $3, $4)", 4, nullptr,
                     values, nullptr, nullptr, 0),
        PQclear);
    if (PQresultStatus(result.get()) != PGRES_COMMAND_OK) {
        note("failed", event);
        throw std::runtime_error(PQerrorMessage(transaction.connection()));
    }
    note("end", event);
    OUTBOX_CRASH_POINT("after_effect");
}

// The database may be on its way up; the consumer says itself what it misses after that.
void create_inbox(const std::string &conninfo) {
    for (int tries = 0; tries < 600; ++tries) {
        std::unique_ptr<PGconn, decltype(&PQfinish)> connection(PQconnectdb(conninfo.c_str()), PQfinish);
        try {
            if (PQstatus(connection.get()) == CONNECTION_OK) {
                PQsetNoticeProcessor(connection.get(), [](void *, const char *) {}, nullptr);
                outbox::inbox::create_schema(connection.get());
                return;
            }
        } catch (const outbox::error &) {
            // the server went away meanwhile
        }
        std::this_thread::sleep_for(100ms);
    }
}

int run(int count, char **arguments) {
    for (int i = 1; i + 1 < count; i += 2)
        words[std::string(arguments[i]).substr(2)] = arguments[i + 1];
    journal = open(option("journal").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (journal < 0)
        throw std::runtime_error("could not open " + option("journal"));
    fail_percent = std::stoul(option("fail", "2"));
    const std::string mode = option("mode");

    // Everything short, so that what follows a fault is seen within seconds, but for what would turn a slow machine into a finding.
    // Many attempts: a round ends before they do.
    outbox::consumer_options options;
    options.redis_url = option("redis");
    options.group = option("group");
    options.name = option("name", "");
    std::string topics = option("topics");
    for (std::size_t from = 0; from <= topics.size();) {
        auto to = std::min(topics.find(',', from), topics.size());
        options.topics.push_back(topics.substr(from, to - from));
        from = to + 1;
    }
    options.concurrency = 4;
    options.claim_idle = std::chrono::milliseconds(std::stol(option("claim-idle", "1000")));
    options.block = 200ms;
    options.connect_timeout = options.response_timeout = 2s;
    options.reconnect_min = 20ms;
    options.reconnect_max = 200ms;
    options.shutdown_timeout = 30s;
    options.retry = {.max_attempts = 10'000, .initial = 20ms, .max = 200ms, .multiplier = 2, .jitter = 0.2};
    if (mode == "inbox") {
        options.inbox = option("conninfo");
        options.idempotency = outbox::idempotency::none; // nothing but the inbox keeps its effects apart
        create_inbox(options.inbox);
    } else if (mode != "redis") {
        throw std::invalid_argument("--mode is inbox or redis");
    }

    outbox::consumer consumer(options);
    if (mode == "inbox")
        consumer.on_transaction("*", handle_in_transaction);
    else
        consumer.on("*", handle);
    std::thread(watch_for_stalls, options.claim_idle).detach();
    return consumer.run() ? 0 : 1;
}

} // namespace

int main(int count, char **arguments) {
    try {
        return run(count, arguments);
    } catch (const std::exception &cause) {
        std::fprintf(stderr, "service: %s\n", cause.what());
        return 2;
    }
}

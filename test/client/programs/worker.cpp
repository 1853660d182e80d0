// A consumer in a process of its own, for tests that stop it and kill it. Its options are words "name=value"; what its
// handler does is in the payload: {"n": 7, "do": "exit"}. It writes down each start and end of a handler, a line in one
// write, so that nothing of it is lost or torn whatever happens next.
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include <fcntl.h>
#include <unistd.h>

#include <outbox/outbox.hpp>

using namespace std::chrono_literals;

static std::map<std::string, std::string, std::less<>> words;
static int journal = -1;
static std::atomic<int> started{0};
static int *volatile nowhere = nullptr;

static std::string option(std::string_view name, std::string otherwise = {}) {
    auto found = words.find(name);
    return found != words.end() ? found->second : otherwise;
}

static long number(std::string_view name, long otherwise) { return std::stol(option(name, std::to_string(otherwise))); }

static void note(const char *what, const outbox::event &event) {
    std::string line = std::string(what) + " " + event.payload().at("n").dump() + " " + std::to_string(event.attempt()) + " " +
                       std::to_string(getpid()) + "\n";
    if (write(journal, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
        _exit(98);
}

// What the payload asks for: "do" in the attempts up to "upto", "then" in those after it.
static void act(const outbox::event &event) {
    const nlohmann::json &payload = event.payload();
    bool first = event.attempt() <= payload.value("upto", 1'000'000);
    std::string what = payload.value(first ? "do" : "then", "");
    // not before so many handlers have started in this process
    while (started < payload.value("beside", 0))
        std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(std::chrono::milliseconds(payload.value("ms", 0)));
    if (what == "exit")
        _exit(3);
    if (what == "segv")
        *nowhere = 1;
    if (what == "stop")
        std::raise(SIGSTOP);
    if (what == "loop")
        for (volatile bool forever = true; forever;)
            std::this_thread::yield();
    if (what == "throw")
        throw std::runtime_error("no luck");
    // until the test has made the file
    auto is_open = [] { return access((option("journal") + ".gate").c_str(), F_OK) == 0; };
    if (what == "gate")
        while (!is_open())
            std::this_thread::sleep_for(1ms);
    if (what == "fail" && !is_open())
        throw std::runtime_error("not yet");
}

static void handle(const outbox::event &event) {
    note("start", event);
    ++started;
    act(event);
    note("end", event);
}

static void handle_in_transaction(const outbox::event &event, outbox::transaction &transaction) {
    note("start", event);
    ++started;
    std::string n = event.payload().at("n").dump();
    const char *values[] = {n.c_str()};
    PGresult *result = PQexecParams(transaction.connection(), "INSERT INTO effect (n) VALUES ($1)", 1, nullptr, values, nullptr,
                                    nullptr, 0);
    bool inserted = PQresultStatus(result) == PGRES_COMMAND_OK;
    PQclear(result);
    if (!inserted)
        throw std::runtime_error(PQerrorMessage(transaction.connection()));
    act(event);
    note("end", event);
}

int main(int count, char **arguments) {
    for (int i = 1; i < count; ++i) {
        std::string word = arguments[i];
        auto sign = word.find('=');
        words[word.substr(0, sign)] = word.substr(sign + 1);
    }
    // a sanitizer's report of what a handler does on purpose is of no use to anybody
    std::signal(SIGSEGV, SIG_DFL);
    journal = open(option("journal").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    outbox::consumer_options options;
    options.redis_url = option("redis");
    options.group = option("group", "billing");
    options.name = option("name");
    options.topics = {option("topic", "wallet")};
    options.concurrency = static_cast<int>(number("concurrency", 4));
    options.idempotency = option("idempotency", "redis") == "none" ? outbox::idempotency::none : outbox::idempotency::redis;
    options.inbox = option("inbox");
    if (number("park", 0) != 0)
        options.on_poison = outbox::on_poison::park_aggregate;
    options.prefetch = static_cast<std::size_t>(number("prefetch", 256));
    options.retry = {.max_attempts = static_cast<int>(number("max_attempts", 1000)),
                     .initial = std::chrono::milliseconds(number("initial", 10)),
                     .max = std::chrono::milliseconds(number("initial", 10) * 4),
                     .multiplier = 2,
                     .jitter = 0.1};
    options.claim_idle = std::chrono::milliseconds(number("claim_idle", 600));
    options.block = 50ms;
    options.response_timeout = std::chrono::milliseconds(number("response_timeout", options.response_timeout.count()));
    options.reconnect_min = 20ms;
    options.reconnect_max = 200ms;
    options.log = [](outbox::log_level level, std::string_view message) {
        std::fprintf(stderr, "%d %s: %.*s\n", getpid(), std::string(to_string(level)).c_str(),
                     static_cast<int>(message.size()), message.data());
    };
    outbox::consumer consumer(options);
    if (options.inbox.empty())
        consumer.on("*", handle);
    else
        consumer.on_transaction("*", handle_in_transaction);
    return consumer.run() ? 0 : 1;
}

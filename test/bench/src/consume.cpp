// The client as a service would use it, with a handler that does nothing, until so many events are acknowledged. What is not
// given is the client's default.
#include "clock.hpp"
#include "options.hpp"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include <outbox/outbox.hpp>

int main(int argc, char **argv) try {
    options given(argc, argv, "Consumes the topic \"billing\" with the outbox client.",
                  {"redis", "", "URL", "group", "bench", "to be a member of", "events", "500000", "how many", "mode", "none",
                   "none: no deduplication; redis: marks in Redis; inbox: a transaction of the database that --inbox names",
                   "inbox", "", "connection string", "concurrency", "", "handlers at a time", "prefetch", "",
                   "entries that are read ahead", "seconds", "170", "after which it gives up"});
    auto events = static_cast<std::uint64_t>(given.number("events"));
    const std::string &mode = given.text("mode");
    if (mode != "none" && mode != "redis" && mode != "inbox")
        options::fail("--mode must be none, redis or inbox");

    outbox::consumer_options settings;
    settings.redis_url = given.text("redis");
    settings.group = given.text("group");
    settings.idempotency = mode == "redis" ? outbox::idempotency::redis : outbox::idempotency::none;
    settings.inbox = given.text("inbox");
    if (!given.text("concurrency").empty())
        settings.concurrency = static_cast<int>(given.number("concurrency"));
    if (!given.text("prefetch").empty())
        settings.prefetch = static_cast<std::size_t>(given.number("prefetch"));

    outbox::consumer consumer(settings);
    if (mode == "inbox") {
        std::unique_ptr<PGconn, decltype(&PQfinish)> connection(PQconnectdb(settings.inbox.c_str()), PQfinish);
        outbox::inbox::create_schema(connection.get());
    }
    if (mode == "inbox")
        consumer.on_transaction("billing.invoice.paid", [](const outbox::event &, outbox::transaction &) {});
    else
        consumer.on("billing.invoice.paid", [](const outbox::event &) {});

    // What is acknowledged is a number that somebody must look at: every millisecond.
    const double cpu_before = cpu_seconds();
    const std::int64_t began = now_ns();
    std::int64_t ended = began;
    std::mutex lock;
    std::condition_variable returned;
    bool has_returned = false;
    std::thread watch([&, most = given.number("seconds") * 1'000'000'000] {
        std::unique_lock guard(lock);
        while (!has_returned && consumer.stats().acknowledged < events && now_ns() - began < most)
            returned.wait_for(guard, std::chrono::milliseconds(1));
        ended = now_ns();
        consumer.stop();
    });
    consumer.run();
    {
        std::lock_guard guard(lock);
        has_returned = true;
    }
    returned.notify_all();
    watch.join();
    const double seconds = static_cast<double>(ended - began) / 1e9, cpu = cpu_seconds() - cpu_before;

    outbox::consumer_stats stats = consumer.stats();
    if (stats.handled != events || stats.acknowledged != events)
        options::fail("of " + std::to_string(events) + " events " + std::to_string(stats.handled) + " were handled and " +
                      std::to_string(stats.acknowledged) + " acknowledged");
    auto all = static_cast<double>(events);
    std::printf(R"({"events":%.0f,"seconds":%.6f,"rate":%.0f,"cpu":%.6f,"cpu_us":%.4f})"
                "\n",
                all, seconds, all / seconds, cpu, cpu / all * 1e6);
} catch (const std::exception &cause) {
    options::fail(cause.what());
}

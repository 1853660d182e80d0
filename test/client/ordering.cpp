// Events of one aggregate never overlap and keep their order: in a process, and between those of a group. Here the "processes"
// are consumers of one, each with connections, threads and a name of its own.
#include <map>
#include <random>

#include "consumers.hpp"

namespace outbox::test {

static const std::string wallets = "outbox:{wallet}";

// Watches handlers of the events of append_many(): of each aggregate, whether every event came after the one before it was
// finished, and none beside another.
class referee {
  public:
    // The number of the event, to be told to ended().
    std::uint64_t begun(const event &event) {
        auto number = event.payload().at("n").get<std::uint64_t>();
        std::lock_guard guard(lock_);
        aggregate &one = all_[std::string(event.aggregate_id())];
        if (one.running)
            complain("event " + std::to_string(number) + " began beside " + std::to_string(one.last));
        if (one.begun && number <= one.last && !(number == one.last && !one.finished))
            complain("event " + std::to_string(number) + " began after " + std::to_string(one.last));
        if (one.begun && number > one.last && !one.finished)
            complain("event " + std::to_string(number) + " began before " + std::to_string(one.last) + " was finished");
        one.begun = one.running = true;
        one.finished = false;
        one.last = number;
        most_ = std::max(most_, ++running_);
        return number;
    }
    void ended(const event &event, bool well) {
        std::lock_guard guard(lock_);
        aggregate &one = all_[std::string(event.aggregate_id())];
        one.running = false;
        one.finished = well;
        --running_;
        finished_ += well;
    }

    std::size_t finished() const {
        std::lock_guard guard(lock_);
        return finished_;
    }
    // How many handlers ran at once.
    int most() const {
        std::lock_guard guard(lock_);
        return most_;
    }
    // What went wrong first.
    std::vector<std::string> complaints() const {
        std::lock_guard guard(lock_);
        return complaints_;
    }

  private:
    struct aggregate {
        bool begun = false, running = false, finished = false;
        std::uint64_t last = 0;
    };
    void complain(std::string what) {
        if (complaints_.size() < 10)
            complaints_.push_back(std::move(what));
    }

    mutable std::mutex lock_;
    std::map<std::string, aggregate> all_;
    std::vector<std::string> complaints_;
    std::size_t finished_ = 0;
    int running_ = 0, most_ = 0;
};

static const std::vector<std::string> none;

// Takes up to 2 ms; fails now and then, but never the last attempt.
static auto of_random_length(referee &referee, int fails_of_100 = 0) {
    return [&referee, fails_of_100](const event &event) {
        thread_local std::minstd_rand random(std::random_device{}());
        referee.begun(event);
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
        bool well = event.attempt() >= 3 || static_cast<int>(random() % 100) >= fails_of_100;
        referee.ended(event, well);
        if (!well)
            throw std::runtime_error("now and then");
    };
}

static std::vector<std::unique_ptr<running_consumer>> some(int count, const consumer_options &options,
                                                           const std::function<void(const event &)> &handler) {
    std::vector<std::unique_ptr<running_consumer>> all;
    for (int i = 0; i < count; ++i)
        all.push_back(std::make_unique<running_consumer>(
            options, [&](consumer &to) { to.on("wallet.created", handler); }));
    return all;
}

// Gives entries to a consumer of the group that never comes back, and has been silent for longer than anybody bears.
static void read_and_die(redis_server &redis, int count, const std::string &name = "dead") {
    redis.command("XGROUP", "CREATE", wallets, "billing", "0", "MKSTREAM");
    redis_reply reply = redis.command("XREADGROUP", "GROUP", "billing", name, "COUNT", count, "STREAMS", wallets, ">");
    ASSERT_EQ(reply->type, REDIS_REPLY_ARRAY);
    const redisReply &entries = *reply->element[0]->element[1];
    for (std::size_t i = 0; i < entries.elements; ++i)
        redis.command("XCLAIM", wallets, "billing", name, 0, entries.element[i]->element[0]->str, "IDLE", 60'000, "JUSTID");
}

// in one process

TEST(Ordering, events_of_an_aggregate_keep_their_order_and_those_of_others_run_beside_them) {
    redis_server redis;
    append_many(redis, 0, 400, 5);
    referee referee;
    auto options = quick_options(redis);
    options.concurrency = 8;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", of_random_length(referee)); });
    EXPECT_TRUE(eventually([&] { return referee.finished() == 400; }));
    EXPECT_EQ(referee.complaints(), none);
    EXPECT_GT(referee.most(), 1);
    EXPECT_LE(referee.most(), 5);
}

TEST(Ordering, events_keep_their_order_without_idempotency_too) {
    redis_server redis;
    append_many(redis, 0, 400, 5);
    referee referee;
    auto options = quick_options(redis);
    options.concurrency = 8;
    options.idempotency = idempotency::none;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", of_random_length(referee, 10)); });
    EXPECT_TRUE(eventually([&] { return referee.finished() == 400; }));
    EXPECT_EQ(referee.complaints(), none);
}

TEST(Ordering, asynchronous_handlers_keep_it_until_their_tokens_have_spoken) {
    redis_server redis;
    append_many(redis, 0, 100, 3);
    referee referee;
    std::vector<std::thread> threads;
    std::mutex lock;
    auto options = quick_options(redis);
    options.concurrency = 8;
    {
        running_consumer consumer(options, [&](class consumer &to) {
            to.on("wallet.created", [&](const event &event, completion token) {
                referee.begun(event);
                std::lock_guard guard(lock);
                threads.emplace_back([&referee, token] {
                    referee.ended(token.event(), true);
                    token.done();
                });
            });
        });
        EXPECT_TRUE(eventually([&] { return referee.finished() == 100; }));
    }
    for (auto &thread : threads)
        thread.join();
    EXPECT_EQ(referee.complaints(), none);
}

TEST(Ordering, the_next_of_an_aggregate_waits_while_one_waits_for_its_retry_and_others_do_not) {
    redis_server redis;
    append_many(redis, 0, 4, 2); // 0 and 2 are of one aggregate, 1 and 3 of another
    std::atomic<bool> mended = false;
    notes handled;
    auto options = quick_options(redis);
    options.retry = {.max_attempts = 1000, .initial = 5ms, .max = 5ms};
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            if (event.payload().at("n") == 0 && !mended)
                throw std::runtime_error("not yet");
            handled.take(event.payload().at("n").dump());
        });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 2 && consumer->stats().failed > 5; }));
    EXPECT_EQ(handled.all(), (std::vector<std::string>{"1", "3"}));
    mended = true;
    ASSERT_TRUE(eventually([&] { return handled.count() == 4; }));
    EXPECT_EQ(handled.all(), (std::vector<std::string>{"1", "3", "0", "2"}));
}

TEST(Ordering, none_lets_others_pass_while_one_waits_for_its_retry) {
    redis_server redis;
    append_many(redis, 0, 4, 1);
    std::atomic<bool> mended = false;
    notes handled;
    auto options = quick_options(redis);
    options.ordering = ordering::none;
    options.retry = {.max_attempts = 1000, .initial = 5ms, .max = 5ms};
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            if (event.payload().at("n") == 0 && !mended)
                throw std::runtime_error("not yet");
            handled.take(event.payload().at("n").dump());
        });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 3; }));
    EXPECT_EQ(handled.count("0"), 0u);
    mended = true;
    EXPECT_TRUE(eventually([&] { return handled.count() == 4; }));
}

TEST(Ordering, none_runs_events_of_an_aggregate_beside_each_other) {
    redis_server redis;
    append_many(redis, 0, 3, 1);
    gate gate;
    auto options = quick_options(redis);
    options.ordering = ordering::none;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); });
    EXPECT_TRUE(eventually([&] { return gate.waiting() == 3; }));
    gate.open();
}

TEST(Ordering, events_without_an_aggregate_are_free) {
    redis_server redis;
    append_many(redis, 0, 3, 0);
    gate gate;
    running_consumer consumer(quick_options(redis),
                              [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); });
    EXPECT_TRUE(eventually([&] { return gate.waiting() == 3; }));
    gate.open();
}

TEST(Ordering, an_aggregate_is_its_type_and_its_id_within_a_topic) {
    redis_server redis;
    append(redis, {.id = event_id(1), .type = "wallet.created", .aggregate_type = "wallet", .aggregate_id = "a"});
    append(redis, {.id = event_id(2), .type = "wallet.created", .aggregate_type = "user", .aggregate_id = "a"});
    append(redis, {.id = event_id(3), .type = "user.created", .aggregate_type = "user", .aggregate_id = "a"});
    append(redis, {.id = event_id(4), .type = "wallet.changed", .aggregate_type = "wallet", .aggregate_id = "a"}); // waits
    gate gate;
    notes begun;
    auto options = quick_options(redis);
    options.concurrency = 8;
    running_consumer consumer(options, [&](class consumer &to) {
        auto handler = [&](const event &event) {
            begun.take(std::string(event.id()));
            gate.pass();
        };
        to.on("wallet.*", handler).on("user.*", handler);
    });
    // whatever runs beside the first one of the wallet
    EXPECT_TRUE(eventually([&] { return consumer->stats().read == 4 && begun.count() >= 3; }));
    EXPECT_EQ(begun.count(event_id(4)), 0u);
    gate.open();
    EXPECT_TRUE(eventually([&] { return begun.count() == 4; }));
}

// between the processes of a group

class Group : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ordering, Group, ::testing::Values(2, 4));

TEST_P(Group, keeps_the_order_of_an_aggregate) {
    redis_server redis;
    append_many(redis, 0, 300, 6);
    referee referee;
    auto options = quick_options(redis);
    options.prefetch = 16; // so that each gets some
    auto consumers = some(GetParam(), options, of_random_length(referee));
    append_many(redis, 300, 300, 6);
    // until each had its share: one of them may come late
    std::uint64_t appended = 600;
    EXPECT_TRUE(eventually([&] {
        bool all = std::all_of(consumers.begin(), consumers.end(), [](auto &one) { return (*one)->stats().handled > 0; });
        if (!all && referee.finished() == appended) {
            append_many(redis, appended, 60, 6);
            appended += 60;
        }
        return all && referee.finished() == appended;
    }));
    EXPECT_EQ(referee.complaints(), none);
}

TEST_P(Group, keeps_it_with_retries_in_between) {
    redis_server redis;
    append_many(redis, 0, 400, 6);
    referee referee;
    auto options = quick_options(redis);
    options.prefetch = 16;
    auto consumers = some(GetParam(), options, of_random_length(referee, 20));
    EXPECT_TRUE(eventually([&] { return referee.finished() == 400; }));
    EXPECT_EQ(referee.complaints(), none);
}

TEST_P(Group, keeps_it_without_idempotency) {
    redis_server redis;
    append_many(redis, 0, 400, 6);
    referee referee;
    auto options = quick_options(redis);
    options.prefetch = 16;
    options.idempotency = idempotency::none;
    auto consumers = some(GetParam(), options, of_random_length(referee, 20));
    EXPECT_TRUE(eventually([&] { return referee.finished() == 400; }));
    EXPECT_EQ(referee.complaints(), none);
}

TEST_P(Group, keeps_it_when_entries_of_the_dead_are_taken_over) {
    redis_server redis;
    append_many(redis, 0, 400, 6);
    // two died; what lies between theirs, and behind, is free to be read
    read_and_die(redis, 30);
    read_and_die(redis, 30, "dead, too");
    referee referee;
    auto options = quick_options(redis);
    options.claim_idle = 8s; // there is no room for all of them at once
    options.prefetch = 32;
    auto consumers = some(GetParam(), options, of_random_length(referee, 10));
    EXPECT_TRUE(eventually([&] { return referee.finished() == 400; }));
    EXPECT_EQ(referee.complaints(), none);
    std::uint64_t claimed = 0;
    for (auto &consumer : consumers)
        claimed += (*consumer)->stats().claimed;
    EXPECT_EQ(claimed, 60u);
}

TEST_P(Group, keeps_it_while_processes_come_and_go) {
    redis_server redis;
    referee referee;
    auto options = quick_options(redis);
    options.claim_idle = 4s; // a quarter of which it takes to find what was handed over
    options.prefetch = 16;
    auto handler = of_random_length(referee, 10);
    auto consumers = some(GetParam(), options, handler);
    std::minstd_rand random(1);
    std::uint64_t appended = 0;
    for (int round = 0; round < 8; ++round) {
        append_many(redis, appended, 60, 6);
        appended += 60;
        // in the middle of it one hands over what it has
        ASSERT_TRUE(eventually([&] { return referee.finished() >= appended - 40; }));
        auto &leaving = consumers[random() % consumers.size()];
        EXPECT_TRUE(leaving->stop());
        leaving = std::move(some(1, options, handler)[0]);
    }
    EXPECT_TRUE(eventually([&] { return referee.finished() == appended; }));
    EXPECT_EQ(referee.complaints(), none);
}

TEST(Ordering, another_consumers_event_is_waited_for) {
    redis_server redis;
    append_many(redis, 0, 4, 2);
    read_and_die(redis, 1, "other"); // has the first of aggregate 0
    notes handled;
    auto options = quick_options(redis);
    options.claim_idle = 1h;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(event.payload().at("n").dump()); });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 2; }));
    EXPECT_EQ(handled.all(), (std::vector<std::string>{"1", "3"}));
    EXPECT_TRUE(eventually([&] { return consumer->stats().held == 1; }));
    // the other is through with it
    redis_reply oldest = redis.command("XPENDING", wallets, "billing", "-", "+", "1", "other");
    redis.command("XACK", wallets, "billing", std::string(oldest->element[0]->element[0]->str));
    ASSERT_TRUE(eventually([&] { return handled.count() == 3; }));
    EXPECT_EQ(handled.all().back(), "2");
}

TEST(Ordering, entries_of_the_dead_are_taken_over_also_when_all_that_is_read_ahead_waits) {
    redis_server redis;
    append(redis, {.id = event_id(1), .aggregate_id = "a"});
    read_and_die(redis, 1);
    append(redis, {.id = event_id(2), .type = "wallet.bad", .aggregate_id = "b"});
    for (std::uint64_t n = 3; n < 10; ++n)
        append(redis, {.id = event_id(n), .aggregate_id = "a"});
    auto options = quick_options(redis);
    options.claim_idle = 600ms;
    options.prefetch = 4;
    options.retry.initial = options.retry.max = 1h;
    notes handled;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.bad", [](const event &) { throw std::runtime_error("not now"); });
        to.on("wallet.created", [&](const event &event) { handled.take(std::string(event.id())); });
    });
    EXPECT_TRUE(eventually([&] { return handled.count() == 8; }));
    EXPECT_EQ(handled.all().at(0), event_id(1));
}

TEST(Ordering, an_event_that_goes_from_hand_to_hand_is_waited_for_all_the_same) {
    redis_server redis;
    append_many(redis, 0, 2, 1);
    append_many(redis, 100, 200, 0);
    read_and_die(redis, 1, "one");
    redis_reply oldest = redis.command("XPENDING", wallets, "billing", "-", "+", "1", "one");
    std::string id = oldest->element[0]->element[0]->str;
    notes handled;
    auto options = quick_options(redis);
    options.claim_idle = 1h;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            if (!event.aggregate_id().empty())
                handled.take(event.payload().at("n").dump());
        });
    });
    // each look at what others have falls between two hands some time
    long long looks = executed(redis, "xpending");
    while (executed(redis, "xpending") < looks + 300) {
        for (int i = 0; i < 100; ++i)
            redis.command("XCLAIM", wallets, "billing", i % 2 == 0 ? "two" : "one", "0", id, "JUSTID");
        ASSERT_EQ(handled.count(), 0u);
    }
    redis.command("XACK", wallets, "billing", id);
    EXPECT_TRUE(eventually([&] { return handled.count("1") == 1; }));
}

} // namespace outbox::test

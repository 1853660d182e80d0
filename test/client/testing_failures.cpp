// The in-memory broker: retries, dead letters, and aggregates that are parked behind them.
#include "testing.hpp"

namespace outbox::test {

// retries and dead letters

TEST_F(Testing, AFailedEventIsTriedAgainWhenItsTimeHasCome) {
    consumer consumer(options(), broker_);
    std::vector<int> attempts;
    consumer.on("wallet.created", [&](const event &event) {
        attempts.push_back(event.attempt());
        if (event.attempt() < 3)
            throw std::runtime_error("not yet");
    });
    publish("a");
    consumer.run();
    EXPECT_EQ(attempts, std::vector<int>{1});
    EXPECT_EQ(broker_.until_next_retry(), 100ms) << "the policy's delay, without jitter";
    broker_.advance(99ms);
    consumer.run();
    EXPECT_EQ(attempts, std::vector<int>{1});
    EXPECT_EQ(consumer.stats().waiting_retry, 1u);
    broker_.advance(1ms);
    consumer.run();
    EXPECT_EQ(attempts, (std::vector<int>{1, 2}));
    EXPECT_EQ(broker_.until_next_retry(), 200ms);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u);
    broker_.advance(1h);
    EXPECT_EQ(broker_.until_next_retry(), 0ms) << "overdue";
    consumer.run();
    EXPECT_EQ(attempts, (std::vector<int>{1, 2, 3}));
    EXPECT_EQ(broker_.until_next_retry(), std::nullopt);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    auto stats = consumer.stats();
    EXPECT_EQ(stats.read, 1u);
    EXPECT_EQ(stats.handled, 1u);
    EXPECT_EQ(stats.failed, 2u);
    EXPECT_EQ(stats.retried, 2u);
    EXPECT_EQ(stats.acknowledged, 1u);
    EXPECT_EQ(stats.held, 0u);
    EXPECT_EQ(stats.dead_lettered, 0u);
}

TEST_F(Testing, AnEventThatFailsTooOftenIsADeadLetterWithAllThatIsKnown) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting({"a"}));
    auto id = publish("a", "w1");
    while (consumer.run() && broker_.until_next_retry())
        broker_.advance(*broker_.until_next_retry());
    EXPECT_EQ(seen(), (texts{"a", "a", "a"}));
    ASSERT_EQ(dead().size(), 1u);
    auto letter = dead().at(0);
    EXPECT_EQ(letter.topic, "wallet");
    EXPECT_EQ(letter.position, "946684800000-0");
    EXPECT_EQ(letter.stream, "outbox:{wallet}");
    EXPECT_EQ(letter.error, "a failed");
    EXPECT_EQ(letter.consumer, "only");
    EXPECT_EQ(letter.attempts, 3);
    EXPECT_EQ(letter.died_at, broker_.now());
    EXPECT_EQ(letter.parked, 0u);
    EXPECT_EQ(letter.fields.size(), 8u);
    EXPECT_EQ(letter.fields.front(), std::pair(std::string("event_id"), id));
    EXPECT_EQ(letter.field("aggregate_id"), "w1");
    EXPECT_EQ(letter.field("payload"), R"({"name":"a"})");
    EXPECT_EQ(consumer.stats().dead_lettered, 1u);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    EXPECT_TRUE(dead("mail").empty());
}

TEST_F(Testing, ARejectedEventIsADeadLetterAtOnce) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [](const event &) { throw reject("nobody knows this wallet"); });
    publish("a");
    consumer.run();
    EXPECT_EQ(error_of_the_dead(), "nobody knows this wallet");
    EXPECT_EQ(dead().at(0).attempts, 1);
}

TEST_F(Testing, AHandlerMaySayWhenItIsTriedAgain) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [](const event &event) { throw retry_after(event.attempt() * 10min, "the bank is closed"); });
    publish("a");
    consumer.run();
    EXPECT_EQ(broker_.until_next_retry(), 10min);
    broker_.advance(10min);
    consumer.run();
    EXPECT_EQ(broker_.until_next_retry(), 20min);
    broker_.advance(20min);
    consumer.run();
    EXPECT_EQ(error_of_the_dead(), "the bank is closed") << "the attempts count";
}

TEST_F(Testing, ADelayOfNoEndOverflowsNothing) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [](const event &) { throw retry_after(std::chrono::milliseconds::max(), "never"); });
    publish("a");
    consumer.run();
    EXPECT_GT(broker_.until_next_retry(), std::chrono::years(90));
}

TEST_F(Testing, RetriesWithoutDelayAreMadeInTheSameRun) {
    auto some = options();
    some.retry.initial = 0ms;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting({"a"}));
    publish("a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "a", "a"}));
    EXPECT_EQ(dead().size(), 1u);
}

TEST_F(Testing, AClockThatAHandlerMovesIsBelieved) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [this](const event &event) {
        seen_.push_back(name_of(event));
        broker_.advance(1s); // it takes that long
        if (event.attempt() == 1)
            throw std::runtime_error("failed");
    });
    publish("a");
    publish("b");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "b", "a", "b"}));
}

TEST_F(Testing, ARedrivenEventBeginsAnew) {
    consumer consumer(options(), broker_);
    bool mended = false;
    std::vector<std::pair<int, std::string>> attempts;
    consumer.on("wallet.created", [&](const event &event) {
        attempts.emplace_back(event.attempt(), event.position());
        if (!mended)
            throw reject("broken");
    });
    publish("a");
    consumer.run();
    ASSERT_EQ(dead().size(), 1u);
    EXPECT_FALSE(broker_.redrive("wallet", "billing", "1-1"));
    EXPECT_FALSE(broker_.redrive("wallet", "billing", "nonsense"));
    EXPECT_FALSE(broker_.redrive("wallet", "mail", dead().at(0).id));

    ASSERT_TRUE(broker_.redrive("wallet", "billing", dead().at(0).id));
    EXPECT_TRUE(dead().empty());
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u);
    consumer.run();
    ASSERT_EQ(dead().size(), 1u) << "it died again";
    EXPECT_EQ(dead().at(0).stream, "outbox:{wallet}:redrive:billing");
    EXPECT_EQ(dead().at(0).position, "946684800000-0") << "where it was at first";
    EXPECT_EQ(dead().at(0).fields.size(), 8u);

    mended = true;
    ASSERT_TRUE(broker_.redrive("wallet", "billing", dead().at(0).id));
    consumer.run();
    EXPECT_TRUE(dead().empty());
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    EXPECT_EQ(attempts, (std::vector<std::pair<int, std::string>>(3, {1, "946684800000-0"})));
}

TEST_F(Testing, OnlyTheGroupThatLostAnEventSeesItAgain) {
    consumer billing(options("billing"), broker_), mail(options("mail"), broker_);
    billing.on("wallet.created", [](const event &) { throw reject("broken"); });
    mail.on("wallet.created", noting());
    publish("a");
    billing.run();
    mail.run();
    broker_.redrive("wallet", "billing", dead().at(0).id);
    mail.run();
    EXPECT_EQ(seen(), texts{"a"});
}

TEST_F(Testing, ADiscardedEventIsGone) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [](const event &) { throw reject("broken"); });
    publish("a");
    consumer.run();
    auto id = dead().at(0).id;
    EXPECT_FALSE(broker_.discard("wallet", "mail", id));
    EXPECT_TRUE(broker_.discard("wallet", "billing", id));
    EXPECT_FALSE(broker_.discard("wallet", "billing", id));
    EXPECT_FALSE(broker_.redrive("wallet", "billing", id));
    EXPECT_TRUE(dead().empty());
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
}

TEST_F(Testing, ADeadLetterIsLoggedAndSoIsARetry) {
    auto some = options();
    texts lines;
    some.log = [&](log_level level, std::string_view message) { lines.push_back(std::string(to_string(level)) + ": " + std::string(message)); };
    some.retry.max_attempts = 2;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting({"a"}));
    auto id = publish("a");
    consumer.run();
    broker_.advance(1s);
    consumer.run();
    EXPECT_EQ(lines, (texts{"info: wallet.created " + id + " failed in attempt 1 of 2, again in 100 ms: a failed",
                            "warning: moved wallet.created at 946684800000-0 of outbox:{wallet} to the dead letters after 2 "
                            "attempts: a failed"}));
}

// parked aggregates

class TestingParked : public Testing {
  protected:
    // A handler that notes the event's name, and rejects those of these names.
    auto rejecting() {
        return [this](const event &event) {
            seen_.push_back(name_of(event));
            if (broken_.contains(seen_.back()))
                throw reject("broken");
        };
    }
    std::set<std::string> broken_ = {"a1"};
};

TEST_F(TestingParked, AnAggregateIsParkedBehindItsDeadLetterAndOthersFlow) {
    consumer consumer(parking(), broker_);
    consumer.on("wallet.created", rejecting());
    for (auto [name, aggregate] : {std::pair("a1", "a"), {"a2", "a"}, {"b1", "b"}, {"a3", "a"}, {"free", ""}})
        publish(name, aggregate);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "b1", "free"}));
    ASSERT_EQ(dead().size(), 1u);
    EXPECT_EQ(dead().at(0).parked, 2u);
    EXPECT_EQ(consumer.stats().parked, 2u);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    publish("a4", "a");
    consumer.run();
    EXPECT_EQ(seen(), texts{});
    EXPECT_EQ(dead().at(0).parked, 3u);
}

TEST_F(TestingParked, ARedriveReleasesThemInOrderBeforeWhatIsNew) {
    consumer consumer(parking(), broker_);
    consumer.on("wallet.created", rejecting());
    for (const char *name : {"a1", "a2", "a3"})
        publish(name, "a");
    consumer.run();
    broken_.clear();
    publish("a4", "a");
    ASSERT_TRUE(broker_.redrive("wallet", "billing", dead().at(0).id));
    publish("a5", "a");
    EXPECT_EQ(broker_.pending("wallet", "billing"), 5u);
    seen();
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2", "a3", "a4", "a5"}));
    EXPECT_TRUE(dead().empty());
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    publish("a6", "a");
    consumer.run();
    EXPECT_EQ(seen(), texts{"a6"});
}

TEST_F(TestingParked, WhatIsReleasedComesInHoweverMuchWaitsForIt) {
    auto narrow = parking();
    narrow.prefetch = 1;
    consumer consumer(narrow, broker_);
    consumer.on("wallet.created", rejecting());
    publish("a1", "a");
    publish("a2", "a");
    consumer.run();
    broken_.clear();
    publish("a3", "a");
    broker_.redrive("wallet", "billing", dead().at(0).id);
    seen();
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2", "a3"}));
}

TEST_F(TestingParked, WhatIsReleasedKeepsItsPositionAndFields) {
    consumer consumer(parking(), broker_);
    texts positions;
    bool broken = true;
    consumer.on("wallet.created", [&](const event &event) {
        positions.emplace_back(event.position());
        if (broken)
            throw reject("broken");
    });
    publish("a1", "a");
    publish("a2", "a");
    consumer.run();
    broken = false;
    broker_.redrive("wallet", "billing", dead().at(0).id);
    broker_.advance(1s);
    consumer.run();
    EXPECT_EQ(positions, (texts{"946684800000-0", "946684800000-0", "946684800000-1"}));
}

TEST_F(TestingParked, OneThatDiesAgainParksTheRestAgain) {
    consumer consumer(parking(), broker_);
    consumer.on("wallet.created", rejecting());
    for (const char *name : {"a1", "a2", "a3"})
        publish(name, "a");
    consumer.run();
    broker_.redrive("wallet", "billing", dead().at(0).id);
    publish("a4", "a");
    seen();
    consumer.run();
    EXPECT_EQ(seen(), texts{"a1"});
    ASSERT_EQ(dead().size(), 1u);
    EXPECT_EQ(dead().at(0).parked, 3u);
    EXPECT_EQ(dead().at(0).stream, "outbox:{wallet}:redrive:billing");

    broken_ = {"a3"};
    broker_.redrive("wallet", "billing", dead().at(0).id);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2", "a3"}));
    ASSERT_EQ(dead().size(), 1u);
    EXPECT_EQ(dead().at(0).position, "946684800000-2");
    EXPECT_EQ(dead().at(0).parked, 1u);

    broken_.clear();
    broker_.redrive("wallet", "billing", dead().at(0).id);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a3", "a4"}));
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
}

TEST_F(TestingParked, DiscardingReleasesWhatIsBehind) {
    consumer consumer(parking(), broker_);
    consumer.on("wallet.created", rejecting());
    for (const char *name : {"a1", "a2", "a3"})
        publish(name, "a");
    consumer.run();
    ASSERT_TRUE(broker_.discard("wallet", "billing", dead().at(0).id));
    publish("a4", "a");
    seen();
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a2", "a3", "a4"}));
    EXPECT_TRUE(dead().empty());
}

TEST_F(TestingParked, DiscardingOneWithNothingBehindItLetsTheAggregateGoOn) {
    consumer consumer(parking(), broker_);
    consumer.on("wallet.created", rejecting());
    publish("a1", "a");
    consumer.run();
    ASSERT_TRUE(broker_.discard("wallet", "billing", dead().at(0).id));
    publish("a2", "a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2"}));
}

TEST_F(TestingParked, OthersWaitWhileWhatWasReleasedWaitsForItsRetry) {
    auto narrow = parking();
    narrow.prefetch = 1;
    narrow.on_unhandled = on_unhandled::dead_letter;
    consumer first(narrow, broker_), second(parking(), broker_);
    bool failing = false;
    first.on("wallet.created", [&](const event &event) {
        seen_.push_back(name_of(event));
        if (broken_.contains(seen_.back()))
            throw reject("broken");
        if (name_of(event) == "busy")
            throw retry_after(1h, "later");
        if (std::exchange(failing, false))
            throw std::runtime_error("failed");
    });
    second.on("wallet.*", noting());
    publish("a1", "a");
    publish("a2", "a", "wallet.closed");
    publish("a3", "a");
    first.run();
    ASSERT_EQ(dead().size(), 2u) << "nothing parks what nobody handles";
    publish("busy"); // the first has no room for anything new
    first.run();
    publish("a4", "a");
    auto letters = dead();
    broken_.clear();
    failing = true;
    broker_.redrive("wallet", "billing", letters[0].id);
    first.run();
    EXPECT_EQ(seen(), (texts{"a1", "busy", "a1"}));
    second.run();
    EXPECT_EQ(seen(), texts{}) << "what was published before";
    broker_.redrive("wallet", "billing", letters[1].id);
    publish("a5", "a");
    second.run();
    EXPECT_EQ(seen(), texts{}) << "what was redriven since, and what is new";
    broker_.advance(100ms);
    second.run();
    first.run();
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "a3", "a2", "a4", "a5"}));
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u) << "that is busy";
}

} // namespace outbox::test

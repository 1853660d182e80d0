// Handlers on the in-memory broker, as the author of a service tests them; and what the broker says of itself.
#include <outbox/testing.hpp>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <outbox/outbox.hpp>

namespace outbox::test {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using texts = std::vector<std::string>;

struct user_created {
    static constexpr std::string_view event_type = "identity.user.created";
    static constexpr int version = 2;
    std::string user_id;
};
void from_json(const json &from, user_created &user) { from.at("user_id").get_to(user.user_id); }

class Testing : public ::testing::Test {
  protected:
    static consumer_options options(std::string group = "billing") {
        consumer_options result;
        result.group = std::move(group);
        result.name = "only";
        result.retry = {.max_attempts = 3, .initial = 100ms, .max = 1min, .multiplier = 2, .jitter = 0.2};
        result.log = nullptr;
        return result;
    }

    static consumer_options parking() {
        auto result = options();
        result.on_poison = on_poison::park_aggregate;
        return result;
    }

    // An event with a name in its payload, of an aggregate or of none.
    std::string publish(const std::string &name, const std::string &aggregate = {}, const std::string &type = "wallet.created") {
        return broker_.publish({.type = type, .payload = {{"name", name}}, .aggregate_id = aggregate, .aggregate_type = "wallet"});
    }

    static std::string name_of(const event &event) { return event.payload().at("name"); }

    // A handler that notes the event's name, and throws for those of these names.
    auto noting(texts failing = {}) {
        return [this, failing = std::move(failing)](const event &event) {
            seen_.push_back(name_of(event));
            for (const auto &name : failing)
                if (name == seen_.back())
                    throw std::runtime_error(name + " failed");
        };
    }

    // What was noted since the last call.
    texts seen() { return std::exchange(seen_, {}); }

    std::vector<dead_letter> dead(std::string_view group = "billing") const { return broker_.dead("wallet", group); }
    std::string error_of_the_dead() const { return dead().size() == 1 ? dead().at(0).error : "not one dead letter"; }

    outbox::testing::broker broker_;
    texts seen_;
};

// the broker

TEST_F(Testing, AnEventIsHandledWithAllThatWasPublished) {
    consumer consumer(options(), broker_);
    int handled = 0;
    consumer.on("wallet.created", [&](const event &event) {
        ++handled;
        EXPECT_EQ(event.id(), "01a1fd51-24fc-713f-8abb-bbffb042aade");
        EXPECT_EQ(event.type(), "wallet.created");
        EXPECT_EQ(event.aggregate_type(), "wallet");
        EXPECT_EQ(event.aggregate_id(), "b67b7c40");
        EXPECT_EQ(event.version(), 3);
        EXPECT_EQ(event.occurred_at_text(), "2026-11-21T07:55:15.964060Z");
        EXPECT_EQ(event.header("tenant"), "a");
        EXPECT_EQ(event.payload_text(), R"({"owner":"Zoë"})");
        EXPECT_EQ(event.topic(), "wallet");
        EXPECT_EQ(event.position(), "946684800000-0");
        EXPECT_EQ(event.attempt(), 1);
    });
    EXPECT_EQ(broker_.publish({.type = "wallet.created",
                               .payload = {{"owner", "Zoë"}},
                               .aggregate_id = "b67b7c40",
                               .aggregate_type = "wallet",
                               .version = 3,
                               .headers = {{"tenant", "a"}},
                               .occurred_at = "2026-11-21T08:55:15.96406+01:00",
                               .id = "01A1FD51-24FC-713F-8ABB-BBFFB042AADE"}),
              "01a1fd51-24fc-713f-8abb-bbffb042aade");
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(handled, 1);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
}

TEST_F(Testing, WhatIsLeftEmptyIsAsTheDatabaseWouldFillItIn) {
    consumer consumer(options(), broker_);
    texts ids;
    consumer.on("wallet.created", [&](const event &event) {
        ids.emplace_back(event.id());
        EXPECT_EQ(event.occurred_at_text(), "2000-01-01T00:00:01.500000Z");
        EXPECT_EQ(event.occurred_at(), broker_.now());
        EXPECT_EQ(event.version(), 1);
        EXPECT_EQ(event.payload_text(), "null");
        EXPECT_EQ(event.headers_text(), "");
        EXPECT_EQ(event.aggregate_id(), "");
    });
    broker_.advance(1500ms);
    texts published = {broker_.publish({.type = "wallet.created"}), broker_.publish({.type = "wallet.created"})};
    EXPECT_NE(published[0], published[1]);
    EXPECT_EQ(published[0].substr(0, 19), "00dc6acf-b1dc-7000-") << "the time, and version 7";
    consumer.run();
    EXPECT_EQ(ids, published);
}

TEST_F(Testing, WhatTheOutboxWouldRefuseIsRefused) {
    EXPECT_THROW(broker_.publish({.type = "wallet"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .deliver_at = "2030-01-01T00:00:00Z"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .dedupe_key = "a"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet..created"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = std::string(101, 'w') + ".created"}), std::invalid_argument) << "no topic";
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .topic = "a b"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .version = 0}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .id = "42"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .payload = "\xff"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .aggregate_id = "\xff"}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .aggregate_id = std::string(1, '\0')}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .aggregate_type = std::string(1001, 'a')}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .headers = json::array()}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .headers = {{"a", {{"b", 1}}}}}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .headers = {{"a", std::string(1, '\0')}}}), std::invalid_argument);
    EXPECT_THROW(broker_.publish({.type = "wallet.created", .headers = {{"a", std::string(65536, 'a')}}}), std::invalid_argument);
    for (const char *time : {"yesterday", "2026-11-21", "2026-13-21T08:55:15Z", "2026-11-21T08:55:15", "2026-11-21T08:55:15+1:00",
                             "2026-11-21T08:55:15+24:00", "2026-11-21T08:55:15.Z", "0001-01-01T00:00:00+00:01",
                             "9999-12-31T23:59:59-00:01"})
        EXPECT_THROW(broker_.publish({.type = "wallet.created", .occurred_at = time}), std::invalid_argument) << time;
    EXPECT_THROW(broker_.publish_raw("a b", {{"a", "b"}}), std::invalid_argument);
    EXPECT_THROW(broker_.publish_raw("wallet", {}), std::invalid_argument);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
}

TEST_F(Testing, TheClockMovesOnlyWhereItIsMoved) {
    auto start = std::chrono::sys_days(std::chrono::year(2000) / 1 / 1);
    EXPECT_EQ(broker_.now(), start);
    broker_.advance(90min);
    EXPECT_EQ(broker_.now(), start + 90min);
    EXPECT_THROW(broker_.advance(-1ms), std::invalid_argument);
    EXPECT_EQ(broker_.now(), start + 90min);
}

TEST_F(Testing, AGroupBeginsAtTheBeginningOfTheStreams) {
    publish("a");
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u) << "before the group is there";
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting());
    publish("b");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "b"}));
    EXPECT_EQ(consumer.stats().groups_created, 2u) << "on the topic's stream and the redrive stream";
}

TEST_F(Testing, AGroupBeginsWhereItsOptionsSay) {
    publish("a");
    publish("b");
    auto some = options();
    some.start = "946684800000-0";
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting());
    consumer.run();
    EXPECT_EQ(seen(), texts{"b"});
}

TEST_F(Testing, EachGroupGetsEveryEvent) {
    consumer billing(options("billing"), broker_), mail(options("mail"), broker_);
    billing.on("wallet.created", noting());
    mail.on("wallet.created", noting());
    publish("a");
    billing.run();
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    EXPECT_EQ(broker_.pending("wallet", "mail"), 1u);
    mail.run();
    EXPECT_EQ(seen(), (texts{"a", "a"}));
}

TEST_F(Testing, EventsOfSeveralTopicsComeInTheOrderInWhichTheyWerePublished) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting()).on("billing.*", noting());
    publish("1");
    publish("2", "", "billing.paid");
    publish("3");
    publish("4", "", "billing.invoice.paid");
    broker_.publish({.type = "wallet.created", .payload = {{"name", "elsewhere"}}, .topic = "money"});
    consumer.run();
    EXPECT_EQ(seen(), (texts{"1", "2", "3", "4"}));
}

TEST_F(Testing, AConsumerWithoutHandlersOrTopicsIsRefused) {
    consumer none(options(), broker_);
    EXPECT_THROW(none.run(), std::invalid_argument);
    consumer anywhere(options(), broker_);
    anywhere.on("*", noting());
    EXPECT_THROW(anywhere.run(), std::invalid_argument);
    auto bad = options();
    bad.concurrency = 0;
    EXPECT_THROW(consumer(bad, broker_), std::invalid_argument);
}

TEST_F(Testing, WhatAHandlerPublishesIsHandledInTheSameRun) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [this](const event &event) {
        seen_.push_back(name_of(event));
        publish("paid", "", "wallet.paid");
    });
    consumer.on("wallet.paid", noting());
    publish("created");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"created", "paid"}));
}

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

// order

TEST_F(Testing, EventsOfAnAggregateWaitWhileAnEarlierOneDoes) {
    consumer consumer(options(), broker_);
    bool failing = true;
    consumer.on("wallet.created", [&](const event &event) {
        seen_.push_back(name_of(event));
        if (name_of(event) == "a1" && std::exchange(failing, false))
            throw std::runtime_error("failed");
    });
    publish("a1", "a");
    publish("a2", "a");
    publish("b1", "b");
    publish("free");
    publish("a3", "a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "b1", "free"}));
    publish("a4", "a");
    consumer.run();
    EXPECT_EQ(seen(), texts{});
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2", "a3", "a4"}));
}

TEST_F(Testing, AnAggregateGoesOnWithoutADeadLetter) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [this](const event &event) {
        seen_.push_back(name_of(event));
        if (name_of(event) == "a1")
            throw reject("broken");
    });
    publish("a1", "a");
    publish("a2", "a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2"}));
    EXPECT_EQ(dead().size(), 1u);
}

TEST_F(Testing, WithoutOrderingOthersPass) {
    auto some = options();
    some.ordering = ordering::none;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting({"a1"}));
    publish("a1", "a");
    publish("a2", "a");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2"}));
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), texts{"a1"});
}

// consumers of one group

TEST_F(Testing, ConsumersOfAGroupShareItsEvents) {
    consumer first(options(), broker_), second(options(), broker_);
    first.on("wallet.created", noting());
    second.on("wallet.created", noting());
    publish("a");
    first.run();
    second.run();
    EXPECT_EQ(seen(), texts{"a"});
    publish("b");
    second.run();
    first.run();
    EXPECT_EQ(seen(), texts{"b"});
    EXPECT_EQ(first.stats().handled, 1u);
    EXPECT_EQ(second.stats().handled, 1u);
    EXPECT_EQ(second.stats().groups_created, 0u);
}

TEST_F(Testing, TheOrderOfAnAggregateHoldsAcrossConsumersOfAGroup) {
    consumer first(options(), broker_), second(options(), broker_);
    bool failing = true;
    first.on("wallet.created", [&](const event &event) {
        seen_.push_back(name_of(event));
        if (std::exchange(failing, false))
            throw std::runtime_error("failed");
    });
    second.on("wallet.created", noting());
    publish("a1", "a");
    first.run();
    publish("a2", "a");
    publish("b1", "b");
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "b1"})) << "a2 is with the second, and waits for the first";
    broker_.advance(100ms);
    second.run();
    EXPECT_EQ(seen(), texts{});
    first.run();
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2"}));
}

TEST_F(Testing, WhatAStoppedConsumerHoldsGoesToTheOthers) {
    consumer first(options(), broker_), second(options(), broker_);
    std::vector<int> attempts;
    auto fails_at_first = [&](const event &event) {
        attempts.push_back(event.attempt());
        if (event.attempt() == 1)
            throw std::runtime_error("failed");
    };
    first.on("wallet.created", fails_at_first);
    second.on("wallet.created", fails_at_first);
    publish("a", "a");
    first.run();
    second.run();
    EXPECT_EQ(attempts, std::vector<int>{1});
    first.stop();
    EXPECT_EQ(broker_.until_next_retry(), std::nullopt);
    second.run();
    EXPECT_EQ(attempts, (std::vector<int>{1, 2})) << "at once, and with the attempts so far";
    EXPECT_EQ(second.stats().claimed, 1u);
    EXPECT_TRUE(first.run()) << "it does nothing any more";
    EXPECT_EQ(first.stats().held, 0u);
}

TEST_F(Testing, WhatAConsumerHeldThatIsGoneGoesToTheOthersInOrder) {
    consumer second(options(), broker_);
    second.on("wallet.created", noting());
    {
        consumer first(options(), broker_);
        first.on("wallet.created", noting({"a1"}));
        publish("a1", "a");
        publish("a2", "a");
        first.run();
        publish("a3", "a");
        second.run();
        EXPECT_EQ(seen(), texts{"a1"});
    }
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "a2", "a3"}));
}

TEST_F(Testing, WhatIsGivenBackIsTakenOverByOneWhoIsFull) {
    auto narrow = options();
    narrow.prefetch = 1;
    consumer first(narrow, broker_), second(narrow, broker_);
    first.on("wallet.created", noting({"a1"}));
    second.on("wallet.created", noting());
    publish("a1", "a");
    publish("a2", "a");
    first.run();
    second.run();
    first.stop();
    second.run();
    EXPECT_EQ(seen(), (texts{"a1", "a1", "a2"}));
}

TEST_F(Testing, StopLetsTheRunningHandlerFinishAndNoOtherStart) {
    consumer first(options(), broker_), second(options(), broker_);
    first.on("wallet.created", [&](const event &event) {
        first.stop();
        seen_.push_back(name_of(event));
    });
    second.on("wallet.created", noting());
    publish("a");
    publish("b");
    EXPECT_TRUE(first.run());
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u);
    first.run();
    EXPECT_EQ(seen(), texts{});
    second.run();
    EXPECT_EQ(seen(), texts{"b"});
}

TEST_F(Testing, AConsumerThatIsStoppedBeforeItRunsDoesNothing) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting());
    publish("a");
    consumer.stop();
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(seen(), texts{});
}

// which handler

TEST_F(Testing, TheMostLiteralPatternWins) {
    consumer consumer(options(), broker_);
    auto as = [this](std::string name) { return [this, name](const event &) { seen_.push_back(name); }; };
    consumer.on("wallet.*", as("wallet.*"))
        .on("wallet.*.paid", as("wallet.*.paid"))
        .on("wallet.created", as("wallet.created"));
    EXPECT_THROW(consumer.on("wallet.*", noting()), std::invalid_argument);
    for (const char *type : {"wallet.created", "wallet.closed", "wallet.fee.paid", "wallet.fee.waived"})
        publish("", "", type);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"wallet.created", "wallet.*", "wallet.*.paid", "wallet.*"}));
}

TEST_F(Testing, UnhandledEventsAreAcknowledgedAndCounted) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting());
    publish("a", "", "wallet.closed");
    consumer.run();
    EXPECT_EQ(seen(), texts{});
    EXPECT_EQ(consumer.stats().unhandled, 1u);
    EXPECT_EQ(consumer.stats().acknowledged, 1u);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    EXPECT_TRUE(dead().empty());
}

TEST_F(Testing, UnhandledEventsAreDeadLettersWhereThatIsWanted) {
    auto some = options();
    some.on_unhandled = on_unhandled::dead_letter;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting());
    publish("a", "", "wallet.closed");
    consumer.run();
    EXPECT_EQ(error_of_the_dead(), "no handler is for wallet.closed");
    EXPECT_EQ(dead().at(0).attempts, 0);
    EXPECT_EQ(consumer.stats().unhandled, 0u);
}

TEST_F(Testing, AContractIsDecoded) {
    consumer consumer(options(), broker_);
    consumer.on<user_created>([this](const user_created &user, const event &event) {
        seen_.push_back(user.user_id + " " + std::to_string(event.version()));
    });
    broker_.publish({.type = "identity.user.created", .payload = {{"user_id", "u1"}}, .version = 2});
    consumer.run();
    EXPECT_EQ(seen(), texts{"u1 2"});
}

TEST_F(Testing, AVersionThatNoContractIsForIsADeadLetter) {
    consumer consumer(options(), broker_);
    consumer.on<user_created>([this](const user_created &user) { seen_.push_back(user.user_id); });
    broker_.publish({.type = "identity.user.created", .payload = {{"user_id", "u1"}}, .version = 3});
    consumer.run();
    ASSERT_EQ(broker_.dead("identity", "billing").size(), 1u);
    EXPECT_EQ(broker_.dead("identity", "billing")[0].error, "no contract of identity.user.created is of version 3");
    EXPECT_EQ(seen(), texts{});
}

TEST_F(Testing, APayloadThatDoesNotKeepTheContractIsADeadLetter) {
    consumer consumer(options(), broker_);
    consumer.on<user_created>([this](const user_created &user) { seen_.push_back(user.user_id); });
    broker_.publish({.type = "identity.user.created", .payload = {{"user", "u1"}}, .version = 2});
    consumer.run();
    ASSERT_EQ(broker_.dead("identity", "billing").size(), 1u);
    auto letter = broker_.dead("identity", "billing")[0];
    EXPECT_TRUE(letter.error.starts_with("the payload is no identity.user.created of version 2: ")) << letter.error;
    EXPECT_EQ(letter.attempts, 1);
    EXPECT_EQ(seen(), texts{});
}

TEST_F(Testing, EntriesThatAreNoEventsAreDeadLettersWithTheReason) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting());
    std::vector<std::pair<std::string, std::string>> good = {
        {"event_id", "01900000-0000-7000-8000-000000000001"}, {"event_type", "wallet.created"}, {"aggregate_type", ""},
        {"aggregate_id", ""}, {"version", "1"}, {"occurred_at", "2026-11-21T08:55:15.964060Z"}, {"headers", ""},
        {"payload", R"({"name": "a"})"}};
    auto with = [&](std::size_t field, std::string value) {
        auto fields = good;
        fields[field].second = std::move(value);
        return fields;
    };
    auto unknown = good;
    unknown.emplace_back("shoe_size", "43");
    broker_.publish_raw("wallet", unknown);
    broker_.publish_raw("wallet", {{"hello", "world"}, {"hello", "again"}});
    broker_.publish_raw("wallet", with(0, "42"));
    broker_.publish_raw("wallet", with(4, "one"));
    consumer.run();
    EXPECT_EQ(seen(), texts{"a"}) << "an unknown field does no harm";
    texts errors;
    for (const auto &letter : dead())
        errors.push_back(letter.error);
    EXPECT_EQ(errors, (texts{"the field \"event_id\" is missing", "the event_id \"42\" is not a UUID",
                             "the version \"one\" is not a number from 1 on"}));
    EXPECT_EQ(dead().at(0).fields, (std::vector<std::pair<std::string, std::string>>{{"hello", "world"}, {"hello", "again"}}));
}

TEST_F(Testing, WrongJsonIsADeadLetterBeforeTheHandlerSeesIt) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting());
    for (auto [headers, payload] : {std::pair("", "{\"name\": "), {"[1]", "{}"}})
        broker_.publish_raw("wallet", {{"event_id", "01900000-0000-7000-8000-000000000001"}, {"event_type", "wallet.created"},
                                       {"aggregate_type", ""}, {"aggregate_id", ""}, {"version", "1"},
                                       {"occurred_at", "2026-11-21T08:55:15Z"}, {"headers", headers}, {"payload", payload}});
    consumer.run();
    EXPECT_EQ(seen(), texts{});
    ASSERT_EQ(dead().size(), 2u);
    EXPECT_TRUE(dead().at(0).error.starts_with("the payload is not JSON")) << dead().at(0).error;
    EXPECT_EQ(dead()[1].error, "the headers are not a JSON object");
}

// duplicates

TEST_F(Testing, AnEventThatIsPublishedTwiceIsHandledOnce) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", noting());
    auto id = publish("a");
    consumer.run();
    broker_.publish({.type = "wallet.created", .payload = {{"name", "again"}}, .id = id});
    consumer.run();
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(consumer.stats().duplicates, 1u);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
}

TEST_F(Testing, ADuplicateWaitsUntilTheFirstIsDone) {
    consumer consumer(options(), broker_);
    bool failing = true;
    consumer.on("wallet.created", [&](const event &event) {
        seen_.push_back(name_of(event));
        if (std::exchange(failing, false))
            throw std::runtime_error("failed");
    });
    auto id = publish("a");
    broker_.publish({.type = "wallet.created", .payload = {{"name", "again"}}, .id = id});
    consumer.run();
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(broker_.pending("wallet", "billing"), 2u);
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(consumer.stats().duplicates, 1u);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
}

TEST_F(Testing, ADuplicateIsHandledInPlaceOfOneThatDied) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [this](const event &event) {
        seen_.push_back(name_of(event));
        if (name_of(event) == "a")
            throw reject("broken");
    });
    auto id = publish("a");
    broker_.publish({.type = "wallet.created", .payload = {{"name", "again"}}, .id = id});
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "again"}));
    ASSERT_EQ(dead().size(), 1u);
    broker_.redrive("wallet", "billing", dead().at(0).id);
    consumer.run();
    EXPECT_EQ(seen(), texts{}) << "it is done by now";
    EXPECT_TRUE(dead().empty());
}

TEST_F(Testing, AnEventIsRememberedAsLongAsTheOptionsSay) {
    auto some = options();
    some.idempotency_ttl = 1min;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting());
    auto id = publish("a");
    consumer.run();
    auto again = [&] {
        broker_.publish({.type = "wallet.created", .payload = {{"name", "again"}}, .id = id});
        consumer.run();
        return seen().size();
    };
    seen();
    broker_.advance(1min - 1ms);
    EXPECT_EQ(again(), 0u);
    broker_.advance(1min);
    EXPECT_EQ(again(), 1u) << "a minute after it was last found done";
}

TEST_F(Testing, WithoutIdempotencyEachDeliveryRunsTheHandler) {
    auto some = options();
    some.idempotency = idempotency::none;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting());
    auto id = publish("a");
    broker_.publish({.type = "wallet.created", .payload = {{"name", "again"}}, .id = id});
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "again"}));
}

TEST_F(Testing, TheInboxKnowsWhatAGroupHasHandled) {
    auto some = options();
    some.idempotency = idempotency::none;
    consumer first(some, broker_);
    some.group = "mail";
    consumer other(some, broker_);
    int connection = 0; // whatever it is, the broker only hands it on
    auto *given = reinterpret_cast<PGconn *>(&connection);
    bool failing = true;
    PGconn *expected = nullptr;
    auto handler = [&](const event &event, transaction &tx) {
        seen_.push_back(name_of(event));
        EXPECT_EQ(tx.connection(), expected);
        if (std::exchange(failing, false))
            throw std::runtime_error("rolled back");
    };
    first.on_transaction("wallet.created", handler);
    other.on_transaction("wallet.created", handler);
    auto id = publish("a");
    first.run();
    broker_.use_connection(expected = given);
    broker_.advance(100ms);
    first.run();
    EXPECT_EQ(seen(), (texts{"a", "a"})) << "what failed was not recorded";
    broker_.publish({.type = "wallet.created", .payload = {{"name", "again"}}, .id = id});
    first.run();
    EXPECT_EQ(seen(), texts{});
    EXPECT_EQ(first.stats().duplicates, 1u);
    EXPECT_EQ(first.stats().handled, 1u);
    other.run();
    EXPECT_EQ(seen(), texts{"a"}) << "another group's inbox";
}

TEST_F(Testing, TheInboxForgetsAfterItsRetention) {
    for (auto [retention, times] : {std::pair(60s, 2u), {0s, 1u}, {std::chrono::seconds::max(), 1u}}) {
        outbox::testing::broker broker;
        auto some = options();
        some.idempotency = idempotency::none;
        some.inbox_retention = retention;
        consumer consumer(some, broker);
        unsigned handled = 0;
        consumer.on_transaction("wallet.created", [&](const event &, transaction &) { ++handled; });
        auto id = broker.publish({.type = "wallet.created"});
        consumer.run();
        broker.advance(59s);
        broker.publish({.type = "wallet.created", .id = id});
        consumer.run();
        EXPECT_EQ(handled, 1u);
        broker.advance(1s);
        broker.publish({.type = "wallet.created", .id = id});
        consumer.run();
        EXPECT_EQ(handled, times) << retention.count();
    }
}

// asynchronous handlers

class TestingAsync : public Testing {
  protected:
    auto keeping() {
        return [this](const event &event, completion token) {
            seen_.push_back(name_of(event));
            tokens_.push_back(token);
        };
    }
    std::vector<completion> tokens_;
};

TEST_F(TestingAsync, AnEventIsFinishedWhenItsTokenSaysSo) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", keeping());
    publish("a");
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(consumer.stats().running, 1u);
    EXPECT_EQ(broker_.pending("wallet", "billing"), 1u);
    EXPECT_EQ(name_of(tokens_.at(0).event()), "a");
    tokens_[0].done();
    tokens_[0].failed("too late to say so");
    consumer.run();
    EXPECT_EQ(broker_.pending("wallet", "billing"), 0u);
    EXPECT_EQ(consumer.stats().running, 0u);
    EXPECT_EQ(consumer.stats().handled, 1u);
    EXPECT_EQ(consumer.stats().failed, 0u);
}

TEST_F(TestingAsync, ATokenMayBeDoneInTheHandler) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", [](const event &, completion token) { token.done(); });
    publish("a");
    consumer.run();
    EXPECT_EQ(consumer.stats().handled, 1u);
}

TEST_F(TestingAsync, AFailureIsAsIfTheHandlerHadThrown) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", keeping());
    publish("a");
    publish("b");
    publish("c");
    consumer.run();
    tokens_.at(0).failed("timed out");
    tokens_.at(1).failed(std::make_exception_ptr(reject("unknown")));
    tokens_.at(2).failed(std::make_exception_ptr(retry_after(1h, "closed")));
    consumer.run();
    EXPECT_EQ(error_of_the_dead(), "unknown");
    EXPECT_EQ(broker_.until_next_retry(), 100ms);
    seen();
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), texts{"a"});
    EXPECT_EQ(tokens_.at(3).event().attempt(), 2);
    EXPECT_EQ(broker_.until_next_retry(), 1h - 100ms);
}

TEST_F(TestingAsync, ADroppedTokenFailsTheEvent) {
    auto some = options();
    some.retry.max_attempts = 1;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", [](const event &, completion) {});
    publish("a");
    consumer.run();
    EXPECT_EQ(error_of_the_dead(), "the completion token was dropped without a word");
}

TEST_F(TestingAsync, SoManyMayBeOutAtATime) {
    auto some = options();
    some.concurrency = 2;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", keeping());
    for (const char *name : {"a", "b", "c", "d"})
        publish(name);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "b"}));
    tokens_[1].done();
    consumer.run();
    EXPECT_EQ(seen(), texts{"c"});
}

TEST_F(TestingAsync, AnAggregateWaitsForTheToken) {
    consumer consumer(options(), broker_);
    consumer.on("wallet.created", keeping());
    publish("a1", "a");
    publish("a2", "a");
    publish("b1", "b");
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a1", "b1"}));
    tokens_[0].done();
    consumer.run();
    EXPECT_EQ(seen(), texts{"a2"});
}

TEST_F(TestingAsync, WhatIsOutWhenAConsumerIsStoppedIsForTheOthersToHandle) {
    consumer first(options(), broker_), second(options(), broker_);
    first.on("wallet.created", keeping());
    std::vector<int> attempts;
    second.on("wallet.created", [&](const event &event) { attempts.push_back(event.attempt()); });
    publish("a");
    publish("b");
    first.run();
    tokens_[0].done();
    first.stop();
    EXPECT_FALSE(first.run()) << "b is still out";
    EXPECT_EQ(first.stats().handled, 1u) << "a is not";
    second.run();
    EXPECT_EQ(attempts, std::vector<int>{2}) << "the attempt that was begun counts";
    tokens_[1].done(); // nobody listens
    EXPECT_EQ(first.stats().handled, 1u);
}

TEST_F(TestingAsync, AnAttemptThatNobodyHearsOfIsTheLastOneToo) {
    auto some = options();
    some.retry.max_attempts = 1;
    consumer first(some, broker_), second(some, broker_);
    first.on("wallet.created", keeping());
    second.on("wallet.created", noting());
    publish("a");
    first.run();
    first.stop();
    second.run();
    EXPECT_EQ(error_of_the_dead(), "the handler did not come back from 1 attempt: its process died or was stopped");
}

TEST_F(TestingAsync, ATokenMayOutliveTheConsumerAndTheBroker) {
    {
        outbox::testing::broker broker;
        consumer consumer(options(), broker);
        consumer.on("wallet.created", keeping());
        broker.publish({.type = "wallet.created", .payload = {{"name", "a"}}});
        consumer.run();
    }
    EXPECT_EQ(name_of(tokens_.at(0).event()), "a");
    tokens_[0].done();
}

// the rate limit

TEST_F(Testing, ARateLimitFollowsTheClockForAllOfTheGroup) {
    auto some = options();
    some.rate_limit = 10;
    consumer first(some, broker_), second(some, broker_);
    first.on("wallet.created", noting());
    second.on("wallet.created", noting());
    for (int i = 0; i < 20; ++i)
        publish(std::to_string(i));
    first.run();
    EXPECT_EQ(seen(), texts{"0"});
    second.run();
    first.run();
    EXPECT_EQ(seen(), texts{});
    broker_.advance(99ms);
    first.run();
    EXPECT_EQ(seen(), texts{});
    broker_.advance(1ms);
    first.run();
    EXPECT_EQ(seen(), texts{"1"});
    broker_.advance(1h);
    first.run();
    EXPECT_EQ(seen(), texts{"2"}) << "a pause is not made up for";
}

TEST_F(Testing, ADuplicateIsFoundWithoutWaitingForItsTurn) {
    auto some = options();
    some.rate_limit = 10;
    consumer consumer(some, broker_);
    consumer.on("wallet.created", noting());
    auto id = publish("a");
    consumer.run();
    broker_.publish({.type = "wallet.created", .id = id});
    publish("b");
    broker_.advance(100ms);
    consumer.run();
    EXPECT_EQ(seen(), (texts{"a", "b"})) << "the duplicate took no turn from b";
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

} // namespace
} // namespace outbox::test

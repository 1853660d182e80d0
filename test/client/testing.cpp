// Handlers on the in-memory broker, as the author of a service tests them; and what the broker says of itself.
#include "testing.hpp"

namespace outbox::test {

namespace {
struct user_created {
    static constexpr std::string_view event_type = "identity.user.created";
    static constexpr int version = 2;
    std::string user_id;
};
void from_json(const json &from, user_created &user) { from.at("user_id").get_to(user.user_id); }
} // namespace

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

} // namespace outbox::test

// What happens to an event between the stream and the acknowledgement: which handler gets it, how it ends, what is counted.
#include <csignal>
#include <deque>
#include <future>
#include <map>

#include <nlohmann/json.hpp>

#include "consumers.hpp"

namespace outbox::test {

static const std::string wallets = "outbox:{wallet}";

static std::vector<dead_letter> dead(const redis_server &redis) {
    return dead_letters(redis.url(), "wallet", "billing").list();
}

TEST(Consume, an_event_is_handled_and_acknowledged) {
    redis_server redis;
    append(redis, {.aggregate_id = "a", .payload = R"({"wallet_id": "a"})"});
    notes handled;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(event.payload().at("wallet_id")); });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 1 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(handled.all(), std::vector<std::string>{"a"});
    EXPECT_TRUE(consumer.stop());
    EXPECT_EQ(consumer->stats().acknowledged, 1u);
}

TEST(Consume, a_handler_sees_the_event_as_it_was_emitted) {
    redis_server redis;
    append(redis,
           {.id = event_id(7),
            .aggregate_id = "a",
            .version = "3",
            .headers = R"({"correlation_id": "c", "hops": 2})",
            .payload = R"({"z": 1,  "a": 2})"},
           "5-1");
    std::promise<void> seen;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            EXPECT_EQ(event.id(), event_id(7));
            EXPECT_EQ(event.type(), "wallet.created");
            EXPECT_EQ(event.aggregate_type(), "wallet");
            EXPECT_EQ(event.aggregate_id(), "a");
            EXPECT_EQ(event.version(), 3);
            EXPECT_EQ(event.occurred_at_text(), "2026-11-21T08:55:15.964060Z");
            EXPECT_EQ(event.occurred_at().time_since_epoch().count(), 1795251315964060);
            EXPECT_EQ(event.headers_text(), R"({"correlation_id": "c", "hops": 2})");
            EXPECT_EQ(event.header("hops"), "2");
            EXPECT_EQ(event.header("none"), std::nullopt);
            EXPECT_EQ(event.correlation_id(), "c");
            EXPECT_EQ(event.payload_text(), R"({"z": 1,  "a": 2})");
            EXPECT_EQ(event.payload().at("a"), 2);
            EXPECT_EQ(event.topic(), "wallet");
            EXPECT_EQ(event.position(), "5-1");
            EXPECT_EQ(event.attempt(), 1);
            seen.set_value();
        });
    });
    ASSERT_EQ(seen.get_future().wait_for(30s), std::future_status::ready);
}

TEST(Consume, a_copy_of_an_event_outlives_the_consumer) {
    redis_server redis;
    append(redis, {.aggregate_id = "a", .payload = R"({"wallet_id": "a"})"}, "5-1");
    std::promise<event> kept;
    {
        running_consumer consumer(quick_options(redis), [&](class consumer &to) {
            to.on("wallet.*", [&](const event &event) { kept.set_value(event); });
        });
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
    }
    event copy = kept.get_future().get();
    EXPECT_EQ(copy.payload().at("wallet_id"), "a");
    EXPECT_EQ(copy.topic(), "wallet");
    EXPECT_EQ(copy.position(), "5-1");
}

TEST(Consume, exactly_one_handler_gets_an_event_that_of_its_type_or_of_the_most_literal_pattern) {
    redis_server redis;
    std::uint64_t number = 0;
    for (auto type : {"wallet.created", "wallet.paid", "wallet.card.paid", "wallet.card.lost", "wallet.card.lost.twice"})
        append(redis, {.id = event_id(++number), .type = type});
    notes handled;
    auto by = [&](std::string name) { return [&handled, name](const event &e) { handled.take(name + " " + std::string(e.type())); }; };
    auto options = quick_options(redis);
    options.topics = {"wallet"};
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("*", by("all"))
            .on("wallet.*", by("wallets"))
            .on("wallet.card.*", by("cards"))
            .on("wallet.created", by("created"))
            .on("*.card.lost", by("lost"));
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 5; }));
    auto all = handled.all();
    std::sort(all.begin(), all.end());
    EXPECT_EQ(all, (std::vector<std::string>{"cards wallet.card.lost", "cards wallet.card.lost.twice", "cards wallet.card.paid",
                                             "created wallet.created", "wallets wallet.paid"}));
}

// contracts

struct wallet_created {
    static constexpr std::string_view event_type = "wallet.created";
    static constexpr int version = 1;
    std::string wallet_id;
};
static void from_json(const nlohmann::json &json, wallet_created &value) { json.at("wallet_id").get_to(value.wallet_id); }

struct wallet_created_2 {
    static constexpr std::string_view event_type = "wallet.created";
    static constexpr int version = 2;
    int number = 0;
};
static void from_json(const nlohmann::json &json, wallet_created_2 &value) { json.at("number").get_to(value.number); }

TEST(Consume, a_contract_is_decoded_by_its_version) {
    redis_server redis;
    append(redis, {.version = "1", .payload = R"({"wallet_id": "a"})"});
    append(redis, {.id = event_id(2), .version = "2", .payload = R"({"number": 5})"});
    notes handled;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on<wallet_created>([&](const wallet_created &wallet, const event &) { handled.take(wallet.wallet_id); });
        to.on<wallet_created_2>([&](const wallet_created_2 &wallet) { handled.take(std::to_string(wallet.number)); });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2; }));
    EXPECT_EQ(handled.count("a"), 1u);
    EXPECT_EQ(handled.count("5"), 1u);
}

TEST(Consume, a_version_that_no_contract_is_for_is_a_dead_letter_at_once) {
    redis_server redis;
    append(redis, {.version = "3", .payload = R"({"wallet_id": "a"})"}, "5-1");
    running_consumer consumer(quick_options(redis), [](class consumer &to) {
        to.on<wallet_created>([](const wallet_created &) { ADD_FAILURE() << "the handler was called"; });
    });
    ASSERT_TRUE(eventually([&] { return dead(redis).size() == 1; }));
    auto letter = dead(redis)[0];
    EXPECT_EQ(letter.error, "no contract of wallet.created is of version 3");
    EXPECT_EQ(letter.attempts, 0);
    EXPECT_EQ(letter.position, "5-1");
    EXPECT_EQ(letter.consumer, consumer->name());
    EXPECT_EQ(letter.field("payload"), R"({"wallet_id": "a"})");
    EXPECT_EQ(pending(redis, wallets, "billing"), 0);
}

TEST(Consume, a_payload_that_is_not_the_contract_is_a_dead_letter_at_once_with_what_from_json_said) {
    redis_server redis;
    append(redis, {.payload = R"({"wallet_id": 5})"});
    append(redis, {.id = event_id(2), .payload = "[]"});
    running_consumer consumer(quick_options(redis), [](class consumer &to) {
        to.on<wallet_created>([](const wallet_created &) { ADD_FAILURE() << "the handler was called"; });
    });
    ASSERT_TRUE(eventually([&] { return dead(redis).size() == 2; }));
    for (const auto &letter : dead(redis)) {
        EXPECT_TRUE(letter.error.starts_with("the payload is no wallet.created of version 1: ")) << letter.error;
        EXPECT_NE(letter.error.find("json.exception"), std::string::npos) << letter.error;
        EXPECT_EQ(letter.attempts, 1);
    }
    EXPECT_EQ(consumer->stats().retried, 0u);
}

TEST(Consume, what_the_handler_of_a_contract_throws_is_tried_again_also_when_it_is_about_json) {
    redis_server redis;
    append(redis, {.payload = R"({"wallet_id": "a"})"});
    running_consumer consumer(quick_options(redis), [](class consumer &to) {
        to.on<wallet_created>([](const wallet_created &, const event &event) {
            if (event.attempt() == 1)
                event.payload().at("balance");
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
    EXPECT_EQ(consumer->stats().failed, 1u);
    EXPECT_EQ(consumer->stats().retried, 1u);
    EXPECT_TRUE(dead(redis).empty());
}

// what is no business of a handler

TEST(Consume, an_event_that_no_handler_is_for_is_acknowledged_and_counted) {
    redis_server redis;
    append(redis, {.type = "wallet.closed"});
    append(redis, {.id = event_id(2)});
    running_consumer consumer(quick_options(redis), [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2; }));
    EXPECT_EQ(consumer->stats().unhandled, 1u);
    EXPECT_EQ(consumer->stats().handled, 1u);
    EXPECT_EQ(pending(redis, wallets, "billing"), 0);
    EXPECT_TRUE(dead(redis).empty());
}

TEST(Consume, an_event_that_no_handler_is_for_is_a_dead_letter_where_the_options_say_so) {
    redis_server redis;
    append(redis, {.type = "wallet.closed"});
    auto options = quick_options(redis);
    options.on_unhandled = on_unhandled::dead_letter;
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return dead(redis).size() == 1; }));
    EXPECT_EQ(dead(redis)[0].error, "no handler is for wallet.closed");
    EXPECT_EQ(consumer->stats().unhandled, 0u);
    EXPECT_EQ(pending(redis, wallets, "billing"), 0);
}

TEST(Consume, what_is_no_event_is_a_dead_letter_at_once_and_the_rest_goes_on) {
    redis_server redis;
    append(redis, {.id = event_id(1), .payload = R"({"wallet_id": )"});
    append(redis, {.id = event_id(2), .payload = "\xff"});
    append(redis, {.id = event_id(3), .headers = "[1]"});
    append(redis, {.id = event_id(4), .headers = "{"});
    append(redis, {.id = event_id(5), .payload = ""});
    append(redis, {.id = "5"});
    append(redis, {.id = event_id(7), .version = "0"});
    redis.command("XADD", wallets, "*", "event_type", "wallet.created");
    redis.command("XADD", wallets, "*", "", "");
    append(redis, {.id = event_id(10)});
    running_consumer consumer(quick_options(redis), [](class consumer &to) {
        to.on("wallet.created", [](const event &event) { EXPECT_EQ(event.id(), event_id(10)); });
    });
    ASSERT_TRUE(eventually(
        [&] { return consumer->stats().handled == 1 && dead(redis).size() == 9 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(consumer->stats().retried, 0u);
    std::map<std::string, std::string, std::less<>> errors;
    for (const auto &letter : dead(redis))
        errors.emplace(letter.field("event_id"), letter.error);
    EXPECT_TRUE(errors[event_id(1)].starts_with("the payload is not JSON")) << errors[event_id(1)];
    EXPECT_TRUE(errors[event_id(2)].starts_with("the payload is not JSON")) << errors[event_id(2)];
    EXPECT_EQ(errors[event_id(3)], "the headers are not a JSON object");
    EXPECT_TRUE(errors[event_id(4)].starts_with("the headers are not JSON")) << errors[event_id(4)];
    EXPECT_EQ(errors[event_id(5)], "the payload is empty");
    EXPECT_EQ(errors["5"], "the event_id \"5\" is not a UUID");
    EXPECT_EQ(errors[event_id(7)], "the version \"0\" is not a number from 1 on");
    EXPECT_EQ(errors[""], "the field \"event_id\" is missing");
}

TEST(Consume, a_dead_letter_holds_up_nothing_of_its_aggregate) {
    redis_server redis;
    append(redis, {.id = event_id(1), .aggregate_id = "a", .payload = "{"});
    append(redis, {.id = event_id(2), .aggregate_id = "a"});
    running_consumer consumer(quick_options(redis), [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    EXPECT_TRUE(eventually([&] { return consumer->stats().handled == 1 && dead(redis).size() == 1; }));
}

// reading ahead, acknowledging in batches

TEST(Consume, reads_ahead_while_a_handler_runs) {
    redis_server redis;
    append_many(redis, 0, 100, 0);
    gate gate;
    auto options = quick_options(redis);
    options.concurrency = 1;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); });
    EXPECT_TRUE(eventually([&] { return consumer->stats().read == 100 && consumer->stats().held == 100; }));
    EXPECT_EQ(consumer->stats().handled, 0u);
    gate.open();
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 100; }));
}

TEST(Consume, acknowledges_in_batches) {
    for (auto way : {idempotency::none, idempotency::redis}) {
        redis_server redis;
        append_many(redis, 0, 2000, 100);
        auto options = quick_options(redis);
        options.idempotency = way;
        running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2000; }));
        EXPECT_LT(executed(redis, "xack"), 400);
        EXPECT_LT(executed(redis, "evalsha"), 800);
        EXPECT_LT(executed(redis, "xreadgroup"), 400);
    }
}

TEST(Consume, acknowledges_at_once_when_there_is_nothing_else_to_do) {
    redis_server redis;
    auto options = quick_options(redis);
    options.block = 1h; // nobody waits for the end of a read
    options.claim_idle = 2h;
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") == 0; }));
    for (std::uint64_t n = 1; n <= 100; ++n) {
        append(redis, {.id = event_id(n)});
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == n; }));
    }
}

// asynchronous handlers

// Completion tokens that a handler has put aside.
class kept_tokens {
  public:
    void put(completion token) {
        std::lock_guard guard(lock_);
        all_.push_back(std::move(token));
    }
    std::size_t count() const {
        std::lock_guard guard(lock_);
        return all_.size();
    }
    // Waits for it.
    completion take() {
        EXPECT_TRUE(eventually([this] { return count() > 0; }));
        std::lock_guard guard(lock_);
        completion first = all_.front();
        all_.pop_front();
        return first;
    }

  private:
    mutable std::mutex lock_;
    std::deque<completion> all_;
};

static auto put_aside(kept_tokens &to) {
    return [&to](const event &, completion token) { to.put(std::move(token)); };
}

TEST(Consume, an_asynchronous_handler_is_through_when_its_token_says_so_from_another_thread) {
    redis_server redis;
    append(redis, {});
    kept_tokens kept_tokens;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) { to.on("wallet.created", put_aside(kept_tokens)); });
    completion token = kept_tokens.take();
    EXPECT_TRUE(eventually([&] { return consumer->stats().running == 1; })); // counted when the threads have it already
    EXPECT_EQ(pending(redis, wallets, "billing"), 1);
    EXPECT_EQ(token.event().id(), event_id(1));
    std::thread([&token] { token.done(); }).join();
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1 && consumer->stats().running == 0; }));
    EXPECT_EQ(token.event().id(), event_id(1));
}

TEST(Consume, an_asynchronous_handler_that_failed_is_tried_again) {
    redis_server redis;
    append(redis, {});
    kept_tokens kept_tokens;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) { to.on("wallet.created", put_aside(kept_tokens)); });
    kept_tokens.take().failed("not now");
    kept_tokens.take().failed(std::make_exception_ptr(retry_after(1ms, "nor now")));
    completion third = kept_tokens.take();
    EXPECT_EQ(third.event().attempt(), 3);
    third.failed(std::make_exception_ptr(std::runtime_error("never")));
    ASSERT_TRUE(eventually([&] { return dead(redis).size() == 1; }));
    EXPECT_EQ(dead(redis)[0].error, "never");
    EXPECT_EQ(dead(redis)[0].attempts, 3);
    EXPECT_TRUE(consumer.log().contain("not now"));
    EXPECT_TRUE(consumer.log().contain("nor now"));
}

TEST(Consume, an_asynchronous_handler_can_reject) {
    redis_server redis;
    append(redis, {});
    kept_tokens kept_tokens;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) { to.on("wallet.created", put_aside(kept_tokens)); });
    kept_tokens.take().failed(std::make_exception_ptr(reject("an unknown currency")));
    ASSERT_TRUE(eventually([&] { return dead(redis).size() == 1; }));
    EXPECT_EQ(dead(redis)[0].error, "an unknown currency");
    EXPECT_EQ(dead(redis)[0].attempts, 1);
}

TEST(Consume, a_token_that_is_dropped_or_failed_with_nothing_fails_the_event) {
    redis_server redis;
    append(redis, {});
    std::atomic<int> called = 0;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &, completion token) {
            if (++called == 2)
                token.failed(std::exception_ptr());
        });
    });
    ASSERT_TRUE(eventually([&] { return dead(redis).size() == 1; }));
    EXPECT_EQ(called, 3);
    EXPECT_EQ(dead(redis)[0].error, "the completion token was dropped without a word");
    EXPECT_TRUE(consumer.log().contain("failed without an exception"));
}

TEST(Consume, the_first_word_about_an_asynchronous_handler_counts) {
    redis_server redis;
    append(redis, {.id = event_id(1)});
    append(redis, {.id = event_id(2)});
    std::atomic<int> called = 0;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event, completion token) {
            ++called;
            completion copy = token;
            copy.done();
            token.failed("too late");
            token.done();
            if (event.id() == event_id(2))
                throw std::runtime_error("too late as well");
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2; }));
    EXPECT_TRUE(consumer.stop());
    EXPECT_EQ(called, 2);
    EXPECT_EQ(consumer->stats().failed, 0u);
}

TEST(Consume, an_asynchronous_handler_that_throws_has_failed) {
    redis_server redis;
    append(redis, {});
    kept_tokens kept;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event, completion token) {
            if (event.attempt() == 1) {
                kept.put(token);
                throw std::runtime_error("no connection");
            }
            token.done();
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
    EXPECT_EQ(consumer->stats().failed, 1u);
    kept.take().done(); // means nothing any more
}

TEST(Consume, so_many_asynchronous_handlers_run_as_there_may_be_handlers) {
    redis_server redis;
    append_many(redis, 0, 20, 0);
    kept_tokens kept_tokens;
    auto options = quick_options(redis);
    options.concurrency = 3;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", put_aside(kept_tokens)); });
    ASSERT_TRUE(eventually([&] { return kept_tokens.count() == 3 && consumer->stats().read == 20; }));
    for (std::uint64_t finished = 1; finished <= 20; ++finished) {
        EXPECT_LE(kept_tokens.count(), 3u);
        kept_tokens.take().done();
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == finished; }));
    }
}

TEST(Consume, a_token_may_speak_after_the_consumer_has_gone) {
    redis_server redis;
    append(redis, {.id = event_id(1)});
    append(redis, {.id = event_id(2)});
    append(redis, {.id = event_id(3)});
    kept_tokens kept_tokens;
    auto options = quick_options(redis);
    options.shutdown_timeout = 10ms;
    {
        running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", put_aside(kept_tokens)); });
        ASSERT_TRUE(eventually([&] { return kept_tokens.count() == 3; }));
        EXPECT_FALSE(consumer.stop());
    }
    kept_tokens.take().done();
    kept_tokens.take().failed("too late");
    completion third = kept_tokens.take();
    EXPECT_TRUE(third.event().payload().is_object());
    EXPECT_EQ(pending(redis, wallets, "billing"), 3);
}

// running and stopping

TEST(Consume, run_returns_at_once_if_the_consumer_was_stopped_before) {
    redis_server redis;
    append(redis, {});
    consumer consumer(quick_options(redis));
    consumer.on("wallet.created", [](const event &) { ADD_FAILURE() << "the handler was called"; });
    consumer.stop();
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(consumer.stats().read, 0u);
}

TEST(Consume, a_handler_may_stop_the_consumer_and_is_acknowledged) {
    redis_server redis;
    append_many(redis, 0, 50, 1);
    auto options = quick_options(redis);
    options.log = nullptr;
    consumer consumer(options);
    std::atomic<int> called = 0;
    consumer.on("wallet.created", [&](const event &) {
        ++called;
        consumer.stop();
    });
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(called, 1);
    EXPECT_EQ(consumer.stats().acknowledged, 1u);
    EXPECT_EQ(consumer.stats().held, 0u);
    EXPECT_FALSE(consumer.stats().connected);
    EXPECT_EQ(consumer.stats().failed, 0u);
}

TEST(Consume, what_runs_when_the_consumer_is_stopped_is_finished_and_acknowledged) {
    redis_server redis;
    append_many(redis, 0, 50, 0);
    gate gate;
    auto options = quick_options(redis);
    options.concurrency = 2;
    options.shutdown_timeout = 60s;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); });
    ASSERT_TRUE(eventually([&] { return gate.waiting() == 2; }));
    consumer->stop();
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("stopping"); }));
    gate.open();
    EXPECT_TRUE(consumer.stop());
    EXPECT_EQ(consumer->stats().handled, 2u);
    EXPECT_EQ(consumer->stats().acknowledged, 2u);
}

TEST(Consume, a_consumer_runs_once) {
    redis_server redis;
    append(redis, {});
    auto options = quick_options(redis);
    options.log = nullptr;
    consumer consumer(options);
    consumer.on("wallet.created", [&](const event &) { consumer.stop(); });
    EXPECT_TRUE(consumer.run());
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(consumer.stats().handled, 1u);
}

TEST(Consume, a_consumer_runs_once_also_if_a_signal_stopped_it) {
    redis_server redis;
    append(redis, {});
    auto options = quick_options(redis);
    options.log = nullptr;
    options.handle_signals = true;
    consumer consumer(options);
    consumer.on("wallet.created", [&](const event &) { kill(getpid(), SIGTERM); });
    EXPECT_TRUE(consumer.run());
    EXPECT_TRUE(consumer.run());
    EXPECT_EQ(consumer.stats().handled, 1u);
}

TEST(Consume, run_refuses_what_cannot_work_and_can_be_called_again_when_it_is_mended) {
    redis_server redis;
    append(redis, {});
    auto options = quick_options(redis);
    options.log = nullptr;
    consumer consumer(options);
    EXPECT_THROW(consumer.run(), std::invalid_argument); // no handler
    consumer.on("*.created", [&](const event &) { consumer.stop(); });
    EXPECT_THROW(consumer.run(), std::invalid_argument); // of which topic?
    redis_reply groups = redis.command("XINFO", "GROUPS", wallets);
    EXPECT_EQ(groups->elements, 0u);
}

TEST(Consume, a_transaction_handler_needs_an_inbox) {
    redis_server redis;
    auto options = quick_options(redis);
    consumer consumer(options);
    consumer.on_transaction("wallet.created", [](const event &, transaction &) {});
    try {
        consumer.run();
        FAIL();
    } catch (const std::invalid_argument &refused) {
        EXPECT_NE(std::string(refused.what()).find("consumer_options::inbox"), std::string::npos) << refused.what();
    }
}

TEST(Consume, a_handler_is_registered_once_for_a_pattern_and_a_version) {
    redis_server redis;
    consumer consumer(quick_options(redis));
    auto nothing = [](const event &) {};
    consumer.on("wallet.created", nothing);
    consumer.on<wallet_created>([](const wallet_created &) {}); // wins over the one above for its version
    EXPECT_THROW(consumer.on("wallet.created", nothing), std::invalid_argument);
    EXPECT_THROW(consumer.on<wallet_created>([](const wallet_created &) {}), std::invalid_argument);
    for (auto pattern : {"", "wallet", "wallet.", ".created", "wallet..created", "wallet created", "wallet.cre*", "wall\xc3\xa9t.x"})
        EXPECT_THROW(consumer.on(pattern, nothing), std::invalid_argument) << pattern;
    EXPECT_THROW(consumer.on("wallet.none", consumer::handler()), std::invalid_argument);
}

TEST(Consume, counts_what_it_does) {
    redis_server redis;
    append(redis, {.id = event_id(1)});
    append(redis, {.id = event_id(1)}); // the same again
    append(redis, {.id = event_id(2), .type = "wallet.flaky"});
    append(redis, {.id = event_id(3), .type = "wallet.unknown"});
    append(redis, {.id = event_id(4), .type = "wallet.rejected"});
    running_consumer consumer(quick_options(redis), [](class consumer &to) {
        to.on("wallet.created", [](const event &) {});
        to.on("wallet.flaky", [](const event &event) {
            if (event.attempt() < 3)
                throw std::runtime_error("not yet");
        });
        to.on("wallet.rejected", [](const event &) { throw reject("never"); });
    });
    ASSERT_TRUE(eventually([&] {
        auto now = consumer->stats();
        return now.acknowledged == 4 && now.dead_lettered == 1 && now.held == 0;
    }));
    auto stats = consumer->stats();
    EXPECT_TRUE(stats.connected);
    EXPECT_EQ(stats.read, 5u);
    EXPECT_EQ(stats.handled, 2u);
    EXPECT_EQ(stats.duplicates, 1u);
    EXPECT_EQ(stats.unhandled, 1u);
    EXPECT_EQ(stats.failed, 3u);
    EXPECT_EQ(stats.retried, 2u);
    EXPECT_EQ(stats.claimed + stats.lost_leases + stats.trimmed + stats.parked + stats.reconnects, 0u);
    EXPECT_EQ(stats.groups_created, 2u); // of the topic, and of what is redriven there
    EXPECT_EQ(stats.held, 0u);
    EXPECT_EQ(stats.held_bytes, 0u);
    EXPECT_EQ(stats.running, 0u);
    EXPECT_EQ(stats.waiting_retry, 0u);
    EXPECT_TRUE(consumer.stop());
    EXPECT_FALSE(consumer->stats().connected);
}

TEST(Consume, shows_what_waits_for_its_next_attempt) {
    redis_server redis;
    append_many(redis, 0, 3, 0);
    auto options = quick_options(redis);
    options.retry.initial = options.retry.max = 1h;
    running_consumer consumer(options, [](class consumer &to) {
        to.on("wallet.created", [](const event &) { throw std::runtime_error("not now"); });
    });
    EXPECT_TRUE(eventually([&] { return consumer->stats().waiting_retry == 3; }));
    EXPECT_EQ(consumer->stats().held, 3u);
    EXPECT_GT(consumer->stats().held_bytes, 300u);
    EXPECT_EQ(consumer->stats().running, 0u);
}

TEST(Consume, an_event_may_be_put_off_for_longer_than_a_clock_can_count) {
    redis_server redis;
    append(redis, {});
    std::atomic<int> called = 0;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &) {
            ++called;
            throw retry_after(std::chrono::milliseconds::max(), "in the next life");
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().waiting_retry == 1; }));
    EXPECT_TRUE(consumer.stop());
    EXPECT_EQ(called, 1);
}

} // namespace outbox::test

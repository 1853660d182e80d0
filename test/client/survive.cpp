// Consumers that die, consumers that are slow, and connections that break in every way: nothing is lost, and what Redis alone
// has to answer for is handled once.
#include <future>
#include <set>

#include "consumers.hpp"
#include "proxy.hpp"

namespace outbox::test {

static const std::string wallets = "outbox:{wallet}";

// Gives so many entries to a consumer that will never be heard of again.
static void read_and_die(redis_server &redis, const std::string &name, int count) {
    redis.command({"XGROUP", "CREATE", wallets, "billing", "0", "MKSTREAM"});
    redis_reply reply = redis.command({"XREADGROUP", "GROUP", "billing", name, "COUNT", std::to_string(count), "STREAMS", wallets, ">"});
    if (reply->type != REDIS_REPLY_ARRAY)
        throw std::runtime_error("there was nothing to read");
}

// A handler that writes down which event it got: its number, as append_many() counts.
static std::string number(const event &event) { return event.payload().at("n").dump(); }

static std::set<std::string> distinct(const notes &handled) {
    auto all = handled.all();
    return {all.begin(), all.end()};
}

// dead consumers, slow ones, and those that leave

TEST(TakeOver, entries_of_a_dead_consumer_are_handled_by_another_after_claim_idle) {
    redis_server redis;
    append_many(redis, 1, 5, 5);
    auto read = std::chrono::steady_clock::now();
    read_and_die(redis, "dead", 5);
    auto options = quick_options(redis);
    options.claim_idle = 600ms;
    notes handled;
    std::atomic<bool> early = false;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            early = early || std::chrono::steady_clock::now() - read < options.claim_idle - 5ms; // Redis counts whole ones
            handled.take(number(event) + " in attempt " + std::to_string(event.attempt()));
        });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 5 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_FALSE(early);
    for (int n = 1; n <= 5; ++n) // the first may have been made by the one that died
        EXPECT_EQ(handled.count(std::to_string(n) + " in attempt 2"), 1u);
    EXPECT_EQ(consumer->stats().claimed, 5u);
    EXPECT_EQ(consumer->stats().lost_leases, 0u);
}

TEST(TakeOver, a_handler_may_run_for_three_times_claim_idle_and_keeps_its_entry) {
    redis_server redis;
    auto options = quick_options(redis);
    options.claim_idle = 3s; // of which the machine may stand still for a part
    options.concurrency = 6; // one of them may get all
    options.idempotency = idempotency::none; // which would hide it
    options.ordering = ordering::none;
    notes handled;
    auto slowly = [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            std::this_thread::sleep_for(options.claim_idle * 3);
            handled.take(number(event));
        });
    };
    running_consumer one(options, slowly), other(options, slowly);
    append_many(redis, 1, 6, 0);
    ASSERT_TRUE(eventually([&] { return handled.count() == 6 && pending(redis, wallets, "billing") == 0; }));
    one.stop();
    other.stop();
    EXPECT_EQ(handled.count(), 6u);
    EXPECT_EQ(one->stats().claimed + other->stats().claimed, 0u);
    EXPECT_EQ(one->stats().lost_leases + other->stats().lost_leases, 0u);
}

// With a single thread the rest waits in this process; it is not a handler's yet, but it is not the others' either.
TEST(TakeOver, what_waits_for_a_slow_handler_is_kept_as_well) {
    redis_server redis;
    append_many(redis, 1, 20, 0);
    auto options = quick_options(redis);
    options.claim_idle = 3s; // of which the machine may stand still for a part
    options.idempotency = idempotency::none;
    options.concurrency = 1;
    gate hold;
    notes by_one, by_other;
    running_consumer one(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            by_one.take(number(event));
        });
    });
    ASSERT_TRUE(eventually([&] { return one->stats().held == 20; }));
    auto until = std::chrono::steady_clock::now() + options.claim_idle * 3;
    running_consumer other(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { by_other.take(number(event)); });
    });
    ASSERT_TRUE(eventually([&] { return std::chrono::steady_clock::now() > until; }));
    EXPECT_EQ(pending(redis, wallets, "billing"), 20);
    hold.open();
    ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(by_one.count(), 20u);
    EXPECT_EQ(by_other.count(), 0u);
}

TEST(TakeOver, a_consumer_that_is_stopped_hands_over_at_once_what_it_has_not_finished) {
    redis_server redis;
    append_many(redis, 1, 10, 0);
    auto options = quick_options(redis);
    options.claim_idle = 1h; // nobody waits for that
    options.reap_idle = 50ms;
    options.concurrency = 1;
    options.name = "leaving";
    gate hold;
    notes by_leaving, by_staying;
    running_consumer leaving(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            by_leaving.take(number(event));
            hold.pass();
        });
    });
    ASSERT_TRUE(eventually([&] { return leaving->stats().held == 10 && by_leaving.count() == 1; }));
    auto stopped = std::async(std::launch::async, [&] { return leaving.stop(); });
    ASSERT_TRUE(eventually([&] { return leaving.log().contain("stopping"); }));
    hold.open();
    EXPECT_TRUE(stopped.get());
    EXPECT_EQ(by_leaving.count(), 1u);
    EXPECT_EQ(pending(redis, wallets, "billing"), 9);

    options.name = "staying";
    running_consumer staying(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            by_staying.take(number(event) + " in attempt " + std::to_string(event.attempt()));
        });
    });
    ASSERT_TRUE(eventually([&] { return by_staying.count() == 9 && pending(redis, wallets, "billing") == 0; }));
    for (int n = 2; n <= 10; ++n) // none of them has cost an attempt
        EXPECT_EQ(by_staying.count(std::to_string(n) + " in attempt 1"), 1u);
    EXPECT_TRUE(eventually([&] { return names(redis, wallets, "billing") == std::vector<std::string>{"staying"}; }));
}

TEST(TakeOver, another_that_runs_already_notices_what_was_handed_over_long_before_claim_idle) {
    redis_server redis;
    append_many(redis, 1, 10, 0);
    auto options = quick_options(redis);
    options.claim_idle = 16s;
    options.concurrency = 1;
    options.shutdown_timeout = 0ms;
    gate hold;
    notes handled;
    running_consumer leaving(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { hold.pass(); }); });
    ASSERT_TRUE(eventually([&] { return leaving->stats().held == 10 && leaving->stats().running == 1; }));
    running_consumer staying(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    ASSERT_TRUE(eventually([&] { return staying->stats().connected; }));
    auto left = std::chrono::steady_clock::now();
    EXPECT_FALSE(leaving.stop()); // one still runs: that one is nobody else's before its lease is over
    ASSERT_TRUE(eventually([&] { return handled.count() == 9 && pending(redis, wallets, "billing") == 1; }));
    EXPECT_LT(std::chrono::steady_clock::now() - left, options.claim_idle * 3 / 4);
    hold.open();
}

TEST(TakeOver, attempts_that_were_made_are_handed_over_as_well) {
    redis_server redis;
    append_many(redis, 1, 1, 0);
    auto options = quick_options(redis);
    options.claim_idle = 1h;
    options.retry.initial = options.retry.max = 1h;
    options.retry.max_attempts = 3;
    auto fails = [](class consumer &to) { to.on("wallet.created", [](const event &) { throw std::runtime_error("no luck"); }); };
    for (int attempt = 1; attempt <= 2; ++attempt) {
        running_consumer consumer(options, fails);
        ASSERT_TRUE(eventually([&] { return consumer->stats().failed == 1 && consumer->stats().waiting_retry == 1; }));
        EXPECT_TRUE(consumer.stop());
    }
    running_consumer last(options, fails);
    ASSERT_TRUE(eventually([&] { return last->stats().dead_lettered == 1; }));
    auto dead = dead_letters(redis.url(), "wallet", "billing").list();
    ASSERT_EQ(dead.size(), 1u);
    EXPECT_EQ(dead[0].attempts, 3);
}

TEST(TakeOver, a_consumer_that_leaves_with_nothing_pending_takes_its_name_along) {
    redis_server redis;
    append_many(redis, 1, 3, 0);
    notes handled;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 3; }));
    EXPECT_FALSE(names(redis, wallets, "billing").empty());
    EXPECT_TRUE(consumer.stop());
    EXPECT_EQ(pending(redis, wallets, "billing"), 0);
    EXPECT_TRUE(names(redis, wallets, "billing").empty());
    EXPECT_TRUE(names(redis, wallets + ":redrive:billing", "billing").empty());
}

TEST(TakeOver, names_of_dead_consumers_are_removed_only_once_nothing_is_pending_on_them) {
    redis_server redis;
    std::string position = append(redis, {});
    read_and_die(redis, "dead", 1);
    redis.command({"XGROUP", "CREATECONSUMER", wallets, "billing", "idle"});
    auto options = quick_options(redis);
    options.name = "alive";
    options.claim_idle = 1h;
    options.reap_idle = 100ms;
    auto looks = [&] { return executed(redis, "xinfo|consumers"); };
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    auto has = [&](std::string_view name) {
        auto all = names(redis, wallets, "billing");
        return std::find(all.begin(), all.end(), name) != all.end();
    };
    ASSERT_TRUE(eventually([&] { return !has("idle"); }));
    auto seen = looks();
    ASSERT_TRUE(eventually([&] { return looks() > seen + 50; }));
    EXPECT_TRUE(has("dead"));
    EXPECT_EQ(pending(redis, wallets, "billing"), 1);
    redis.command({"XACK", wallets, "billing", position});
    EXPECT_TRUE(eventually([&] { return !has("dead"); }));
}

TEST(TakeOver, a_consumer_whose_name_was_removed_while_it_waited_goes_on) {
    redis_server redis;
    auto options = quick_options(redis);
    options.claim_idle = 5s;
    options.block = 2s; // silent for longer than the other one bears
    options.name = "silent";
    notes handled;
    auto handler = [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    };
    running_consumer silent(options, handler);
    append_many(redis, 1, 1, 0); // a name is known to the group from the first entry on
    ASSERT_TRUE(eventually([&] { return handled.count() == 1 && pending(redis, wallets, "billing") == 0; }));
    options.block = 10ms;
    options.reap_idle = 1ms;
    options.name = "impatient";
    {
        running_consumer impatient(options, handler);
        ASSERT_TRUE(eventually([&] { return impatient.log().contain("removed 1 silent"); }));
    }
    append_many(redis, 2, 50, 5);
    ASSERT_TRUE(eventually([&] { return handled.count() == 51 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(distinct(handled).size(), 51u);
}

// connections that break

TEST(Reconnect, a_server_that_is_away_at_the_start_is_waited_for_and_reported) {
    redis_server redis;
    redis.kill9();
    notes handled;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("warning: could not connect to Redis"); }));
    EXPECT_FALSE(consumer->stats().connected);
    redis.start();
    append_many(redis, 1, 10, 2);
    ASSERT_TRUE(eventually([&] { return handled.count() == 10 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_TRUE(consumer->stats().connected);
}

TEST(Reconnect, a_server_that_is_killed_and_comes_back_with_its_data_has_everything_handled_once) {
    redis_server redis({"appendonly yes", "appendfsync always"});
    notes handled;
    auto options = quick_options(redis);
    options.claim_idle = 30s; // the outages are shorter
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            std::this_thread::sleep_for(1ms);
            handled.take(number(event));
        });
    });
    for (std::uint64_t round = 0; round < 4; ++round) {
        append_many(redis, round * 50 + 1, 50, 7);
        ASSERT_TRUE(eventually([&] { return handled.count() > round * 50 + 10; }));
        redis.restart();
    }
    ASSERT_TRUE(eventually([&] { return distinct(handled).size() == 200 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(handled.count(), 200u);
    EXPECT_EQ(consumer->stats().failed, 0u);
    EXPECT_GE(consumer->stats().reconnects, 4u);
}

TEST(Reconnect, connections_that_are_killed_again_and_again_cost_nothing) {
    redis_server redis;
    notes handled;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    for (std::uint64_t round = 0; round < 20; ++round) {
        append_many(redis, round * 20 + 1, 20, 5);
        redis.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
        std::uint64_t seen = round * 20;
        ASSERT_TRUE(eventually([&] { return handled.count() > seen; }));
    }
    ASSERT_TRUE(eventually([&] { return distinct(handled).size() == 400 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(handled.count(), 400u);
    EXPECT_EQ(consumer->stats().failed, 0u);
}

// What a client says while the server is stopped is in its socket: it is executed when the server goes on, also for
// connections that were given up meanwhile.
TEST(Reconnect, a_server_that_is_stopped_for_longer_than_the_response_timeout_and_goes_on_has_everything_handled_once) {
    redis_server redis;
    auto options = quick_options(redis);
    options.response_timeout = options.connect_timeout = 700ms;
    options.claim_idle = 30s;
    notes handled;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    for (std::uint64_t round = 0; round < 5; ++round) {
        append_many(redis, round * 100 + 1, 50, 5);
        // what is not connected yet cannot lose its connection
        ASSERT_TRUE(eventually([&] { return consumer->stats().connected; }));
        auto reconnects = consumer->stats().reconnects;
        redis.stop();
        ASSERT_TRUE(eventually([&] { return consumer->stats().reconnects > reconnects; }));
        // the next are there before it looks at the connections that it lost
        std::unique_ptr<redisContext, free_redis> writer(redisConnectUnix(redis.socket_path().c_str()));
        ASSERT_EQ(writer->err, 0);
        for (std::uint64_t n = round * 100 + 51; n <= round * 100 + 100; ++n) {
            std::string payload = "{\"n\": " + std::to_string(n) + "}", id = event_id(n);
            redisAppendCommand(writer.get(),
                               "XADD %s * event_id %s event_type wallet.created aggregate_type wallet aggregate_id %s version 1 "
                               "occurred_at 2026-11-21T08:55:15.964060Z headers %s payload %s",
                               wallets.c_str(), id.c_str(), std::to_string(n % 5).c_str(), "", payload.c_str());
        }
        for (int done = 0; done == 0;)
            ASSERT_EQ(redisBufferWrite(writer.get(), &done), REDIS_OK);
        redis.cont();
        for (int i = 0; i < 50; ++i) {
            void *reply = nullptr;
            ASSERT_EQ(redisGetReply(writer.get(), &reply), REDIS_OK);
            freeReplyObject(reply);
        }
        ASSERT_TRUE(eventually([&] { return distinct(handled).size() == (round + 1) * 100; })) << distinct(handled).size();
    }
    ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(handled.count(), 500u);
    EXPECT_EQ(consumer->stats().failed, 0u);
}

class Proxied : public ::testing::Test {
  protected:
    redis_server redis;
    proxy network{redis};
    notes handled;

    consumer_options options() {
        auto options = quick_options(redis);
        options.redis_url = network.url();
        options.response_timeout = options.connect_timeout = 700ms;
        options.claim_idle = 30s;
        return options;
    }

    auto handler() {
        return [this](class consumer &to) { to.on("wallet.created", [this](const event &event) { handled.take(number(event)); }); };
    }

    bool all_handled(std::size_t count) {
        return eventually([&] { return distinct(handled).size() == count && pending(redis, wallets, "billing") == 0; });
    }
};

TEST_F(Proxied, entries_whose_reply_was_lost_are_handled) {
    auto options = this->options();
    options.idempotency = idempotency::none;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            handled.take(number(event));
            if (event.attempt() != 1)
                ADD_FAILURE() << "what never arrived was no attempt";
        });
    });
    append_many(redis, 1, 3, 0);
    ASSERT_TRUE(all_handled(3));
    network.be(proxy::manner::swallow);
    append_many(redis, 4, 20, 5);
    ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") > 0; }));
    EXPECT_EQ(handled.count(), 3u);
    network.be(proxy::manner::pass);
    ASSERT_TRUE(all_handled(23));
    EXPECT_EQ(handled.count(), 23u);
    EXPECT_EQ(consumer->stats().claimed, 0u); // they were its own
}

TEST_F(Proxied, acknowledgements_whose_reply_was_lost_are_sent_again_and_nothing_is_handled_twice) {
    gate hold;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            handled.take(number(event));
            if (number(event) != "0")
                hold.pass();
        });
    });
    append(redis, {.payload = R"({"n": 0})"});
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; })); // Redis has the scripts
    append_many(redis, 2, 4, 0);
    ASSERT_TRUE(eventually([&] { return hold.waiting() == 4; }));
    network.be(proxy::manner::swallow);
    hold.open();
    ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") < 4; })); // the consumer does not know
    EXPECT_EQ(consumer->stats().acknowledged, 1u);
    network.be(proxy::manner::pass);
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 5 && consumer->stats().held == 0; }));
    append_many(redis, 6, 10, 5);
    ASSERT_TRUE(all_handled(15));
    EXPECT_EQ(handled.count(), 15u);
}

// An entry that was begun, so that the mark says so, and of which the consumer never heard.
TEST_F(Proxied, what_was_begun_without_an_answer_is_begun_again) {
    auto options = this->options();
    options.retry.max_attempts = 1; // which is written down when it begins
    running_consumer consumer(options, handler());
    append_many(redis, 1, 1, 0);
    ASSERT_TRUE(all_handled(1));
    for (std::uint64_t round = 0; round < 10; ++round) {
        append_many(redis, round * 10 + 2, 10, 3);
        network.be(proxy::manner::swallow);
        long before = network.swallowed();
        ASSERT_TRUE(eventually([&] { return network.swallowed() > before; }));
        network.be(proxy::manner::pass);
    }
    ASSERT_TRUE(all_handled(101));
    EXPECT_EQ(handled.count(), 101u);
    EXPECT_EQ(consumer->stats().dead_lettered, 0u);
}

TEST_F(Proxied, answers_that_come_in_bits_or_half_or_are_none_or_never_come_are_survived) {
    running_consumer consumer(options(), handler());
    std::uint64_t sent = 0;
    using manner = proxy::manner;
    for (manner how : {manner::crawl, manner::half, manner::babble, manner::silent, manner::refuse, manner::swallow}) {
        SCOPED_TRACE(static_cast<int>(how));
        append_many(redis, sent + 1, 10, 3);
        network.be(how);
        append_many(redis, sent + 11, 10, 3);
        if (how == manner::crawl) {
            ASSERT_TRUE(all_handled(sent + 20));
        } else {
            int accepted = network.accepted();
            if (how == manner::refuse)
                network.cut();
            ASSERT_TRUE(eventually([&] { return network.accepted() > accepted + 2; }));
            network.be(manner::pass);
        }
        sent += 20;
        ASSERT_TRUE(all_handled(sent));
    }
    EXPECT_EQ(handled.count(), sent);
    EXPECT_EQ(consumer->stats().failed, 0u);
    EXPECT_EQ(consumer->stats().lost_leases, 0u);
}

TEST_F(Proxied, a_server_that_closes_every_connection_is_tried_again_less_and_less_often) {
    network.be(proxy::manner::refuse);
    auto options = this->options();
    options.reconnect_max = 5s;
    // 20, 40, 80, … ms, each at least half of it: the tenth of the eight doublings would come after 5 s
    auto start = std::chrono::steady_clock::now();
    running_consumer consumer(options, handler());
    ASSERT_TRUE(eventually([&] { return network.accepted() >= 2 * 7; }));
    EXPECT_GE(std::chrono::steady_clock::now() - start, 500ms);
    EXPECT_LE(consumer.log().count(), 3u) << ::testing::PrintToString(consumer.log().all());
    network.be(proxy::manner::pass);
    append_many(redis, 1, 5, 0);
    ASSERT_TRUE(all_handled(5));
}

TEST_F(Proxied, a_consumer_that_was_cut_off_leaves_to_others_what_they_took_over) {
    append_many(redis, 1, 20, 0);
    auto options = this->options();
    options.idempotency = idempotency::none;
    options.claim_idle = 600ms;
    options.concurrency = 1;
    gate hold;
    notes by_other;
    running_consumer cut_off(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    ASSERT_TRUE(eventually([&] { return cut_off->stats().held == 20 && hold.waiting() == 1; }));
    network.be(proxy::manner::refuse);
    network.cut();
    auto direct = quick_options(redis);
    direct.claim_idle = 600ms;
    running_consumer other(direct, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { by_other.take(number(event)); });
    });
    ASSERT_TRUE(eventually([&] { return by_other.count() == 20 && pending(redis, wallets, "billing") == 0; }));
    network.be(proxy::manner::pass);
    ASSERT_TRUE(eventually([&] { return cut_off->stats().connected; }));
    hold.open();
    ASSERT_TRUE(eventually([&] { return cut_off->stats().held == 0; }));
    EXPECT_EQ(handled.count(), 1u); // it was at work on that one already
    EXPECT_EQ(cut_off->stats().lost_leases, 19u);
    append_many(redis, 21, 20, 0);
    ASSERT_TRUE(eventually([&] { return handled.count() + by_other.count() == 41; }));
}

// The lease is lost, and comes back to the same consumer while the handler still runs.
TEST_F(Proxied, an_entry_that_comes_back_while_its_handler_runs_is_tried_again_if_that_fails) {
    append_many(redis, 1, 1, 0);
    auto options = this->options();
    options.claim_idle = 600ms;
    std::atomic<bool> fail = true;
    gate hold;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            if (fail.exchange(false)) {
                hold.pass();
                throw std::runtime_error("too late");
            }
            handled.take(number(event));
        });
    });
    ASSERT_TRUE(eventually([&] { return hold.waiting() == 1; }));
    network.be(proxy::manner::refuse);
    network.cut();
    // somebody takes it over
    auto pending_row = [&](std::size_t field) -> std::string {
        redis_reply row = redis.command({"XPENDING", wallets, "billing", "-", "+", "1"});
        return row->element[0]->element[field]->str;
    };
    redis.command({"XCLAIM", wallets, "billing", "somebody", "0", pending_row(0)});
    network.be(proxy::manner::pass);
    ASSERT_TRUE(eventually([&] { return consumer->stats().connected; }));
    // … and dies
    ASSERT_TRUE(eventually([&] { return pending_row(1) == consumer->name(); }));
    append_many(redis, 2, 1, 0); // Redis answers in order: when this is handled the consumer knows
    ASSERT_TRUE(eventually([&] { return handled.count() == 1; }));
    hold.open();
    ASSERT_TRUE(all_handled(2));
    EXPECT_TRUE(eventually([&] { return consumer->stats().held == 0; }));
}

TEST(Reconnect, through_a_long_outage_what_is_held_is_handled_and_acknowledged_afterwards) {
    redis_server redis({"appendonly yes", "appendfsync always"});
    append_many(redis, 1, 20, 4);
    auto options = quick_options(redis);
    options.claim_idle = 100ms;
    gate hold;
    notes handled;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 20 && hold.waiting() == 4; }));
    redis.kill9();
    auto until = std::chrono::steady_clock::now() + options.claim_idle * 3;
    ASSERT_TRUE(eventually([&] { return std::chrono::steady_clock::now() > until; }));
    hold.open();
    ASSERT_TRUE(eventually([&] { return handled.count() == 4; })); // those that ran; others must ask Redis first
    redis.start();
    ASSERT_TRUE(eventually([&] { return distinct(handled).size() == 20 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(handled.count(), 20u);
    EXPECT_EQ(consumer->stats().failed, 0u);
    EXPECT_EQ(consumer->stats().acknowledged, 20u);
}

// A server that was started again counts its connections from the beginning.
TEST(Reconnect, no_connection_but_its_own_is_killed) {
    redis_server redis;
    auto options = quick_options(redis);
    options.redis_url = redis.tcp_url();
    options.reconnect_min = options.reconnect_max = 500ms; // the strangers are there first
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return consumer->stats().connected; }));
    for (int round = 0; round < 3; ++round) {
        auto reconnects = consumer->stats().reconnects;
        redis.kill9();
        ASSERT_TRUE(eventually([&] { return consumer->stats().reconnects >= reconnects + 2; }));
        redis.start();
        std::vector<std::unique_ptr<redisContext, free_redis>> strangers;
        for (int i = 0; i < 30; ++i)
            strangers.emplace_back(redisConnect("127.0.0.1", redis.port()));
        ASSERT_TRUE(eventually([&] { return consumer->stats().connected && pending(redis, wallets, "billing") == 0; }));
        for (auto &stranger : strangers) {
            redis_reply reply(static_cast<redisReply *>(redisCommand(stranger.get(), "PING")));
            ASSERT_NE(reply, nullptr) << "somebody else's connection was closed";
        }
    }
}

} // namespace outbox::test

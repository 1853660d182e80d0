// Options of a consumer: how much it reads ahead, runs at once and starts in a second, where it begins and what it reads, how
// it gets to Redis; and what is refused before anything connects.
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <set>

#include "consumers.hpp"

namespace outbox::test {

static const std::string wallets = "outbox:{wallet}";

// what is read ahead

TEST(Options, prefetch_bounds_the_entries_in_hand) {
    redis_server redis;
    append_many(redis, 0, 300, 0);
    gate gate;
    auto options = quick_options(redis);
    options.prefetch = 10;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); });
    ASSERT_TRUE(eventually([&] { return gate.waiting() == 4 && consumer->stats().held > 5; }));
    for (int look = 0; look < 20; ++look) {
        auto idle = executed(redis, "ping");
        while (executed(redis, "ping") == idle)
            redis.command("PING");
        EXPECT_LE(consumer->stats().held, 10u);
        EXPECT_LE(pending(redis, wallets, "billing"), 10);
    }
    gate.open();
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 300; }));
}

TEST(Options, prefetch_of_one_hands_the_next_event_to_whoever_is_free) {
    redis_server redis;
    append_many(redis, 0, 6, 0);
    auto options = quick_options(redis);
    options.concurrency = 1;
    options.prefetch = 1;
    gate gate;
    auto slow = [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); };
    running_consumer one(options, slow), other(options, slow);
    EXPECT_TRUE(eventually([&] { return gate.waiting() == 2; }));
    gate.open();
    EXPECT_TRUE(eventually([&] { return one->stats().acknowledged + other->stats().acknowledged == 6; }));
}

TEST(Options, little_prefetch_keeps_all_handlers_busy) {
    redis_server redis;
    append_many(redis, 0, 20, 0);
    auto options = quick_options(redis);
    options.concurrency = 4;
    options.prefetch = 4;
    gate gate;
    std::atomic<bool> first = true;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &) {
            if (!first.exchange(false))
                gate.pass();
        });
    });
    // one of the four is through, so there is room for one
    EXPECT_TRUE(eventually([&] { return gate.waiting() == 4; }));
    gate.open();
}

TEST(Options, prefetch_bytes_bounds_the_memory) {
    redis_server redis;
    std::string megabyte = '"' + std::string(1'000'000, 'x') + '"';
    for (std::uint64_t n = 0; n < 60; ++n)
        append(redis, {.id = event_id(n), .payload = megabyte});
    auto options = quick_options(redis);
    options.prefetch_bytes = 8'000'000;
    std::atomic<std::uint64_t> most = 0;
    std::atomic<consumer *> self = nullptr;
    running_consumer consumer(options, [&](class consumer &to) {
        self = &to;
        to.on("wallet.created", [&](const event &event) {
            EXPECT_EQ(event.payload_text().size(), 1'000'002u);
            std::uint64_t held = self.load()->stats().held_bytes, before = most;
            while (held > before && !most.compare_exchange_weak(before, held)) {
            }
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 60; }));
    EXPECT_GE(most, 2'000'000u);
    EXPECT_LE(most, 10'000'000u);
    EXPECT_EQ(consumer->stats().held_bytes, 0u);
}

TEST(Options, prefetch_bytes_bounds_what_is_taken_over_as_well) {
    redis_server redis;
    std::string megabyte = '"' + std::string(1'000'000, 'x') + '"';
    for (std::uint64_t n = 0; n < 40; ++n)
        append(redis, {.id = event_id(n), .payload = megabyte});
    redis.command("XGROUP", "CREATE", wallets, "billing", "0");
    redis.command("XREADGROUP", "GROUP", "billing", "dead", "COUNT", "40", "STREAMS", wallets, ">");
    auto options = quick_options(redis);
    options.claim_idle = 600ms;
    options.prefetch_bytes = 8'000'000;
    std::atomic<std::uint64_t> most = 0;
    std::atomic<consumer *> self = nullptr;
    running_consumer consumer(options, [&](class consumer &to) {
        self = &to;
        to.on("wallet.created", [&](const event &) {
            std::uint64_t held = self.load()->stats().held_bytes, before = most;
            while (held > before && !most.compare_exchange_weak(before, held)) {
            }
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 40; }));
    EXPECT_EQ(consumer->stats().claimed, 40u);
    EXPECT_LE(most, 10'000'000u);
}

// Forty events of a megabyte, pending with a consumer that is gone; a consumer that has room for eight of them.
class TakenOver : public ::testing::Test {
  protected:
    TakenOver() : options(quick_options(redis)) {
        std::string megabyte = '"' + std::string(1'000'000, 'x') + '"';
        for (std::uint64_t n = 0; n < 40; ++n)
            append(redis, {.id = event_id(n), .payload = megabyte});
        redis.command("XGROUP", "CREATE", wallets, "billing", "0");
        redis.command("XREADGROUP", "GROUP", "billing", "dead", "COUNT", "40", "STREAMS", wallets, ">");
        options.claim_idle = 600ms;
        options.prefetch_bytes = 8'000'000;
        options.concurrency = 16;
    }

    // until it has asked four times whether there is something to take over
    void let_it_look(running_consumer &consumer) {
        auto until = std::chrono::steady_clock::now() + options.claim_idle;
        std::uint64_t most = 0;
        EXPECT_TRUE(eventually([&] {
            most = std::max<std::uint64_t>(most, consumer->stats().held_bytes);
            return std::chrono::steady_clock::now() > until;
        }));
        EXPECT_LE(most, 10'000'000u);
    }

    redis_server redis;
    consumer_options options;
};

TEST_F(TakenOver, nothing_more_is_taken_over_while_handlers_run) {
    gate gate;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); });
    ASSERT_TRUE(eventually([&] { return gate.waiting() >= 7; }));
    let_it_look(consumer);
    EXPECT_LE(gate.waiting(), 8);
    gate.open();
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 40; }));
}

TEST_F(TakenOver, nothing_more_is_taken_over_while_acknowledgements_are_refused) {
    redis.command({"ACL", "SETUSER", "service", "on", ">secret", "~*", "+@all", "-xack"});
    options.redis_url = "unix://service:secret@" + redis.socket_path();
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return consumer->stats().handled >= 7; }));
    let_it_look(consumer);
    EXPECT_LE(consumer->stats().handled, 8u);
    redis.command({"ACL", "SETUSER", "service", "+xack"});
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 40; }));
}

TEST(Options, a_payload_larger_than_prefetch_bytes_is_read_all_the_same) {
    redis_server redis;
    std::string payload = '"' + std::string(2'000'000, 'x') + '"';
    append(redis, {.id = event_id(1), .payload = payload});
    append(redis, {.id = event_id(2), .payload = payload});
    auto options = quick_options(redis);
    options.prefetch_bytes = 1000;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            EXPECT_EQ(event.payload().get_ref<const std::string &>().size(), 2'000'000u);
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().handled == 2 && consumer->stats().acknowledged == 2; }));
}

TEST(Options, an_event_that_waits_for_its_retry_stops_no_other_topic_with_little_prefetch) {
    redis_server redis;
    auto options = quick_options(redis);
    options.prefetch = 4;
    options.retry.initial = options.retry.max = 1h;
    for (int n = 0; n < 20; ++n)
        options.topics.push_back("topic" + std::to_string(n));
    append(redis, {}, "*", "topic3");
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            if (event.topic() == "topic3")
                throw std::runtime_error("not now");
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().waiting_retry == 1; }));
    for (std::uint64_t n = 2; n < 12; ++n)
        append(redis, {.id = event_id(n)}, "*", "topic" + std::to_string(n + 5));
    EXPECT_TRUE(eventually([&] { return consumer->stats().handled == 10; }));
}

TEST(Options, events_that_wait_for_their_retry_hold_no_more_memory_than_their_own) {
    redis_server redis;
    std::string payload = '"' + std::string(500'000, 'x') + '"';
    for (std::uint64_t n = 0; n < 64; ++n)
        append(redis, {.id = event_id(n), .type = n % 8 == 0 ? "wallet.bad" : "wallet.good", .payload = payload});
    auto options = quick_options(redis);
    options.prefetch_bytes = 8'000'000;
    options.retry.initial = options.retry.max = 1h;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.good", [](const event &) {});
        to.on("wallet.bad", [](const event &) { throw std::runtime_error("not now"); });
    });
    EXPECT_TRUE(eventually([&] { return consumer->stats().handled == 56 && consumer->stats().waiting_retry == 8; }));
    EXPECT_LE(consumer->stats().held_bytes, 8'000'000u);
}

// how much at once

TEST(Options, so_many_handlers_run_at_once_as_concurrency_says) {
    redis_server redis;
    append_many(redis, 0, 200, 0);
    auto options = quick_options(redis);
    options.concurrency = 3;
    std::atomic<int> running = 0, most = 0;
    gate gate;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &) {
            int now = ++running, before = most;
            while (now > before && !most.compare_exchange_weak(before, now)) {
            }
            gate.pass();
            --running;
        });
    });
    ASSERT_TRUE(eventually([&] { return gate.waiting() == 3; }));
    EXPECT_TRUE(eventually([&] { return consumer->stats().running == 3; })); // counted when the threads have them already
    gate.open();
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 200; }));
    EXPECT_EQ(most, 3);
}

TEST(Options, a_great_many_threads_are_fine) {
    redis_server redis;
    append_many(redis, 0, 64, 0);
    auto options = quick_options(redis);
    options.concurrency = 64;
    gate gate;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { gate.pass(); }); });
    EXPECT_TRUE(eventually([&] { return gate.waiting() == 64; }));
    gate.open();
}

TEST(Options, the_rate_limit_is_for_the_group_as_a_whole) {
    redis_server redis;
    append_many(redis, 0, 100, 0);
    auto options = quick_options(redis);
    options.rate_limit = 100;
    options.prefetch = 16;
    notes handled;
    auto began = std::chrono::steady_clock::now();
    auto handler = [&](class consumer &to) { to.on("wallet.created", [&](const event &event) { handled.take(std::string(event.id())); }); };
    running_consumer one(options, handler), other(options, handler);
    // until both have had their share: one of them may come late
    std::uint64_t appended = 100;
    ASSERT_TRUE(eventually([&] {
        bool both = one->stats().handled > 10 && other->stats().handled > 10;
        if (!both && handled.count() + 20 > appended) {
            append_many(redis, appended, 50, 0);
            appended += 50;
        }
        return both && handled.count() >= 100;
    }));
    auto count = static_cast<double>(handled.count());
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    // a tenth of a second's worth may come at once
    EXPECT_LE(count, 15 + 100 * took.count());
}

TEST(Options, a_rate_limit_of_less_than_one_a_second_lets_one_through_at_once) {
    redis_server redis;
    append_many(redis, 0, 5, 0);
    auto options = quick_options(redis);
    options.rate_limit = 0.001;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return consumer->stats().handled == 1; }));
    EXPECT_TRUE(consumer.stop());
    EXPECT_EQ(consumer->stats().handled, 1u);
}

// what, and from where

TEST(Options, a_consumer_reads_the_topics_of_its_patterns) {
    redis_server redis;
    for (std::uint64_t n = 0; n < 50; ++n)
        append(redis, {.id = event_id(n), .type = "topic" + std::to_string(n) + ".created"});
    append(redis, {.id = event_id(99), .type = "other.created"});
    notes topics;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        for (int n = 0; n < 50; ++n)
            to.on("topic" + std::to_string(n) + ".*", [&](const event &event) { topics.take(std::string(event.topic())); });
    });
    ASSERT_TRUE(eventually([&] { return topics.count() == 50; }));
    auto all = topics.all();
    EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 50u);
    EXPECT_EQ(pending(redis, "outbox:{other}", "billing"), -1);
}

TEST(Options, the_topics_that_are_named_are_read_and_no_others) {
    redis_server redis;
    append(redis, {.id = event_id(1)}, "*", "eu.wallet");
    append(redis, {.id = event_id(2)}, "*", "us.wallet");
    append(redis, {.id = event_id(3)});
    auto options = quick_options(redis);
    options.topics = {"eu.wallet", "us.wallet", "eu.wallet"};
    notes topics;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("*.created", [&](const event &event) { topics.take(std::string(event.topic())); });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2; }));
    EXPECT_EQ(topics.count("eu.wallet"), 1u);
    EXPECT_EQ(topics.count("us.wallet"), 1u);
    EXPECT_EQ(pending(redis, wallets, "billing"), -1);
}

TEST(Options, a_new_group_begins_behind_its_start_and_an_old_one_where_it_was) {
    redis_server redis;
    for (auto position : {"5-1", "5-2", "6-0"})
        append(redis, {.id = event_id(static_cast<std::uint64_t>(position[2] + position[0] * 10)), .aggregate_id = "a"}, position);
    notes positions;
    auto note = [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { positions.take(std::string(event.position())); });
    };
    auto options = quick_options(redis);
    options.start = "5-1";
    {
        running_consumer consumer(options, note);
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2; }));
        EXPECT_EQ(positions.all(), (std::vector<std::string>{"5-2", "6-0"}));
    }
    append(redis, {.id = event_id(1)}, "7-0");
    options.start = "0";
    running_consumer consumer(options, note);
    ASSERT_TRUE(eventually([&] { return positions.count() == 3; }));
    EXPECT_EQ(positions.all().back(), "7-0");
}

TEST(Options, each_group_gets_every_event) {
    redis_server redis;
    append_many(redis, 0, 10, 1);
    auto nothing = [](class consumer &to) { to.on("wallet.created", [](const event &) {}); };
    running_consumer one(quick_options(redis, "billing"), nothing), other(quick_options(redis, "mail"), nothing);
    EXPECT_TRUE(eventually([&] { return one->stats().handled == 10 && other->stats().handled == 10; }));
}

TEST(Options, a_consumer_has_the_name_it_is_given_or_one_of_its_own) {
    redis_server redis;
    auto options = quick_options(redis);
    consumer one(options), other(options);
    EXPECT_NE(one.name(), other.name());
    EXPECT_FALSE(one.name().empty());
    EXPECT_EQ(one.group(), "billing");
    options.name = "billing-1";
    running_consumer named(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    EXPECT_TRUE(eventually([&] { return named->stats().connected; }));
    redis_reply clients = redis.command("CLIENT", "LIST");
    EXPECT_NE(std::string(clients->str).find("name=billing-1 "), std::string::npos);
}

// how to get to Redis

// A server that has nothing to do with the one of the test, unless it is told the password.
static const std::string secret = "s3cret/with:odd@chars%and+more";
static const std::string secret_in_url = "s3cret%2Fwith%3Aodd%40chars%25and%2Bmore";

static void handles_one_event(const consumer_options &options) {
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; })) << options.redis_url;
    EXPECT_TRUE(consumer.stop());
    EXPECT_FALSE(consumer.log().contain("s3cret"));
}

TEST(Options, redis_is_reached_by_tcp_by_name_and_by_unix_socket) {
    redis_server redis;
    std::uint64_t number = 0;
    for (const auto &url : {redis.tcp_url(), redis.tcp_url() + "/0", redis.url(), redis.url() + "?db=0",
                            "redis://localhost:" + std::to_string(redis.port())}) {
        append(redis, {.id = event_id(++number)});
        auto options = quick_options(redis);
        options.redis_url = url;
        handles_one_event(options);
    }
}

TEST(Options, redis_is_reached_by_ipv6) {
    redis_server redis({"bind 127.0.0.1 -::1"});
    std::string url = "redis://[::1]:" + std::to_string(redis.port());
    try {
        dead_letters(url, "wallet", "billing").count();
    } catch (const connection_error &) {
        GTEST_SKIP() << "there is no IPv6 here";
    }
    append(redis, {.id = event_id(1)});
    auto options = quick_options(redis);
    options.redis_url = url;
    handles_one_event(options);
}

TEST(Options, the_url_names_the_database) {
    redis_server redis;
    redis.command("SELECT", "5");
    append(redis, {.id = event_id(1)});
    auto options = quick_options(redis);
    options.redis_url = redis.url() + "?db=5";
    handles_one_event(options);
    append(redis, {.id = event_id(2)});
    options.redis_url = redis.tcp_url() + "/5";
    handles_one_event(options);
    redis.command("SELECT", "0");
    redis_reply keys = redis.command("DBSIZE");
    EXPECT_EQ(keys->integer, 0);
}

TEST(Options, a_database_that_is_not_there_is_reported) {
    redis_server redis;
    auto options = quick_options(redis);
    options.redis_url = redis.url() + "?db=99";
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    EXPECT_TRUE(eventually([&] { return consumer.log().contain("SELECT: ERR"); }));
}

static std::unique_ptr<redis_server> closed_server() {
    auto redis = std::make_unique<redis_server>(std::vector<std::string>{"requirepass " + secret});
    redis->command("AUTH", secret);
    return redis;
}

static std::string with(const std::string &credentials, const redis_server &redis) {
    return "unix://" + credentials + "@" + redis.socket_path();
}

TEST(Options, the_password_is_in_the_url) {
    auto redis = closed_server();
    append(*redis, {.id = event_id(1)});
    auto options = quick_options(*redis);
    options.redis_url = with(":" + secret_in_url, *redis);
    handles_one_event(options);
    append(*redis, {.id = event_id(2)});
    options.redis_url = "redis://default:" + secret_in_url + "@127.0.0.1:" + std::to_string(redis->port());
    handles_one_event(options);
}

TEST(Options, a_user_of_the_acl_is_in_the_url) {
    auto redis = closed_server();
    redis->command({"ACL", "SETUSER", "service", "on", ">s3cret2", "~outbox:*", "+@all"});
    append(*redis, {});
    auto options = quick_options(*redis);
    options.redis_url = with("service:s3cret2", *redis);
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
    redis_reply clients = redis->command("CLIENT", "LIST");
    std::string list = clients->str;
    auto at = list.find("name=" + consumer->name());
    ASSERT_NE(at, std::string::npos);
    EXPECT_NE(list.substr(at, list.find('\n', at) - at).find("user=service"), std::string::npos) << list;
}

TEST(Options, a_user_without_a_password_is_who_it_says) {
    redis_server redis;
    redis.command({"ACL", "SETUSER", "service", "on", "nopass", "~outbox:*", "+@all"});
    redis.command({"ACL", "SETUSER", "closed", "on", ">s3cret", "~outbox:*", "+@all"});
    append(redis, {});
    auto options = quick_options(redis);
    options.redis_url = with("closed", redis);
    {
        running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
        EXPECT_TRUE(eventually([&] { return consumer.log().contain("AUTH: WRONGPASS"); }));
        EXPECT_EQ(consumer->stats().read, 0u);
    }
    options.redis_url = with("service", redis);
    handles_one_event(options);
}

TEST(Options, the_password_comes_from_a_file_that_is_read_at_every_connect) {
    auto redis = closed_server();
    std::string path = redis->directory() + "/password";
    auto options = quick_options(*redis);
    options.redis_password_file = path;
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("the password file could not be read"); }));
    std::ofstream(path) << "wr0ng\n";
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("WRONGPASS"); }));
    std::ofstream(path) << secret << "\n";
    append(*redis, {.id = event_id(1)});
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));

    // the password is changed, and its connections are closed
    std::ofstream(path) << "s3cret, the next one";
    redis->command("CONFIG", "SET", "requirepass", "s3cret, the next one");
    redis->command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
    append(*redis, {.id = event_id(2)});
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2; }));
    EXPECT_GE(consumer->stats().reconnects, 1u);
    EXPECT_FALSE(consumer.log().contain("s3cret"));
    EXPECT_FALSE(consumer.log().contain("wr0ng"));
}

TEST(Options, a_wrong_password_is_reported_once_and_never_shown) {
    auto redis = closed_server();
    append(*redis, {});
    auto options = quick_options(*redis);
    options.redis_url = with(":s3cret-wrong", *redis);
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    auto refused = [&] {
        redis_reply reply = redis->command("INFO", "stats");
        std::string all = reply->str;
        return std::stoi(all.substr(all.find("total_connections_received:") + 27));
    };
    ASSERT_TRUE(eventually([&] { return refused() > 12; }));
    EXPECT_TRUE(consumer.stop());
    auto log = consumer.log().all();
    EXPECT_EQ(std::count_if(log.begin(), log.end(), [](auto &line) { return line.find("WRONGPASS") != line.npos; }), 1);
    EXPECT_FALSE(consumer.log().contain("s3cret"));
    EXPECT_TRUE(consumer.log().contain(redis->socket_path()));
}

TEST(Options, a_redis_that_is_not_there_yet_is_waited_for_and_reported_once) {
    redis_server redis;
    int port = redis.port();
    redis.kill9();
    for (const auto &url : {redis.url(), "redis://127.0.0.1:" + std::to_string(port)}) {
        auto options = quick_options(redis);
        options.redis_url = url;
        options.reconnect_min = options.reconnect_max = 1ms;
        running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
        ASSERT_TRUE(eventually([&] { return consumer.log().contain("could not connect to Redis at \""); }));
        EXPECT_FALSE(consumer->stats().connected);
        redis.start();
        append(redis, {});
        EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
        EXPECT_TRUE(consumer->stats().connected);
        auto log = consumer.log().all();
        EXPECT_LE(std::count_if(log.begin(), log.end(), [](auto &line) { return line.find("could not connect") != line.npos; }), 4);
        EXPECT_TRUE(consumer.log().contain("connected to Redis at \""));
        EXPECT_TRUE(consumer.stop());
        redis.kill9();
    }
}

TEST(Options, a_consumer_can_be_stopped_while_redis_is_not_there) {
    redis_server redis;
    redis.kill9();
    running_consumer consumer(quick_options(redis), [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("could not connect"); }));
    auto begun = std::chrono::steady_clock::now();
    EXPECT_TRUE(consumer.stop());
    EXPECT_LT(std::chrono::steady_clock::now() - begun, 25s);
}

TEST(Options, a_name_that_does_not_resolve_is_reported) {
    redis_server redis;
    auto options = quick_options(redis);
    options.redis_url = "redis://:s3cret@no-such-host.invalid:6379/0";
    options.connect_timeout = 200ms;
    running_consumer consumer(options, [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    EXPECT_TRUE(eventually([&] { return consumer.log().contain("could not connect to Redis at \"no-such-host.invalid:6379\": "); }));
    EXPECT_TRUE(consumer.log().contain("resolved"));
    EXPECT_FALSE(consumer.log().contain("s3cret"));
}

TEST(Options, one_connection_too_few_is_reported) {
    redis_server redis({"maxclients 2"}); // the test has one
    redis.command("PING");
    running_consumer consumer(quick_options(redis), [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
    EXPECT_TRUE(eventually([&] { return consumer.log().contain("max number of clients"); }));
    redis.command("CONFIG", "SET", "maxclients", "10");
    append(redis, {});
    EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
}

// what is refused

// What the constructor says about options that differ from good ones in this.
static std::string refusal(const std::function<void(consumer_options &)> &change) {
    consumer_options options;
    options.redis_url = "redis://127.0.0.1:1";
    options.group = "billing";
    options.log = [](log_level, std::string_view message) { ADD_FAILURE() << message; };
    change(options);
    try {
        consumer consumer(options);
    } catch (const std::invalid_argument &refused) {
        return refused.what();
    }
    return "nothing";
}

TEST(Options, what_cannot_work_is_refused_with_what_to_do_before_anything_connects) {
    using o = consumer_options;
    struct {
        std::function<void(o &)> change;
        std::string says;
    } cases[] = {
        {[](o &) {}, "nothing"},
        {[](o &o) { o.group = ""; }, "the group is missing: set consumer_options::group (OUTBOX_GROUP)"},
        {[](o &o) { o.group = "a b"; }, "the group may have"},
        {[](o &o) { o.group = "a:b"; }, "the group may have"},
        {[](o &o) { o.group = "{a}"; }, "the group may have"},
        {[](o &o) { o.group = "a\n"; }, "the group may have"},
        {[](o &o) { o.group = std::string("a\0b", 3); }, "the group may have"},
        {[](o &o) { o.group = std::string(201, 'a'); }, "the group may have"},
        {[](o &o) { o.group = std::string(200, 'a'); }, "nothing"},
        {[](o &o) { o.group = "b\xc3\xbcro"; }, "nothing"},
        {[](o &o) { o.name = "a b"; }, "the name may have"},
        {[](o &o) { o.name = std::string(201, 'a'); }, "the name may have"},
        {[](o &o) { o.name = "host:1"; }, "nothing"},
        {[](o &o) { o.redis_url = ""; }, "redis_url: the URL must begin with redis://, rediss://, unix://"},
        {[](o &o) { o.redis_url = "127.0.0.1:6379"; }, "redis_url: the URL must begin with"},
        {[](o &o) { o.redis_url = "rediss://a?sslmode=disable"; }, "redis_url: the parameters"},
        {[](o &o) { o.redis_url = "redis://a?sslrootcert=/ca.crt"; }, "redis_url: the parameter sslrootcert needs TLS"},
        {[](o &o) { o.redis_url = "redis+sentinel://a"; }, "redis_url: after the sentinels"},
        {[](o &o) { o.redis_url = "redis://"; }, "redis_url: the host is missing"},
        {[](o &o) { o.redis_url = "redis://a:0"; }, "redis_url: the port must be"},
        {[](o &o) { o.redis_url = "redis://a:65536"; }, "redis_url: the port must be"},
        {[](o &o) { o.redis_url = "redis://a/x"; }, "redis_url: the database"},
        {[](o &o) { o.redis_url = "unix://relative"; }, "redis_url: a unix URL needs an absolute path"},
        {[](o &o) { o.redis_url = "redis://:s3cret%zz@a"; }, "redis_url: user or password has an invalid %-escape"},
        {[](o &o) { o.topics = {"wallet", "wal let"}; }, "\"wal let\" is no topic"},
        {[](o &o) { o.topics = {""}; }, "\"\" is no topic"},
        {[](o &o) { o.topics = {"wallet.*"}; }, "\"wallet.*\" is no topic"},
        {[](o &o) { o.concurrency = 0; }, "concurrency must be 1 to 1024, not 0"},
        {[](o &o) { o.concurrency = -3; }, "concurrency must be 1 to 1024, not -3"},
        {[](o &o) { o.concurrency = 1025; }, "concurrency must be 1 to 1024, not 1025"},
        {[](o &o) { o.prefetch = 0; }, "prefetch must be 1 to 100000, not 0"},
        {[](o &o) { o.prefetch = 100'001; }, "prefetch must be 1 to 100000, not 100001"},
        {[](o &o) { o.prefetch_bytes = 0; }, "prefetch_bytes must be 1 or more"},
        {[](o &o) { o.rate_limit = -1; }, "rate_limit must be 0"},
        {[](o &o) { o.rate_limit = NAN; }, "rate_limit must be 0"},
        {[](o &o) { o.rate_limit = INFINITY; }, "rate_limit must be 0"},
        {[](o &o) { o.rate_limit = 1e-9; }, "rate_limit must be 0"},
        {[](o &o) { o.rate_limit = 1e20; }, "rate_limit must be 0"},
        {[](o &o) {
             o.on_poison = on_poison::park_aggregate;
             o.ordering = ordering::none;
         },
         "on_poison::park_aggregate needs ordering::aggregate"},
        {[](o &o) { o.retry.max_attempts = 0; }, "retry.max_attempts must be 1 or more, not 0"},
        {[](o &o) { o.retry.initial = -1ms; }, "retry.initial must be"},
        {[](o &o) { o.retry.max = 1ms; }, "retry.max must be retry.initial (200 ms) or more"},
        {[](o &o) { o.retry.multiplier = 0.5; }, "retry.multiplier must be 1 or more"},
        {[](o &o) { o.retry.jitter = 2; }, "retry.jitter must be 0 to 1"},
        {[](o &o) { o.retry.jitter = NAN; }, "retry.jitter must be 0 to 1"},
        {[](o &o) { o.inbox = "no conninfo"; }, "the connection string of the inbox"},
        {[](o &o) { o.inbox_retention = -1s; }, "inbox_retention must be 0"},
        {[](o &o) { o.start = "$"; }, "start must be \"0\" or a position <ms>-<n>, not \"$\""},
        {[](o &o) { o.start = ""; }, "start must be"},
        {[](o &o) { o.start = "-1-0"; }, "start must be"},
        {[](o &o) { o.start = "5"; }, "start must be"},
        {[](o &o) { o.start = "5-1"; }, "nothing"},
        {[](o &o) { o.idempotency_ttl = 999ms; }, "idempotency_ttl must be 1000 ms or more, not 999 ms"},
        {[](o &o) { o.claim_idle = 99ms; }, "claim_idle must be 100 ms or more, not 99 ms"},
        {[](o &o) { o.claim_idle = std::chrono::milliseconds::max(); }, "claim_idle must be less than a hundred years"},
        {[](o &o) { o.reap_idle = 0ms; }, "reap_idle must be"},
        {[](o &o) { o.block = 9ms; }, "block must be 10 ms or more"},
        {[](o &o) { o.block = o.claim_idle; }, "block must be less than claim_idle"},
        {[](o &o) { o.connect_timeout = 0ms; }, "connect_timeout must be 1 ms or more"},
        {[](o &o) { o.response_timeout = 0ms; }, "response_timeout must be 1 ms or more"},
        {[](o &o) { o.reconnect_min = 0ms; }, "reconnect_min must be 1 ms or more"},
        {[](o &o) { o.reconnect_max = 1ms; }, "reconnect_max must be reconnect_min or more"},
        {[](o &o) { o.shutdown_timeout = -1ms; }, "shutdown_timeout must be 0 ms or more"},
        {[](o &o) { o.shutdown_timeout = 0ms; }, "nothing"},
    };
    for (const auto &one : cases) {
        std::string said = refusal(one.change);
        EXPECT_TRUE(said.starts_with(one.says)) << said << "\n  instead of: " << one.says;
        EXPECT_EQ(said.find("s3cret"), std::string::npos) << said;
    }
}

// from the environment

// Variables for as long as the object lives.
class environment {
  public:
    explicit environment(std::vector<std::pair<std::string, std::string>> variables) : variables_(std::move(variables)) {
        for (const auto &[name, value] : variables_)
            setenv(name.c_str(), value.c_str(), 1);
    }
    ~environment() {
        for (const auto &[name, value] : variables_)
            unsetenv(name.c_str());
    }
    environment(const environment &) = delete;
    environment &operator=(const environment &) = delete;

  private:
    std::vector<std::pair<std::string, std::string>> variables_;
};

TEST(Options, come_from_the_environment) {
    environment set({{"OUTBOX_REDIS_URL", "redis://redis.example:6380/2"},
                     {"OUTBOX_REDIS_PASSWORD_FILE", "/run/secrets/redis"},
                     {"OUTBOX_GROUP", "billing"},
                     {"OUTBOX_CONSUMER", "billing-7"},
                     {"OUTBOX_TOPICS", "wallet, user ,,eu.wallet"},
                     {"OUTBOX_CONCURRENCY", "8"},
                     {"OUTBOX_PREFETCH", "1000"},
                     {"OUTBOX_PREFETCH_BYTES", "50000000"},
                     {"OUTBOX_RATE_LIMIT", "12.5"},
                     {"OUTBOX_MAX_ATTEMPTS", "9"},
                     {"OUTBOX_CLAIM_IDLE_MS", "60000"},
                     {"OUTBOX_SHUTDOWN_TIMEOUT_MS", "5000"},
                     {"OUTBOX_INBOX", "dbname=billing"}});
    auto options = consumer_options::from_env();
    EXPECT_EQ(options.redis_url, "redis://redis.example:6380/2");
    EXPECT_EQ(options.redis_password_file, "/run/secrets/redis");
    EXPECT_EQ(options.group, "billing");
    EXPECT_EQ(options.name, "billing-7");
    EXPECT_EQ(options.topics, (std::vector<std::string>{"wallet", "user", "eu.wallet"}));
    EXPECT_EQ(options.concurrency, 8);
    EXPECT_EQ(options.prefetch, 1000u);
    EXPECT_EQ(options.prefetch_bytes, 50'000'000u);
    EXPECT_EQ(options.rate_limit, 12.5);
    EXPECT_EQ(options.retry.max_attempts, 9);
    EXPECT_EQ(options.claim_idle, 60s);
    EXPECT_EQ(options.shutdown_timeout, 5s);
    EXPECT_EQ(options.inbox, "dbname=billing");
    EXPECT_NO_THROW(options.validate());
}

TEST(Options, keep_their_defaults_where_the_environment_is_silent_or_empty) {
    environment set({{"OUTBOX_REDIS_URL", ""}, {"OUTBOX_GROUP", ""}, {"OUTBOX_CONCURRENCY", ""}, {"OUTBOX_TOPICS", ""}});
    auto options = consumer_options::from_env();
    consumer_options defaults;
    EXPECT_EQ(options.redis_url, defaults.redis_url);
    EXPECT_EQ(options.concurrency, defaults.concurrency);
    EXPECT_TRUE(options.group.empty());
    EXPECT_TRUE(options.topics.empty());
    EXPECT_THROW(options.validate(), std::invalid_argument); // no group
}

TEST(Options, name_the_variable_that_is_no_number) {
    for (auto variable : {"OUTBOX_CONCURRENCY", "OUTBOX_PREFETCH", "OUTBOX_PREFETCH_BYTES", "OUTBOX_RATE_LIMIT",
                          "OUTBOX_MAX_ATTEMPTS", "OUTBOX_CLAIM_IDLE_MS", "OUTBOX_SHUTDOWN_TIMEOUT_MS"})
        for (auto value : {"four", "4x", " 4", "4 ", "0x10", "1e", "99999999999999999999999999999999", "--1", "-", "+1"}) {
            if (variable == std::string("OUTBOX_RATE_LIMIT") && value == std::string("99999999999999999999999999999999"))
                continue; // is one
            environment set({std::pair<std::string, std::string>(variable, value)});
            try {
                consumer_options::from_env();
                ADD_FAILURE() << variable << "=" << value;
            } catch (const std::invalid_argument &refused) {
                EXPECT_EQ(refused.what(), std::string(variable) + " must be a number, not \"" + value + "\"");
            }
        }
}

TEST(Options, a_number_of_the_environment_that_cannot_work_is_refused_like_any_other) {
    environment set({{"OUTBOX_GROUP", "billing"}, {"OUTBOX_CONCURRENCY", "-4"}});
    auto options = consumer_options::from_env();
    EXPECT_THROW(consumer{options}, std::invalid_argument);
}

} // namespace outbox::test

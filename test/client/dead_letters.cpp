// What operators do with dead letters, against a real server.
#include <outbox/dead_letter.hpp>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "redis_server.hpp"
#include "src/keys.hpp"
#include "src/scripts.hpp"
#include "src/sync_redis.hpp"

namespace outbox {
namespace {

using namespace std::chrono_literals;
using test::redis_server;
using strings = std::vector<std::string>;

std::string str(const redisReply &reply) { return {reply.str, reply.len}; }

class dead_letter_stream : public testing::Test {
  protected:
    static void SetUpTestSuite() { server_ = std::make_unique<redis_server>(); }
    static void TearDownTestSuite() { server_.reset(); }
    void SetUp() override {
        server_->command("FLUSHALL");
        server_->command("XGROUP", "CREATE", keys.stream, "billing", "0", "MKSTREAM");
    }

    // An event that a consumer has read.
    std::string deliver(const std::string &event_id, const std::string &aggregate_id = "a") {
        auto id = str(*server_->command("XADD", keys.stream, "*", "event_id", event_id, "aggregate_type", "wallet",
                                        "aggregate_id", aggregate_id, "payload", std::string("\0{}", 3)));
        server_->command("XREADGROUP", "GROUP", "billing", "me", "STREAMS", keys.stream, ">");
        return id;
    }

    std::string bury(const std::string &id, const std::string &aggregate_id = "a", bool park = false) {
        return str(*redis().run(detail::bury,
                                {keys.stream, attempts(), keys.dead, keys.parked, keys.redrive},
                                {"billing", "me", id, "no such wallet", "5", "6:wallet" + aggregate_id,
                                 park ? "1" : "0", ""}));
    }
    std::string die(const std::string &event_id) { return bury(deliver(event_id)); }

    void park(const std::string &id, const std::string &aggregate_id = "a") {
        redis().run(detail::begin, {keys.stream, attempts(), keys.parked, keys.stream, keys.redrive, keys.dead},
                    {"billing", "me", "", "60000", "1", "0", id, "", "1", "6:wallet" + aggregate_id});
    }

    // An entry that was trimmed away before it was handled.
    void die_trimmed() {
        auto id = deliver("e");
        server_->command("XDEL", keys.stream, id);
        bury(id);
    }

    strings redriven() {
        auto reply = server_->command("XRANGE", keys.redrive, "-", "+");
        strings result;
        for (std::size_t i = 0; i < reply->elements; ++i)
            result.push_back(str(*reply->element[i]->element[1]->element[3])); // behind outbox_position
        return result;
    }

    detail::sync_redis redis() {
        redis_url url;
        std::string error;
        if (!parse_redis_url(server_->url(), url, error))
            throw std::runtime_error(error);
        return {url, 30s};
    }
    std::string attempts() const { return detail::topic_keys::attempts(keys.stream, "billing"); }

    static std::unique_ptr<redis_server> server_;
    const detail::topic_keys keys{"wallet", "billing"};
    dead_letters letters{server_->url(), "wallet", "billing"};
};
std::unique_ptr<redis_server> dead_letter_stream::server_;

TEST_F(dead_letter_stream, is_empty_before_anything_died) {
    EXPECT_EQ(letters.count(), 0u);
    EXPECT_TRUE(letters.list().empty());
    EXPECT_FALSE(letters.inspect("1-1"));
    EXPECT_FALSE(letters.redrive("1-1"));
    EXPECT_FALSE(letters.discard("1-1"));
    EXPECT_EQ(letters.redrive_all(), 0u);
    EXPECT_EQ(letters.discard_all(), 0u);
}

TEST_F(dead_letter_stream, tells_everything_about_a_dead_letter) {
    auto position = deliver("e1");
    auto id = bury(position, "a", true);
    auto behind = deliver("e2");
    park(behind);

    EXPECT_EQ(letters.count(), 1u);
    auto letter = letters.inspect(id);
    ASSERT_TRUE(letter);
    EXPECT_EQ(letter->id, id);
    EXPECT_EQ(letter->topic, "wallet");
    EXPECT_EQ(letter->position, position);
    EXPECT_EQ(letter->stream, keys.stream);
    EXPECT_EQ(letter->error, "no such wallet");
    EXPECT_EQ(letter->consumer, "me");
    EXPECT_EQ(letter->attempts, 5);
    EXPECT_EQ(letter->parked, 1u);
    EXPECT_LT(std::chrono::abs(letter->died_at - std::chrono::system_clock::now()), 1min);
    std::vector<std::pair<std::string, std::string>> fields{
        {"event_id", "e1"}, {"aggregate_type", "wallet"}, {"aggregate_id", "a"}, {"payload", std::string("\0{}", 3)}};
    EXPECT_EQ(letter->fields, fields);
    EXPECT_EQ(letter->field("event_id"), "e1");
    EXPECT_EQ(letter->field("payload").size(), 3u);
    EXPECT_EQ(letter->field("headers"), "");
}

TEST_F(dead_letter_stream, is_listed_page_by_page_oldest_first) {
    strings ids;
    for (int i = 0; i < 5; ++i)
        ids.push_back(die("e" + std::to_string(i)));
    strings seen;
    for (std::string after = "0";;) {
        auto page = letters.list(2, after);
        if (page.empty())
            break;
        EXPECT_LE(page.size(), 2u);
        for (const auto &letter : page)
            seen.push_back(letter.id);
        after = seen.back();
    }
    EXPECT_EQ(seen, ids);
    EXPECT_EQ(letters.list().size(), 5u);
    EXPECT_TRUE(letters.list(0).empty());
    EXPECT_EQ(letters.list(std::numeric_limits<std::size_t>::max()).size(), 5u);
}

TEST_F(dead_letter_stream, counts_what_is_parked_behind_each) {
    bury(deliver("e1", "a"), "a", true);
    bury(deliver("e2", "b"), "b", false);
    bury(deliver("e3", "c"), "c", true);
    for (auto aggregate : {"a", "c", "c"})
        park(deliver("e", aggregate), aggregate);
    bury(deliver("e9", "a"), "a", true);
    auto list = letters.list();
    ASSERT_EQ(list.size(), 4u);
    EXPECT_EQ(list[0].parked, 1u);
    EXPECT_EQ(list[1].parked, 0u);
    EXPECT_EQ(list[2].parked, 2u);
    EXPECT_EQ(list[3].parked, 0u) << "they wait for the first";
    EXPECT_TRUE(letters.redrive(list[0].id));
    EXPECT_EQ(letters.inspect(list[3].id)->parked, 0u);
}

TEST_F(dead_letter_stream, redrives_one_with_what_is_parked_behind_it) {
    auto id = bury(deliver("e1"), "a", true);
    auto other = die("e9");
    park(deliver("e2"));
    park(deliver("e3"));
    EXPECT_TRUE(letters.redrive(id));
    EXPECT_EQ(redriven(), (strings{"e1", "e2", "e3"}));
    EXPECT_EQ(letters.count(), 1u);
    EXPECT_FALSE(letters.inspect(id));
    EXPECT_FALSE(letters.redrive(id));
    EXPECT_TRUE(letters.inspect(other));
}

TEST_F(dead_letter_stream, releases_what_is_parked_however_the_id_is_written) {
    auto id = bury(deliver("e1"), "a", true);
    park(deliver("e2"));
    EXPECT_TRUE(letters.discard("0" + id));
    EXPECT_EQ(redriven(), strings{"e2"});
}

TEST_F(dead_letter_stream, does_not_take_anything_else_for_an_id) {
    auto id = die("e1");
    for (std::string_view wrong : {"", "-", "+", "abc", "(1-1", "$", "*"}) {
        EXPECT_FALSE(letters.inspect(wrong)) << wrong;
        EXPECT_FALSE(letters.redrive(wrong)) << wrong;
        EXPECT_FALSE(letters.discard(wrong)) << wrong;
    }
    EXPECT_FALSE(letters.discard(id.substr(0, id.find('-')))) << "half an id may be that of several";
    EXPECT_THROW(letters.list(1, "abc"), reply_error);
    EXPECT_EQ(letters.count(), 1u);
}

TEST_F(dead_letter_stream, redrives_and_discards_those_that_a_filter_accepts) {
    for (int i = 0; i < 6; ++i)
        die("e" + std::to_string(i));
    auto odd = [](const dead_letter &letter) { return (letter.field("event_id").back() - '0') % 2 == 1; };
    EXPECT_EQ(letters.redrive(odd), 3u);
    EXPECT_EQ(redriven(), (strings{"e1", "e3", "e5"}));
    EXPECT_EQ(letters.discard([](const dead_letter &letter) { return letter.field("event_id") == "e2"; }), 1u);
    EXPECT_EQ(letters.discard_all(), 2u);
    EXPECT_EQ(letters.count(), 0u);
    EXPECT_EQ(redriven().size(), 3u);
}

TEST_F(dead_letter_stream, redrives_hundreds_in_order_and_leaves_what_dies_meanwhile) {
    strings expected;
    for (int i = 0; i < 250; ++i) {
        expected.push_back("e" + std::to_string(i));
        die(expected.back());
    }
    bool first = true;
    EXPECT_EQ(letters.redrive([&](const dead_letter &) {
        if (first)
            die("late");
        first = false;
        return true;
    }),
              250u);
    EXPECT_EQ(redriven(), expected);
    ASSERT_EQ(letters.count(), 1u);
    EXPECT_EQ(letters.list()[0].field("event_id"), "late");
}

TEST_F(dead_letter_stream, cannot_redrive_what_was_trimmed_away) {
    die_trimmed();
    die("e2");
    auto list = letters.list();
    ASSERT_EQ(list.size(), 2u);
    EXPECT_TRUE(list[0].fields.empty());
    EXPECT_EQ(list[0].field("event_id"), "");
    try {
        letters.redrive(list[0].id);
        ADD_FAILURE() << "redriven";
    } catch (const reply_error &error) {
        EXPECT_EQ(error.code(), "GONE");
    }
    EXPECT_EQ(letters.redrive_all(), 1u);
    EXPECT_EQ(redriven(), strings{"e2"});
    EXPECT_TRUE(letters.discard(list[0].id));
}

TEST_F(dead_letter_stream, shows_and_redrives_what_a_stranger_put_there) {
    server_->command("XADD", keys.dead, "7-7", "note", "hello", "outbox_attempts", "many");
    auto letter = letters.inspect("7-7");
    ASSERT_TRUE(letter);
    EXPECT_EQ(letter->position, "");
    EXPECT_EQ(letter->attempts, 0);
    EXPECT_EQ(letter->field("note"), "hello");
    EXPECT_TRUE(letters.redrive("7-7"));
    EXPECT_EQ(redriven(), strings{"hello"});
}

TEST_F(dead_letter_stream, of_a_wrong_type_is_an_error_with_the_words_of_redis) {
    server_->command("SET", keys.dead, "not a stream");
    try {
        letters.list();
        ADD_FAILURE() << "listed";
    } catch (const reply_error &error) {
        EXPECT_EQ(error.code(), "WRONGTYPE");
        EXPECT_TRUE(std::string(error.what()).starts_with("WRONGTYPE Operation against a key"));
    }
    EXPECT_THROW(letters.count(), reply_error);
    EXPECT_THROW(letters.redrive("1-1"), reply_error);
    server_->command("DEL", keys.dead);
    EXPECT_EQ(letters.count(), 0u) << "the connection is still good";
}

// --- connecting ---

TEST_F(dead_letter_stream, may_be_moved) {
    die("e1");
    dead_letters moved = std::move(letters);
    EXPECT_EQ(moved.count(), 1u);
    letters = std::move(moved);
    EXPECT_EQ(letters.count(), 1u);
}

TEST_F(dead_letter_stream, is_found_over_tcp_and_in_the_database_of_the_url) {
    auto id = die("e1");
    EXPECT_EQ(dead_letters(server_->tcp_url(), "wallet", "billing").count(), 1u);
    EXPECT_EQ(dead_letters(server_->tcp_url() + "/3", "wallet", "billing").count(), 0u);
    EXPECT_EQ(dead_letters(server_->url() + "?db=3", "wallet", "billing").count(), 0u);
    EXPECT_EQ(dead_letters(server_->tcp_url(), "wallet", "mailing").count(), 0u);
    EXPECT_EQ(dead_letters(server_->tcp_url(), "user", "billing").count(), 0u);
    EXPECT_TRUE(dead_letters(server_->tcp_url(), "wallet", "billing").redrive(id));
}

TEST_F(dead_letter_stream, is_found_after_the_server_forgot_its_scripts) {
    auto first = die("e1"), second = die("e2");
    EXPECT_TRUE(letters.redrive(first));
    server_->command("SCRIPT", "FLUSH");
    EXPECT_TRUE(letters.redrive(second));
}

TEST(dead_letters, log_in_with_what_the_url_says) {
    redis_server server({"requirepass secret", "user worker on >word ~* +@all"});
    auto port = std::to_string(server.port());
    auto count = [&](const std::string &credentials) {
        return dead_letters("redis://" + credentials + "@127.0.0.1:" + port + "/1", "wallet", "billing").count();
    };
    EXPECT_EQ(count(":secret"), 0u);
    EXPECT_EQ(count("worker:word"), 0u);
    EXPECT_EQ(dead_letters("unix://:secret@" + server.socket_path(), "wallet", "billing").count(), 0u);
    for (auto [credentials, code] : {std::pair{":wrong", "WRONGPASS"}, {"worker:secret", "WRONGPASS"}, {"worker", "WRONGPASS"}})
        try {
            count(credentials);
            ADD_FAILURE() << credentials;
        } catch (const reply_error &error) {
            EXPECT_EQ(error.code(), code);
            EXPECT_EQ(std::string(error.what()).find("secret"), std::string::npos);
        }
}

TEST(dead_letters, are_not_taken_from_another_database_where_the_one_of_the_url_is_missing) {
    redis_server server({"databases 2"});
    server.command("XADD", "outbox:{wallet}:dlq:billing", "1-1", "f", "v");
    dead_letters letters(server.url() + "?db=7", "wallet", "billing");
    EXPECT_THROW(letters.count(), reply_error);
    EXPECT_THROW(letters.count(), reply_error) << "nor at the second try";
}

TEST(dead_letters, connect_again_after_an_error) {
    redis_server server({"appendonly yes", "appendfsync always"});
    for (const auto &url : {server.url(), server.tcp_url()}) {
        dead_letters letters(url, "wallet", "billing");
        EXPECT_EQ(letters.count(), 0u);
        server.kill9();
        EXPECT_THROW(letters.count(), connection_error);
        EXPECT_THROW(letters.count(), connection_error);
        server.start();
        EXPECT_EQ(letters.count(), 0u);
        server.restart();
        // Written to a connection whose other end is gone: an error, not a SIGPIPE.
        EXPECT_THROW(letters.count(), connection_error);
        EXPECT_EQ(letters.count(), 0u);
    }
}

TEST(dead_letters, say_what_they_could_not_reach) {
    try {
        dead_letters("redis://:secret@127.0.0.1:1", "wallet", "billing").count();
        ADD_FAILURE() << "connected";
    } catch (const connection_error &error) {
        EXPECT_STREQ(error.what(), "could not connect to Redis at \"127.0.0.1:1\": Connection refused");
    }
}

TEST(dead_letters, do_not_wait_longer_than_the_timeout) {
    redis_server server;
    server.command("XADD", "outbox:{wallet}:dlq:billing", "1-1", "f", "v");
    for (const auto &url : {server.url(), server.tcp_url()}) {
        dead_letters letters(url, "wallet", "billing", 100ms);
        // the time may be over before a server answers that is well
        auto patiently = [](const auto &ask) {
            for (int attempt = 0; attempt < 100; ++attempt)
                try {
                    return ask();
                } catch (const timeout_error &) {
                }
            throw std::runtime_error("no answer in a hundred attempts");
        };
        EXPECT_EQ(patiently([&] { return letters.count(); }), 1u);
        server.stop();
        auto begin = std::chrono::steady_clock::now();
        EXPECT_THROW(letters.count(), timeout_error);
        EXPECT_LT(std::chrono::steady_clock::now() - begin, 30s);
        server.cont();
        // Not the late answer to another question.
        EXPECT_EQ(patiently([&] { return letters.list(); }).at(0).id, "1-1");
    }
}

TEST(dead_letters, refuse_what_cannot_be_before_they_connect) {
    auto make = [](std::string_view url, const std::string &topic, const std::string &group,
                   std::chrono::milliseconds timeout) { dead_letters(url, topic, group, timeout); };
    EXPECT_NO_THROW(make("redis://127.0.0.1:1", "wallet", "billing", 1ms));
    EXPECT_NO_THROW(make("redis://127.0.0.1:1", "wallet.audit", std::string(200, 'g'), 1ms));
    EXPECT_THROW(make("http://127.0.0.1", "wallet", "billing", 1ms), std::invalid_argument);
    for (const auto &topic : {"", "a b", "{a}", "a..b", "*"})
        EXPECT_THROW(make("redis://127.0.0.1:1", topic, "billing", 1ms), std::invalid_argument) << topic;
    for (const auto &group : {std::string(), std::string("a b"), std::string("a:b"), std::string("{a}"), std::string("a\n"),
                              std::string("\0", 1), std::string(201, 'g')})
        EXPECT_THROW(make("redis://127.0.0.1:1", "wallet", group, 1ms), std::invalid_argument) << group;
    EXPECT_THROW(make("redis://127.0.0.1:1", "wallet", "billing", 0ms), std::invalid_argument);
}

} // namespace
} // namespace outbox

#include "src/reply.hpp"

#include "test/client/replies.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

using namespace outbox::detail;
using namespace outbox::test;
using namespace std::string_literals;

namespace {

// replies in arenas

TEST(Arena, a_reply_holds_what_was_sent) {
    reader connection;
    auto reply = connection.read(
        array({bulk("a\r\nb\0c"s), integer(-7), nil, nil_array, "+OK\r\n", "-ERR no\r\n", "*0\r\n",
               texts({"", "x"}), array({array({array({bulk("deep")})})})}));
    ASSERT_EQ(reply->type, REDIS_REPLY_ARRAY);
    ASSERT_EQ(reply->elements, 9u);
    auto &at = reply->element;
    EXPECT_EQ(at[0]->type, REDIS_REPLY_STRING);
    EXPECT_EQ(text(*at[0]), "a\r\nb\0c"s);
    EXPECT_EQ(at[1]->type, REDIS_REPLY_INTEGER);
    EXPECT_EQ(at[1]->integer, -7);
    EXPECT_EQ(at[2]->type, REDIS_REPLY_NIL);
    EXPECT_EQ(at[3]->type, REDIS_REPLY_NIL);
    EXPECT_EQ(text(*at[2]), "");
    EXPECT_EQ(at[4]->type, REDIS_REPLY_STATUS);
    EXPECT_STREQ(at[4]->str, "OK");
    EXPECT_EQ(at[5]->type, REDIS_REPLY_ERROR);
    EXPECT_STREQ(at[5]->str, "ERR no");
    EXPECT_EQ(at[6]->type, REDIS_REPLY_ARRAY);
    EXPECT_EQ(at[6]->elements, 0u);
    EXPECT_EQ(text(*at[7]->element[0]), "");
    EXPECT_NE(at[7]->element[0]->str, nullptr);
    EXPECT_EQ(text(*at[7]->element[1]), "x");
    EXPECT_EQ(text(*at[8]->element[0]->element[0]->element[0]), "deep");
}

TEST(Arena, replies_follow_one_another_whatever_they_are) {
    reader connection;
    connection.feed(":1\r\n+OK\r\n-ERR x\r\n$-1\r\n*-1\r\n*0\r\n" + bulk("last"));
    for (int type : {REDIS_REPLY_INTEGER, REDIS_REPLY_STATUS, REDIS_REPLY_ERROR, REDIS_REPLY_NIL,
                     REDIS_REPLY_NIL, REDIS_REPLY_ARRAY, REDIS_REPLY_STRING}) {
        auto reply = connection.next();
        ASSERT_NE(reply, nullptr);
        EXPECT_EQ(reply->type, type);
    }
    EXPECT_EQ(connection.next(), nullptr);
}

TEST(Arena, a_reply_may_come_byte_by_byte) {
    reader connection;
    std::string bytes = array({bulk(std::string(3000, 'a')), texts({"b", "c"})});
    for (std::size_t i = 0; i + 1 < bytes.size(); ++i) {
        connection.feed(bytes.substr(i, 1));
        ASSERT_EQ(connection.next(), nullptr);
    }
    auto reply = connection.read(bytes.substr(bytes.size() - 1));
    EXPECT_EQ(text(*reply->element[0]), std::string(3000, 'a'));
    EXPECT_EQ(text(*reply->element[1]->element[1]), "c");
}

TEST(Arena, large_and_small_texts_are_all_there) {
    std::mt19937 random(20260121);
    std::vector<std::string> sent;
    std::string bytes = "*2000\r\n";
    for (int i = 0; i < 2000; ++i) {
        sent.emplace_back(random() % (i % 100 == 0 ? 300'000 : 300),
                          static_cast<char>('a' + i % 26));
        bytes += bulk(sent.back());
    }
    reader connection;
    auto reply = connection.read(bytes);
    ASSERT_EQ(reply->elements, sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i)
        ASSERT_EQ(text(*reply->element[i]), sent[i]) << i;
}

TEST(Arena, large_texts_leave_no_gaps) {
    std::string bytes = "*200\r\n";
    for (int i = 0; i < 100; ++i)
        bytes += bulk(std::string(40'000, 'x')) + bulk("small");
    reader connection;
    auto reply = connection.read(bytes);
    EXPECT_GT(arena_size(reply.get()), 100u * 40'000);
    EXPECT_LT(arena_size(reply.get()), 100u * 41'000);
}

TEST(Arena, an_array_of_any_length_is_all_there) {
    for (std::size_t length : {1u, 1023u, 1024u, 1025u, 2047u, 2048u, 2049u, 100'000u}) {
        std::string bytes = "*" + std::to_string(length) + "\r\n";
        for (std::size_t i = 0; i < length; ++i)
            bytes += integer(static_cast<long long>(i));
        reader connection;
        auto reply = connection.read(bytes);
        ASSERT_EQ(reply->elements, length);
        for (std::size_t i = 0; i < length; ++i)
            ASSERT_EQ(reply->element[i]->integer, static_cast<long long>(i)) << length;
    }
}

TEST(Arena, what_is_only_announced_takes_no_memory) {
    reader connection;
    for (int depth = 0; depth < 5; ++depth)
        connection.feed("*20000000\r\n");
    connection.feed(":1\r\n$1000000000\r\nabc");
    EXPECT_EQ(connection.next(), nullptr);
    EXPECT_STREQ(connection.error(), "");
    EXPECT_LE(connection.half_read(), 100'000u);
}

TEST(Arena, an_array_that_no_memory_could_hold_is_refused) {
    for (const char *count :
         {"100000000", "2147483647", "2147483648", "4294967295", "9223372036854775807"}) {
        reader connection;
        connection.feed("*"s + count + "\r\n:1\r\n");
        EXPECT_EQ(connection.next(), nullptr);
        EXPECT_STRNE(connection.error(), "") << count;
        reader nested;
        nested.feed("*2\r\n*"s + count + "\r\n:1\r\n");
        EXPECT_EQ(nested.next(), nullptr);
        EXPECT_STRNE(nested.error(), "") << count;
    }
}

TEST(Arena, a_string_that_never_comes_is_waited_for) {
    reader connection;
    connection.feed("*2\r\n$1073741824\r\nabc");
    EXPECT_EQ(connection.next(), nullptr);
    EXPECT_STREQ(connection.error(), "");
}

TEST(Arena, what_is_no_reply_is_an_error_of_the_reader) {
    for (const char *bytes : {"HTTP/1.1 400 Bad Request\r\n", "\x16\x03\x01", "*3\r\n:1\r\nx\r\n",
                              "*-7\r\n", "$-7\r\n", ":x\r\n", "*1\r\n*1\r\n*1\r\n?"}) {
        reader connection;
        connection.feed(bytes);
        EXPECT_EQ(connection.next(), nullptr);
        EXPECT_STRNE(connection.error(), "") << bytes;
    }
}

TEST(Arena, a_share_outlives_the_reply_and_the_connection) {
    std::shared_ptr<const void> share;
    std::string_view view;
    {
        reader connection;
        auto reply = connection.read(texts({"first", std::string(100'000, 'x')}));
        share = outbox::detail::share(reply.get());
        view = text(*reply->element[1]);
        auto next = connection.read(texts({"second"}));
        EXPECT_EQ(text(*reply->element[0]), "first");
    }
    EXPECT_EQ(view, std::string(100'000, 'x'));
    auto another = share;
    share.reset();
    EXPECT_EQ(view.back(), 'x');
}

TEST(Arena, the_last_share_may_be_dropped_by_another_thread) {
    reader connection;
    for (int i = 0; i < 200; ++i) {
        auto reply = connection.read(texts({"a", "b"}));
        std::string_view view = text(*reply->element[0]);
        std::vector<std::thread> threads;
        for (int n = 0; n < 2; ++n)
            threads.emplace_back([held = share(reply.get()), view] { EXPECT_EQ(view, "a"); });
        reply.reset();
        for (auto &thread : threads)
            thread.join();
    }
}

#if HIREDIS_MAJOR >= 1
TEST(Arena, what_only_resp3_has_is_as_hiredis_gives_it) {
    reader connection;
    auto reply = connection.read("*7\r\n,1.5\r\n#t\r\n_\r\n(123456789012345678901\r\n=7\r\ntxt:"
                                 "abc\r\n%1\r\n+a\r\n:1\r\n~1\r\n:2\r\n");
    auto &at = reply->element;
    EXPECT_EQ(at[0]->type, REDIS_REPLY_DOUBLE);
    EXPECT_EQ(at[0]->dval, 1.5);
    EXPECT_STREQ(at[0]->str, "1.5");
    EXPECT_EQ(at[1]->type, REDIS_REPLY_BOOL);
    EXPECT_EQ(at[1]->integer, 1);
    EXPECT_EQ(at[2]->type, REDIS_REPLY_NIL);
    EXPECT_EQ(at[3]->type, REDIS_REPLY_BIGNUM);
    EXPECT_EQ(text(*at[3]), "123456789012345678901");
    EXPECT_EQ(at[4]->type, REDIS_REPLY_VERB);
    EXPECT_EQ(text(*at[4]), "abc");
    EXPECT_STREQ(at[4]->vtype, "txt");
    EXPECT_EQ(at[5]->type, REDIS_REPLY_MAP);
    EXPECT_EQ(at[5]->elements, 2u);
    EXPECT_EQ(at[6]->type, REDIS_REPLY_SET);
}
#endif

// what errors mean

// As Redis 6.2 to 8 and Valkey 8 write them.
TEST(Trouble, every_error_says_what_to_do) {
    const struct {
        const char *error;
        trouble expected;
    } table[] = {
        {"NOGROUP No such key 'outbox:{a}' or consumer group 'g' in XREADGROUP with GROUP option",
         trouble::no_group},
        {"NOGROUP No such key 'outbox:{a}' or consumer group 'g'", trouble::no_group},
        {"NOGROUP No such consumer group 'g' for key name 'outbox:{a}'", trouble::no_group},
        {"NOGROUP the consumer group this client was blocked on no longer exists",
         trouble::no_group},
        {"UNBLOCKED the stream key no longer exists", trouble::no_group},
        {"ERR no such key", trouble::no_group},
        {"ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want "
         "to use the MKSTREAM option to "
         "create an empty stream automatically.",
         trouble::no_group},

        {"NOSCRIPT No matching script. Please use EVAL.", trouble::no_script},
        {"NOSCRIPT No matching script.", trouble::no_script},

        {"WRONGTYPE Operation against a key holding the wrong kind of value", trouble::key},
        {"NOPERM this user has no permissions to access one of the keys used as arguments",
         trouble::key},
        {"NOPERM No permissions to access a key", trouble::key},
        {"NOPERM this user has no permissions to run the 'xreadgroup' command", trouble::key},
        {"NOPERM User anna has no permissions to run the 'xreadgroup' command", trouble::key},
        {"CROSSSLOT Keys in request don't hash to the same slot", trouble::key},
        {"ERR The stream has exhausted the last possible ID, unable to add more items",
         trouble::key},
        {"ERR Elements are too large to be stored", trouble::key},
        {"ERR hash value is not an integer", trouble::key},

        {"READONLY You can't write against a read only replica.", trouble::reconnect},
        {"READONLY You can't write against a read only slave.", trouble::reconnect},
        {"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
         trouble::reconnect},
        {"LOADING Redis is loading the dataset in memory", trouble::reconnect},
        {"LOADING Valkey is loading the dataset in memory", trouble::reconnect},
        {"MOVED 3999 127.0.0.1:6381", trouble::reconnect},
        {"ASK 3999 127.0.0.1:6381", trouble::reconnect},
        {"REDIRECT 127.0.0.1:6381", trouble::reconnect},
        {"UNBLOCKED force unblock from blocking operation, instance state changed (master -> "
         "replica?)",
         trouble::reconnect},
        {"NOAUTH Authentication required.", trouble::reconnect},
        {"WRONGPASS invalid username-password pair or user is disabled.", trouble::reconnect},

        {"OOM command not allowed when used memory > 'maxmemory'.", trouble::server},
        {"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist "
         "to disk.",
         trouble::server},
        {"MISCONF Errors writing to the AOF file: No space left on device", trouble::server},
        {"NOREPLICAS Not enough good replicas to write.", trouble::server},
        {"CLUSTERDOWN Hash slot not served", trouble::server},
        {"CLUSTERDOWN The cluster is down", trouble::server},
        {"TRYAGAIN Multiple keys request during rehashing of slot", trouble::server},
        {"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
         trouble::server},
        {"ERR max number of clients reached", trouble::server},
        {"DENIED Redis is running in protected mode because protected mode is enabled",
         trouble::server},
        {"UNBLOCKED client unblocked via CLIENT UNBLOCK", trouble::server},
        {"ERR unknown command 'XAUTOCLAIM', with args beginning with: 'outbox:{a}' ",
         trouble::server},
        {"ERR DB index is out of range", trouble::server},
        {"WHATEVER nobody has heard of it", trouble::server},
        {"", trouble::server},
    };
    for (const auto &row : table)
        EXPECT_EQ(classify_error(row.error), row.expected) << row.error;
}

TEST(Trouble, an_error_in_a_script_means_the_same) {
    const struct {
        const char *error;
        trouble expected;
    } table[] = {
        // 7.0 and later
        {"WRONGTYPE Operation against a key holding the wrong kind of value script: 59b51d21, on "
         "@user_script:1.",
         trouble::key},
        {"OOM command not allowed when used memory > 'maxmemory'. script: 8b2ae6dd, on "
         "@user_script:1.",
         trouble::server},
        {"READONLY You can't write against a read only replica. script: 8b2ae6dd, on "
         "@user_script:1.",
         trouble::reconnect},
        {"NOGROUP No such key 'outbox:{a}' or consumer group 'g' script: 8b2ae6dd, on "
         "@user_script:3.",
         trouble::no_group},
        {"ERR hash value is not an integer script: 6dd27e3a, on @user_script:1.", trouble::key},
        {"ERR The user executing the script can't run this command or subcommand script: 59b51d21, "
         "on @user_script:1.",
         trouble::key},
        {"ERR The user executing the script can't access at least one of the keys mentioned in the "
         "command arguments script: "
         "0b70b014, on @user_script:1.",
         trouble::key},
        {"ERR ACL failure in script: User anna has no permissions to run the 'xadd' command "
         "script: 0b70b014, on @user_script:1.",
         trouble::key},
        {"ERR Script attempted to access a non local key in a cluster node script: 0b70b014, on "
         "@user_script:1.",
         trouble::reconnect},
        {"ERR Script attempted to access keys that do not hash to the same slot", trouble::key},
        {"ERR Can not execute the command on a stale replica", trouble::reconnect},
        {"ERR Can not run script with write flag on readonly replica", trouble::reconnect},
        {"ERR user_script:1: Script attempted to access nonexistent global variable 'x' script: "
         "0b70b014, on @user_script:1.",
         trouble::server},
        // 6.2
        {"ERR Error running script (call to f_59b51d21): @user_script:7: WRONGTYPE Operation "
         "against a key holding the wrong kind "
         "of value ",
         trouble::key},
        {"ERR Error running script (call to f_59b51d21): @user_script:7: @user_script: 7: -OOM "
         "command not allowed when used "
         "memory > 'maxmemory'. ",
         trouble::server},
        {"ERR Error running script (call to f_59b51d21): @user_script:7: @user_script: 7: "
         "-READONLY You can't write against a "
         "read only replica. ",
         trouble::reconnect},
        {"ERR Error running script (call to f_59b51d21): @user_script:7: NOGROUP No such key "
         "'outbox:{a}' or consumer group 'g' ",
         trouble::no_group},
        {"ERR Error running script (call to f_59b51d21): @user_script:7: @user_script: 7: The user "
         "executing the script can't run "
         "this command or subcommand ",
         trouble::key},
        {"ERR Error running script (call to f_59b51d21): @user_script:7: ERR no such key ",
         trouble::no_group},
        {"ERR Error running script", trouble::server},
        {"ERR Error running script @user_script", trouble::server},
    };
    for (const auto &row : table)
        EXPECT_EQ(classify_error(row.error), row.expected) << row.error;
}

TEST(Trouble, the_code_is_the_first_word) {
    EXPECT_EQ(classify_error("ERR this is not about READONLY or WRONGTYPE"), trouble::server);
    EXPECT_EQ(classify_error("BUSYGROUP Consumer Group name already exists"), trouble::server);
    EXPECT_EQ(classify_error("OOM no such key"), trouble::server);
    EXPECT_EQ(classify_error("ASKING nicely"), trouble::server);
}

TEST(Trouble, only_an_error_is_trouble) {
    reader connection;
    EXPECT_EQ(classify(*connection.read("-WRONGTYPE x\r\n")), trouble::key);
    for (const std::string &bytes :
         {bulk("WRONGTYPE x"), "+OOM\r\n"s, nil, integer(3), array({"-OOM x\r\n"})})
        EXPECT_EQ(classify(*connection.read(bytes)), trouble::none) << bytes;
}

// what answers mean

TEST(Interpret, a_read_that_timed_out_brings_no_streams) {
    reader connection;
    for (const std::string &bytes : {nil, nil_array, "*0\r\n"s}) {
        std::vector<raw_stream> streams(1);
        EXPECT_TRUE(interpret_read(*connection.read(bytes), streams));
        EXPECT_TRUE(streams.empty());
    }
}

TEST(Interpret, a_read_brings_entries_of_several_streams) {
    reader connection;
    auto reply = connection.read(array({
        array({bulk("outbox:{a}"), array({array({bulk("5-0"), texts({"k", "v", "k2", ""})}),
                                          array({bulk("5-1"), nil_array})})}),
        array({bulk("outbox:{b}"), array({array({bulk("7-3"), "*0\r\n"})})}),
        array({bulk("outbox:{c}"), "*0\r\n"}),
    }));
    std::vector<raw_stream> streams(9);
    ASSERT_TRUE(interpret_read(*reply, streams));
    ASSERT_EQ(streams.size(), 3u);
    EXPECT_EQ(streams[0].key, "outbox:{a}");
    ASSERT_EQ(streams[0].entries.size(), 2u);
    EXPECT_EQ(streams[0].entries[0].id, "5-0");
    EXPECT_EQ(streams[0].entries[0].fields, reply->element[0]->element[1]->element[0]->element[1]);
    EXPECT_EQ(streams[0].entries[1].id, "5-1");
    EXPECT_EQ(streams[0].entries[1].fields, nullptr);
    ASSERT_EQ(streams[1].entries.size(), 1u);
    EXPECT_EQ(streams[1].entries[0].fields->elements, 0u);
    EXPECT_TRUE(streams[2].entries.empty());
}

TEST(Interpret, nothing_of_a_reply_that_is_no_read_is_believed) {
    reader connection;
    const std::string good = array({bulk("5-0"), texts({"k", "v"})});
    const std::string bad[] = {
        integer(1),
        bulk("x"),
        "+OK\r\n",
        "-NOGROUP x\r\n",
        array({integer(1)}),
        array({array({bulk("s")})}),
        array({array({bulk("s"), bulk("x")})}),
        array({array({integer(1), array({good})})}),
        array({array({bulk("s"), array({good, bulk("x")})})}),
        array({array({bulk("s"), array({good, array({bulk("5-1")})})})}),
        array({array({bulk("s"), array({good, array({bulk("no id"), texts({})})})})}),
        array({array({bulk("s"), array({good, array({integer(5), texts({})})})})}),
        array({array({bulk("s"), array({good, array({bulk("5-1"), texts({"k", "v", "odd"})})})})}),
        array({array(
            {bulk("s"), array({good, array({bulk("5-1"), array({bulk("k"), integer(1)})})})})}),
        array({array({bulk("s"), array({good, array({bulk("5-1"), bulk("x")})})})}),
        array({array({bulk("s"), array({good})}), array({bulk("t"), nil})}),
    };
    for (const auto &bytes : bad) {
        std::vector<raw_stream> streams(1);
        EXPECT_FALSE(interpret_read(*connection.read(bytes), streams)) << bytes;
        EXPECT_TRUE(streams.empty());
    }
}

TEST(Interpret, a_row_may_say_more_than_the_entry) {
    reader connection;
    auto reply = connection.read(array({bulk("5-0"), texts({"k", "v"}), integer(3), integer(-1)}));
    raw_entry entry;
    ASSERT_TRUE(interpret_entry(*reply, entry));
    EXPECT_EQ(entry.id, "5-0");
    EXPECT_EQ(entry.fields, reply->element[1]);
}

TEST(Interpret, the_summary_of_what_is_pending) {
    reader connection;
    pending_summary summary;
    ASSERT_TRUE(interpret_pending(
        *connection.read(array({integer(5), bulk("1-1"), bulk("9-0"),
                                array({texts({"one", "2"}), texts({"two", "3"})})})),
        summary));
    EXPECT_EQ(summary.count, 5u);
    ASSERT_EQ(summary.owners.size(), 2u);
    EXPECT_EQ(summary.owners[1].count, 3u);

    ASSERT_TRUE(
        interpret_pending(*connection.read(array({integer(0), nil, nil, nil_array})), summary));
    EXPECT_EQ(summary.count, 0u);
    EXPECT_TRUE(summary.owners.empty());

    for (const std::string &bytes :
         {nil, integer(0), array({integer(-1), nil, nil, nil}),
          array({integer(1), nil, nil, nil_array}),
          array({integer(1), bulk("1-1"), bulk("1-1"), array({texts({"one", "x"})})}),
          array({integer(1), bulk("1-1"), bulk("1-1"), array({texts({"one", "2x"})})}),
          array({integer(1), bulk("1-1"), bulk("1-1"), array({texts({"one", "-1"})})}),
          array({integer(1), bulk("1-1"), bulk("1-1"), array({texts({"one"})})})}) {
        EXPECT_FALSE(interpret_pending(*connection.read(bytes), summary)) << bytes;
        EXPECT_TRUE(summary.owners.empty());
    }
}

TEST(Interpret, the_list_of_what_is_pending) {
    reader connection;
    auto reply =
        connection.read(array({array({bulk("1-1"), bulk("one"), integer(1500), integer(2)})}));
    std::vector<pending_entry> entries;
    ASSERT_TRUE(interpret_pending_list(*reply, entries));
    ASSERT_EQ(entries.size(), 1u);
    EXPECT_EQ(entries[0].id, "1-1");
    EXPECT_EQ(entries[0].owner, "one");
    EXPECT_EQ(entries[0].idle, 1500);
    EXPECT_EQ(entries[0].deliveries, 2);
    EXPECT_TRUE(interpret_pending_list(*connection.read("*0\r\n"), entries));
    EXPECT_TRUE(entries.empty());
    EXPECT_FALSE(interpret_pending_list(*connection.read(array({texts({"1-1", "one", "1", "2"})})),
                                        entries));
    EXPECT_FALSE(interpret_pending_list(*connection.read(nil), entries));
}

} // namespace

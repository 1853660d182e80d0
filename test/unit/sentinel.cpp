#include "common/sentinel.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>

using outbox::is_master;
using outbox::read_master_address;
using outbox::redis_url;

namespace {

struct free_reply {
    void operator()(redisReply *reply) const { freeReplyObject(reply); }
    void operator()(redisReader *reader) const { redisReaderFree(reader); }
};

// As a server sends it.
std::unique_ptr<redisReply, free_reply> reply(const std::string &text) {
    std::unique_ptr<redisReader, free_reply> reader(redisReaderCreate());
    redisReaderFeed(reader.get(), text.data(), text.size());
    void *result = nullptr;
    EXPECT_EQ(redisReaderGetReply(reader.get(), &result), REDIS_OK) << text;
    EXPECT_NE(result, nullptr) << text;
    return std::unique_ptr<redisReply, free_reply>(static_cast<redisReply *>(result));
}

TEST(sentinel, names_a_master) {
    redis_url::server server;
    std::string why;
    ASSERT_TRUE(read_master_address(*reply("*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6380\r\n"), server, why));
    EXPECT_EQ(server.host + ":" + std::to_string(server.port), "127.0.0.1:6380");
    ASSERT_TRUE(read_master_address(*reply("*2\r\n$3\r\n::1\r\n$1\r\n1\r\n"), server, why));
    EXPECT_EQ(server.host + "|" + std::to_string(server.port), "::1|1");
    ASSERT_TRUE(read_master_address(*reply("*2\r\n$15\r\nredis-1.example\r\n$5\r\n65535\r\n"), server, why));
    EXPECT_EQ(server.host, "redis-1.example");
}

TEST(sentinel, says_why_it_names_none) {
    const struct {
        const char *text, *why;
    } table[] = {
        {"*-1\r\n", "it knows no master of this name"},
        {"$-1\r\n", "it knows no master of this name"},
        {"-NOAUTH Authentication required.\r\n", "NOAUTH Authentication required."},
        {"+OK\r\n", "its answer is no address"},
        {":1\r\n", "its answer is no address"},
        {"*0\r\n", "its answer is no address"},
        {"*1\r\n$1\r\nh\r\n", "its answer is no address"},
        {"*3\r\n$1\r\nh\r\n$1\r\n1\r\n$1\r\n2\r\n", "its answer is no address"},
        {"*2\r\n$1\r\nh\r\n:1\r\n", "its answer is no address"},
        {"*2\r\n$-1\r\n$1\r\n1\r\n", "its answer is no address"},
        {"*2\r\n$0\r\n\r\n$1\r\n1\r\n", "its answer is no address"},
        {"*2\r\n$1\r\nh\r\n$1\r\n0\r\n", "its answer is no address"},
        {"*2\r\n$1\r\nh\r\n$5\r\n65536\r\n", "its answer is no address"},
        {"*2\r\n$3\r\nh i\r\n$1\r\n1\r\n", "its answer is no address"},
        {"*2\r\n$3\r\n[1]\r\n$1\r\n1\r\n", "its answer is no address"},
        {"*2\r\n$10\r\n/run/redis\r\n$1\r\n1\r\n", "its answer is no address"},
    };
    for (const auto &row : table) {
        redis_url::server server;
        std::string why;
        EXPECT_FALSE(read_master_address(*reply(row.text), server, why)) << row.text;
        EXPECT_EQ(why, row.why) << row.text;
    }
}

TEST(sentinel, is_not_believed_where_the_server_says_otherwise) {
    std::string why;
    EXPECT_TRUE(is_master(*reply("*3\r\n$6\r\nmaster\r\n:3129659\r\n*0\r\n"), why));
    for (const char *text : {"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:1\r\n", "*2\r\n$8\r\nsentinel\r\n*0\r\n", "*0\r\n",
                             "*-1\r\n", "+master\r\n", ":1\r\n", "*1\r\n:1\r\n"}) {
        EXPECT_FALSE(is_master(*reply(text), why)) << text;
        EXPECT_EQ(why, "the server that the sentinel named is no master") << text;
    }
    EXPECT_FALSE(is_master(*reply("-NOPERM this user has no permissions to run the 'role' command\r\n"), why));
    EXPECT_TRUE(why.starts_with("NOPERM"));
}

} // namespace

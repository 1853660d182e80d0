#include "common/password_file.hpp"

#include <gtest/gtest.h>

using outbox::password_for;

static std::string found(std::string_view line, std::string_view address) {
    outbox::redis_url url;
    std::string error, password = "none";
    EXPECT_TRUE(outbox::parse_redis_url(address, url, error)) << error;
    return password_for(line, url, password) ? password : "no";
}

TEST(PasswordFile, IsForTheServerThatTheLineNames) {
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://outbox@cache.internal"), "secret");
    EXPECT_EQ(found("cache.internal:6380:outbox:secret", "redis://outbox@cache.internal:6380/3"), "secret");
    EXPECT_EQ(found("cache.internal:*:*:secret", "redis://cache.internal:7000"), "secret");
    EXPECT_EQ(found("cache.internal:6379::secret", "redis://cache.internal"), "secret");
    EXPECT_EQ(found("/run/redis.sock:*::secret", "unix:///run/redis.sock?db=2"), "secret");
    EXPECT_EQ(found("\\:\\:1:6379:*:secret", "redis://[::1]"), "secret");
    EXPECT_EQ(found("a\\:1,b\\:26379/audit:*:outbox:secret", "redis+sentinel://outbox@a:1,b/audit"), "secret");
}

TEST(PasswordFile, IsForNobodyElse) {
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://outbox@cache.external"), "no");
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://outbox@cache.internal:6380"), "no");
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://other@cache.internal"), "no");
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://cache.internal"), "no");
    EXPECT_EQ(found("*:*:*:secret", "redis://cache.internal"), "no");
    EXPECT_EQ(found("/run/redis.sock:6379::secret", "unix:///run/redis.sock"), "no");
    EXPECT_EQ(found("a\\:1,b\\:2/audit:*::secret", "redis+sentinel://a:1,b:3/audit"), "no");
    EXPECT_EQ(found("a\\:1/audit:*::secret", "redis+sentinel://a:1,evil:1/audit"), "no");
    EXPECT_EQ(found("a\\:1/audit:*::secret", "redis+sentinel://a:1/other"), "no");
    EXPECT_EQ(found("a\\:1/audit:6379::secret", "redis+sentinel://a:1/audit"), "no");
    EXPECT_EQ(found("#cache.internal:6379:*:secret", "redis://cache.internal"), "no");
    EXPECT_EQ(found("cache.internal:6379:secret", "redis://cache.internal"), "no");
    EXPECT_EQ(found("cache.internal", "redis://cache.internal"), "no");
    EXPECT_EQ(found("", "redis://cache.internal"), "no");
}

TEST(PasswordFile, MayHaveAnythingInAPassword) {
    EXPECT_EQ(found("h:*:*:a:b", "redis://h"), "a:b");
    EXPECT_EQ(found("h:*:*:a\\:b\\\\c\\d", "redis://h"), "a:b\\c\\d");
    EXPECT_EQ(found("h:*:*: x ", "redis://h"), " x ");
    EXPECT_EQ(found("h:*:*:", "redis://h"), "");
}

TEST(PasswordFile, OfSentinelsIsForAllOfThem) {
    auto found = [](std::string_view line, std::string_view address) {
        outbox::redis_url url;
        std::string error, password = "none";
        EXPECT_TRUE(outbox::parse_redis_url(address, url, error)) << error;
        return outbox::sentinel_password_for(line, url, password) ? password : "no";
    };
    EXPECT_EQ(found("a\\:1,b\\:26379:*::secret", "redis+sentinel://outbox@a:1,b/audit"), "secret");
    EXPECT_EQ(found("a\\:1:*:watcher:secret", "redis+sentinel://a:1/audit?sentinel_user=watcher"), "secret");
    EXPECT_EQ(found("a\\:1:*::secret", "redis+sentinel://a:1,evil:1/audit"), "no");
    EXPECT_EQ(found("a:1:*:secret", "redis+sentinel://a:1/audit"), "no");
    EXPECT_EQ(found("a:1:*:secret", "redis://a:1"), "no");
}

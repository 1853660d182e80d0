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
    EXPECT_EQ(found("a,b/audit:*:outbox:secret", "redis+sentinel://outbox@a:1,b:2/audit"), "secret");
}

TEST(PasswordFile, IsForNobodyElse) {
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://outbox@cache.external"), "no");
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://outbox@cache.internal:6380"), "no");
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://other@cache.internal"), "no");
    EXPECT_EQ(found("cache.internal:6379:outbox:secret", "redis://cache.internal"), "no");
    EXPECT_EQ(found("*:*:*:secret", "redis://cache.internal"), "no");
    EXPECT_EQ(found("/run/redis.sock:6379::secret", "unix:///run/redis.sock"), "no");
    EXPECT_EQ(found("a,b/audit:*::secret", "redis+sentinel://a,c/audit"), "no");
    EXPECT_EQ(found("a,b/audit:*::secret", "redis+sentinel://a,b/other"), "no");
    EXPECT_EQ(found("a,b/audit:6379::secret", "redis+sentinel://a,b/audit"), "no");
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

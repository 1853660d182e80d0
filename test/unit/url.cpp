#include "common/url.hpp"

#include <gtest/gtest.h>

#include <string>

using outbox::mask_passwords;
using outbox::parse_redis_url;
using outbox::redis_url;

namespace {

redis_url parsed(const std::string &text) {
    redis_url url;
    std::string error;
    EXPECT_TRUE(parse_redis_url(text, url, error)) << text << ": " << error;
    return url;
}

std::string refused(std::string_view text) {
    redis_url url;
    std::string error;
    EXPECT_FALSE(parse_redis_url(text, url, error)) << text;
    EXPECT_NE(error, "") << text;
    return error;
}

TEST(url, tcp) {
    const struct {
        const char *text, *host;
        int port, database;
    } table[] = {
        {"redis://127.0.0.1", "127.0.0.1", 6379, 0},
        {"redis://127.0.0.1:6380", "127.0.0.1", 6380, 0},
        {"redis://127.0.0.1:6380/3", "127.0.0.1", 6380, 3},
        {"redis://localhost/", "localhost", 6379, 0},
        {"redis://localhost:/", "localhost", 6379, 0},
        {"redis://cache-1.internal.example:1/0", "cache-1.internal.example", 1, 0},
        {"redis://h:65535/65535", "h", 65535, 65535},
        {"redis://h/007", "h", 6379, 7},
        {"redis://[::1]", "::1", 6379, 0},
        {"redis://[::1]:6380/2", "::1", 6380, 2},
        {"redis://[2001:db8::7]/1", "2001:db8::7", 6379, 1},
    };
    for (const auto &row : table) {
        redis_url url = parsed(row.text);
        EXPECT_EQ(url.host, row.host) << row.text;
        EXPECT_EQ(url.port, row.port) << row.text;
        EXPECT_EQ(url.database, row.database) << row.text;
        EXPECT_EQ(url.path + url.user + url.password, "") << row.text;
    }
}

TEST(url, unix_socket) {
    const struct {
        const char *text, *path;
        int database;
    } table[] = {
        {"unix:///run/redis/redis.sock", "/run/redis/redis.sock", 0},
        {"unix:///run/redis.sock?db=2", "/run/redis.sock", 2},
        {"unix:///a%20b%3Fc%25", "/a b?c%", 0},
        {"unix:///%40", "/@", 0},
        {"unix:///", "/", 0},
    };
    for (const auto &row : table) {
        redis_url url = parsed(row.text);
        EXPECT_EQ(url.path, row.path) << row.text;
        EXPECT_EQ(url.database, row.database) << row.text;
        EXPECT_EQ(url.host + url.user + url.password, "") << row.text;
    }
}

TEST(url, credentials) {
    const struct {
        const char *text, *user, *password;
    } table[] = {
        {"redis://:secret@h", "", "secret"},
        {"redis://anna:secret@h:1/2", "anna", "secret"},
        {"redis://anna:@h", "anna", ""},
        // the password comes from a file
        {"redis://anna@h", "anna", ""},
        {"redis://an%40na@h", "an@na", ""},
        {"redis://@h", "", ""},
        {"redis://:@h", "", ""},
        {"redis://:a:b:c@h", "", "a:b:c"},
        // the last @ is the one that counts, so that a password need not be escaped
        {"redis://:p@ss@h", "", "p@ss"},
        {"redis://:p/w?d#@h", "", "p/w?d#"},
        {"redis://u%3Aser:p%40ss%2fw%25%C3%A9@h", "u:ser", "p@ss/w%\xc3\xa9"},
        {"redis://:%20%0d%0a%22%27@h", "", " \r\n\"'"},
        {"redis://anna:secret@[::1]:7", "anna", "secret"},
        {"unix://anna:secret@/run/redis.sock?db=1", "anna", "secret"},
        {"unix://:secret@/run/redis.sock", "", "secret"},
    };
    for (const auto &row : table) {
        redis_url url = parsed(row.text);
        EXPECT_EQ(url.user, row.user) << row.text;
        EXPECT_EQ(url.password, row.password) << row.text;
    }
}

TEST(url, anything_else_is_refused) {
    for (std::string_view text : {
             // what would end the URL in a line of text, where its password is masked
             "redis://:a b@h", "redis://:a\tb@h", "redis://:a\"b@h", "redis://:a'b@h", "redis://a b:c@h", "redis://:a\nb@h",
             "redis://:a\x7f@h",
             // schemes
             "", "redis", "redis:", "redis:/", "redis://", "redis:///0", "redis://:6379", "redis://::1", "//h", "h:6379",
             "http://h", "REDIS://h", " redis://h", "redis+tls://h", "postgres://h",
             // ports and databases
             "redis://h:0", "redis://h:65536", "redis://h:-1", "redis://h:+1", "redis://h: 1", "redis://h:1 ", "redis://h:6379x",
             "redis://h:99999999999999999999", "redis://h:1:2", "redis://h/x", "redis://h/-1", "redis://h/1/2", "redis://h/65536",
             "redis://h/ 1", "redis://h/1?a=b", "redis://h/4294967296",
             // hosts
             "redis://h h", "redis://h\r\n", "redis://h\t:1", "redis://h\x7f", "redis://[]", "redis://[::1", "redis://[::1]x",
             "redis://[::1]6379", "redis://[::1]:0", "redis://[h]", "redis://[::1 ]", "redis://0]", "redis://a[b", "redis://h?db=1",
             "redis://h?timeout=5s", "redis://h#1", "redis://h,i", "redis://h\"", "redis://h%20", "redis://caf\xc3\xa9", "redis://h\xff",
             // credentials
             "redis://:%@h", "redis://:%4@h", "redis://:%zz@h", "redis://:%00@h", "redis://%0g:x@h",
             "redis://:secret@", "redis://:secret@:1",
             // sockets
             "unix:", "unix://", "unix://relative", "unix://:secret@relative", "unix:///p?", "unix:///p?db=", "unix:///p?db=x",
             "unix:///p?db=65536", "unix:///p?DB=1", "unix:///p?x=1", "unix:///p?db=1&x=2", "unix:///%00", "unix:///p%2",
         })
        refused(text);
    using namespace std::string_view_literals;
    refused("redis://h\0x"sv);
    refused("redis://h:1\0"sv);
}

TEST(url, a_socket_path_has_at_most_107_bytes) {
    EXPECT_EQ(parsed("unix:///" + std::string(106, 'p')).path.size(), 107u);
    refused("unix:///" + std::string(107, 'p'));
    // it is the unescaped path that counts
    std::string escaped;
    for (int i = 0; i < 106; ++i)
        escaped += "%70";
    EXPECT_EQ(parsed("unix:///" + escaped).path.size(), 107u);
}

TEST(url, tls_is_refused_as_such) {
    EXPECT_NE(refused("rediss://h").find("TLS"), std::string::npos);
    EXPECT_NE(refused("rediss://anna:secret@h:6380/0").find("TLS"), std::string::npos);
}

TEST(url, refusal_does_not_quote_the_password) {
    for (const char *text : {"redis://:hunter2@", "redis://:hunter2@h:x", "redis://:hunter2%zz@h", "redis://anna:hunter2@h h",
                             "redis://:hunter2@h/x", "redis://:hunter2 @h", "rediss://:hunter2@h", "http://:hunter2@h", "unix://:hunter2@x",
                             "unix://:hunter2@/p?hunter2=1", "redis://:hunter2@[::1"})
        EXPECT_EQ(refused(text).find("hunter2"), std::string::npos) << text;
}

TEST(url, a_failed_parse_leaves_nothing_of_the_one_before) {
    redis_url url;
    std::string error;
    ASSERT_TRUE(parse_redis_url("redis://anna:secret@h:1/2", url, error));
    ASSERT_TRUE(parse_redis_url("unix:///p", url, error));
    EXPECT_EQ(url.host + url.user + url.password, "");
    EXPECT_EQ(url.port, 6379);
    EXPECT_EQ(url.database, 0);
    ASSERT_TRUE(parse_redis_url("redis://h", url, error));
    EXPECT_EQ(url.path, "");
}

TEST(url, endpoint_is_the_address_without_credentials) {
    EXPECT_EQ(parsed("redis://h").endpoint(), "h:6379");
    EXPECT_EQ(parsed("redis://anna:hunter2@h:1/2").endpoint(), "h:1");
    EXPECT_EQ(parsed("redis://:hunter2@[::1]:7").endpoint(), "[::1]:7");
    EXPECT_EQ(parsed("unix://anna:hunter2@/run/redis.sock?db=3").endpoint(), "/run/redis.sock");
    EXPECT_EQ(parsed("redis://:hunt@er2@h").endpoint(), "h:6379");
}

TEST(mask, hides_the_password_and_nothing_else) {
    const struct {
        const char *text, *masked;
    } table[] = {
        {"", ""},
        {"nothing to see", "nothing to see"},
        {"redis://h:6379/0", "redis://h:6379/0"},
        {"redis://[::1]:6379/0", "redis://[::1]:6379/0"},
        {"redis://:secret@h", "redis://:***@h"},
        {"redis://anna:secret@h:1/2", "redis://anna:***@h:1/2"},
        {"rediss://anna:secret@h", "rediss://anna:***@h"},
        {"unix://anna:secret@/run/redis.sock?db=1", "unix://anna:***@/run/redis.sock?db=1"},
        {"redis://:@h", "redis://:***@h"},
        {"redis://anna@h:6379", "redis://anna@h:6379"},
        {"redis://@h:6379", "redis://@h:6379"},
        {"redis://:a:b@h", "redis://:***@h"},
        {"redis://:a@b@h", "redis://:***@h"},
        {"redis://:a/b?c@h", "redis://:***@h"},
        {"redis://:://@h", "redis://:***@h"},
        {"redis://:p%40%20@h", "redis://:***@h"},
        {"redis://:***@h", "redis://:***@h"},
    };
    for (const auto &row : table)
        EXPECT_EQ(mask_passwords(row.text), row.masked);
}

TEST(mask, in_log_lines) {
    const struct {
        const char *text, *masked;
    } table[] = {
        {"parameter \"outbox.redis_url\" changed to \"redis://anna:secret@h:1/2\"",
         "parameter \"outbox.redis_url\" changed to \"redis://anna:***@h:1/2\""},
        {"statement: ALTER SYSTEM SET outbox.redis_url = 'redis://:secret@h';",
         "statement: ALTER SYSTEM SET outbox.redis_url = 'redis://:***@h';"},
        {"from redis://:one@h to redis://:two@h\nand unix://:three@/p.",
         "from redis://:***@h to redis://:***@h\nand unix://:***@/p."},
        {"redis://:one@h\tx@y", "redis://:***@h\tx@y"},
        {"see redis://h:6379 or write to anna@example.org", "see redis://h:6379 or write to anna@example.org"},
        // also what only looks like ours, or is about to be refused
        {"postgres://anna:secret@h", "postgres://anna:***@h"},
        {"REDIS://anna:secret@h", "REDIS://anna:***@h"},
        {"redis+tls://anna:secret@h", "redis+tls://anna:***@h"},
        {"https://example.org/ and redis://:secret@h", "https://example.org/ and redis://:***@h"},
        {"redis://", "redis://"},
        {"://", "://"},
        {"redis://:secret@", "redis://:***@"},
        {"redis://anna:", "redis://anna:"},
    };
    for (const auto &row : table)
        EXPECT_EQ(mask_passwords(row.text), row.masked);
}

// Whatever is accepted as a URL can be shown: the stretch from the first colon to the last @ is gone, whichever bytes it has.
TEST(mask, every_accepted_password_is_hidden) {
    for (int byte = 1; byte < 256; ++byte) {
        std::string text = std::string("redis://anna:hunter") + static_cast<char>(byte) + "2@h:1/2";
        redis_url url;
        std::string error;
        if (!parse_redis_url(text, url, error))
            continue;
        EXPECT_EQ(mask_passwords(text), "redis://anna:***@h:1/2") << byte;
        EXPECT_EQ(url.endpoint(), "h:1");
    }
}

TEST(mask, masking_twice_changes_nothing) {
    for (const char *text : {"redis://:secret@h", "x redis://a:b@c y unix://d:e@/f", "redis://::::@@@@"}) {
        std::string once = mask_passwords(text);
        EXPECT_EQ(mask_passwords(once), once);
    }
}

} // namespace

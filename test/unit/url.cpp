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
             // parameters
             "redis://h?", "rediss://h?", "rediss://h?sslmode=disable", "rediss://h?sslrootcert", "rediss://h?sslrootcert=",
             "rediss://h?sslrootcert=/a&sslrootcert=/b", "rediss://h?sslrootcert=/a&", "rediss://h?&sslrootcert=/a",
             "rediss://h?sslrootcert=%zz", "rediss://h?sslrootcert=/a b", "rediss://h?sslcert=/a", "rediss://h?sslkey=/a",
             "rediss://h?db=1", "rediss://h?sentinel_user=a", "redis://h?sentinel_password=a",
             // sentinels
             "redis+sentinel://", "redis+sentinel://h", "redis+sentinel://h/", "redis+sentinel:///m", "redis+sentinel://h,/m",
             "redis+sentinel://,h/m", "redis+sentinel://h,,i/m", "redis+sentinel://h:0/m", "redis+sentinel://h/m/x",
             "redis+sentinel://h/m/1/2", "redis+sentinel://h/m n", "redis+sentinel://h/m%00", "redis+sentinel://h i/m",
             "redis+sentinel://h/m?sentinel_password=", "redis+sentinel://h/m?sentinel_password=a\"b", "redis+sentinel:///run/s.sock",
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

TEST(url, tls) {
    redis_url url = parsed("rediss://anna:secret@h/3");
    EXPECT_TRUE(url.tls);
    EXPECT_EQ(url.endpoint(), "h:6379");
    EXPECT_EQ(url.password, "secret");
    EXPECT_EQ(url.database, 3);
    EXPECT_EQ(url.files.ca + url.files.certificate + url.files.key, "");
    for (const char *text : {"redis://h", "unix:///p", "redis+sentinel://h/m"})
        EXPECT_FALSE(parsed(text).tls) << text;

    url = parsed("rediss://[::1]:6380/0?sslrootcert=/etc/ssl/my%20ca.pem&sslcert=a.pem&sslkey=b%3F.key");
    EXPECT_TRUE(url.tls);
    EXPECT_EQ(url.endpoint(), "[::1]:6380");
    EXPECT_EQ(url.files.ca, "/etc/ssl/my ca.pem");
    EXPECT_EQ(url.files.certificate, "a.pem");
    EXPECT_EQ(url.files.key, "b?.key");
    EXPECT_EQ(parsed("rediss://:p?w@h?sslrootcert=/c").files.ca, "/c");
    // whoever asks for a check without TLS would get none
    EXPECT_NE(refused("redis://h?sslrootcert=/c").find("needs TLS"), std::string::npos);
    EXPECT_NE(refused("redis+sentinel://h/m?sslkey=/c").find("needs TLS"), std::string::npos);
    refused("unix:///p?sslrootcert=/c");
}

TEST(url, sentinels) {
    redis_url url = parsed("redis+sentinel://anna:secret@h,10.0.0.2:26380,[2001:db8::7]:5/wallets/3");
    ASSERT_EQ(url.sentinels.size(), 3u);
    EXPECT_EQ(url.endpoint(), "wallets at h:26379,10.0.0.2:26380,[2001:db8::7]:5");
    EXPECT_EQ(url.host + url.path + url.sentinel_user + url.sentinel_password, "");
    EXPECT_EQ(url.user, "anna");
    EXPECT_EQ(url.password, "secret");
    EXPECT_EQ(url.database, 3);

    url = parsed("rediss+sentinel://anna:secret@h/my%20wallets?sentinel_user=s&sentinel_password=hun%40ter&sslrootcert=/c");
    EXPECT_EQ(url.master, "my wallets");
    EXPECT_EQ(url.database, 0);
    redis_url sentinel = url.at_sentinel(0);
    EXPECT_EQ(sentinel.endpoint(), "h:26379");
    EXPECT_EQ(sentinel.user + ":" + sentinel.password, "s:hun@ter");
    EXPECT_EQ(sentinel.database, 0);
    EXPECT_TRUE(sentinel.tls);
    EXPECT_EQ(sentinel.files.ca, "/c");
    redis_url master = url.at_master({"::1", 6380});
    EXPECT_EQ(master.endpoint(), "[::1]:6380");
    EXPECT_EQ(master.user + ":" + master.password, "anna:secret");
    EXPECT_TRUE(master.tls);

    // without a password of their own the sentinels are told none: it would be the wrong one
    EXPECT_EQ(parsed("redis+sentinel://anna:secret@h/m").at_sentinel(0).password, "");
}

TEST(url, refusal_does_not_quote_the_password) {
    for (const char *text : {"redis://:hunter2@", "redis://:hunter2@h:x", "redis://:hunter2%zz@h", "redis://anna:hunter2@h h",
                             "redis://:hunter2@h/x", "redis://:hunter2 @h", "rediss://:hunter2@", "http://:hunter2@h", "unix://:hunter2@x",
                             "unix://:hunter2@/p?hunter2=1", "redis://:hunter2@[::1",
                             "redis+sentinel://h?sentinel_password=hunter2", "redis+sentinel://h/m?sentinel_password=hunter2%zz",
                             "redis+sentinel://h/m?sentinel_password=hunter2&sentinel_password=hunter2", "rediss://h?hunter2=/a"})
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
        {"rediss://:a@h/0?sslkey=/k&sslcert=/c", "rediss://:***@h/0?sslkey=/k&sslcert=/c"},
        {"redis+sentinel://h:1,i:2/m", "redis+sentinel://h:1,i:2/m"},
        {"redis+sentinel://:a@h:1,i:2/m", "redis+sentinel://:***@h:1,i:2/m"},
        {"redis+sentinel://:a@h/m?sentinel_password=b", "redis+sentinel://:***@h/m?sentinel_password=***"},
        {"redis+sentinel://h:1/m?sentinel_password=b&sentinel_user=u", "redis+sentinel://h:1/m?sentinel_password=***&sentinel_user=u"},
        {"redis+sentinel://h/m?sentinel_user=u&sentinel_password=b:c", "redis+sentinel://h/m?sentinel_user=u&sentinel_password=***"},
        // refused, and in the log before that
        {"redis+sentinel://h:1/m?sentinel_password=b@c&x=d", "redis+sentinel://h:1/m?sentinel_password=***"},
        {"redis+sentinel://h/m?sentinel_password=b&sentinel_password=c", "redis+sentinel://h/m?sentinel_password=***&sentinel_password=***"},
        {"redis://h?password=b", "redis://h?password=***"},
        {"redis://:mypassword=1@h:1", "redis://:***@h:1"},
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

#include "extension/event_type.hpp"

#include "test/unit/grammar.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

using outbox::default_topic;
using outbox::is_event_type;
using outbox::is_topic;
using outbox_test::matches;

namespace {

void expect_as_reference(const std::string &text) {
    EXPECT_EQ(is_event_type(text), matches(text, 2, 200)) << text;
    EXPECT_EQ(is_topic(text), matches(text, 1, 100)) << text;
}

TEST(event_type, has_two_or_more_segments) {
    for (const char *text : {"wallet.created", "identity.user.created", "a.b", "A.B", "0.1", "_._", "-.-", "a-b.c_d.e9"})
        EXPECT_TRUE(is_event_type(text)) << text;
    for (const char *text : {"", "wallet", ".", "..", "a.", ".a", "a..b", ".a.b", "a.b."})
        EXPECT_FALSE(is_event_type(text)) << text;
}

TEST(event_type, topic_has_one_or_more_segments) {
    for (const char *text : {"wallet", "a", "9", "_", "a.b.c"})
        EXPECT_TRUE(is_topic(text)) << text;
    for (const char *text : {"", ".", "a.", ".a", "a..b"})
        EXPECT_FALSE(is_topic(text)) << text;
}

// What a Redis key, the protocol, a shell, a log line or a format would take for something else.
TEST(event_type, nothing_else_passes) {
    for (const char *text :
         {"a .b", " a.b", "a.b ", "a.b\n", "a.b\r\nFLUSHALL\r\n", "a.b\t", "{a}.b", "a.{b", "a}.b", "a:b.c", "a.b:dlq", "a.*",
          "a.?", "a.[b]", "../a.b", "a/b.c", "a\\b.c", "%s.%n", "a.b%00", "a'b.c", "a\"b.c", "a;b.c", "a,b.c", "a@b.c",
          "a$b.c", "caf\xc3\xa9.b", "a\xe2\x80\x8b.b", "a.\xff", "a.b\x1b[31m", "a.b\x7f"})
        EXPECT_FALSE(is_event_type(text)) << text;
    using namespace std::string_view_literals;
    EXPECT_FALSE(is_event_type("a.b\0"sv));
    EXPECT_FALSE(is_event_type("a\0.b"sv));
    EXPECT_FALSE(is_topic("\0"sv));
}

TEST(event_type, every_single_byte) {
    for (int byte = 0; byte < 256; ++byte) {
        std::string one(1, static_cast<char>(byte));
        expect_as_reference(one);
        expect_as_reference("a." + one);
        expect_as_reference(one + ".a");
        expect_as_reference("a" + one + "a.a");
        expect_as_reference("a.a" + one + "a");
    }
}

TEST(event_type, every_short_text) {
    const std::string letters = "aZ.-{\n";
    for (std::size_t length = 0; length <= 5; ++length) {
        std::vector<std::size_t> digit(length, 0);
        for (;;) {
            std::string text;
            for (std::size_t d : digit)
                text += letters[d];
            expect_as_reference(text);
            std::size_t i = 0;
            while (i < length && ++digit[i] == letters.size())
                digit[i++] = 0;
            if (i == length)
                break;
        }
    }
}

TEST(event_type, random_texts) {
    std::mt19937 random(20260121);
    const std::string letters = std::string("abcXYZ019_-...") + '\0' + "{ %\r\n\xff";
    for (int i = 0; i < 20000; ++i) {
        // mostly good letters, or nothing long would ever pass
        std::size_t choice = random() % 4 ? 14 : letters.size();
        std::string text;
        for (std::size_t length = random() % 12; text.size() < length;)
            text += letters[random() % choice];
        expect_as_reference(text);
    }
}

TEST(event_type, at_most_200_bytes_and_a_topic_at_most_100) {
    EXPECT_TRUE(is_event_type("a." + std::string(198, 'b')));
    EXPECT_FALSE(is_event_type("a." + std::string(199, 'b')));
    EXPECT_TRUE(is_topic(std::string(100, 'b')));
    EXPECT_FALSE(is_topic(std::string(101, 'b')));
    EXPECT_FALSE(is_event_type("a." + std::string(1 << 20, 'b')));
}

TEST(event_type, default_topic_is_the_first_segment) {
    EXPECT_EQ(default_topic("wallet.created"), "wallet");
    EXPECT_EQ(default_topic("identity.user.created"), "identity");
    EXPECT_EQ(default_topic("x.y.z.z.z"), "x");
}

} // namespace

#include "common/resp.hpp"

#include "test/unit/resp_parser.hpp"

#include <gtest/gtest.h>

#include <random>

using outbox_test::command;
using outbox_test::parse_commands;

namespace {

std::vector<command> parsed(const std::string &text) {
    std::vector<command> commands;
    EXPECT_TRUE(parse_commands(text, commands)) << text;
    return commands;
}

TEST(resp, a_command_is_an_array_of_bulk_strings) {
    std::string out;
    outbox::resp::append(out, "SET", "key", "value");
    EXPECT_EQ(out, "*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n");
    out.clear();
    outbox::resp::append(out, "MULTI");
    EXPECT_EQ(out, "*1\r\n$5\r\nMULTI\r\n");
    out.clear();
    outbox::resp::append(out, "ECHO", "");
    EXPECT_EQ(out, "*2\r\n$4\r\nECHO\r\n$0\r\n\r\n");
}

TEST(resp, commands_follow_each_other) {
    std::string out = "*1\r\n$4\r\nPING\r\n";
    outbox::resp::append(out, "GET", std::string("k"));
    outbox::resp::command(out, 2);
    outbox::resp::argument(out, "DEL");
    outbox::resp::argument(out, std::string_view("k"));
    EXPECT_EQ(parsed(out), (std::vector<command>{{"PING"}, {"GET", "k"}, {"DEL", "k"}}));
}

TEST(resp, no_byte_in_an_argument_is_taken_for_the_protocol) {
    using namespace std::string_literals;
    for (const std::string &value : {"\r\n"s, "x\r\nFLUSHALL\r\n"s, "*1\r\n$8\r\nFLUSHALL\r\n"s, "$5\r\n"s, "\0"s, "a\0b"s,
                                     "\xff\xfe"s, "%s%n%b"s, "'\"\\"s}) {
        std::string out;
        outbox::resp::append(out, "SET", value, value);
        EXPECT_EQ(parsed(out), (std::vector<command>{{"SET", value, value}}));
    }
    for (int byte = 0; byte < 256; ++byte) {
        std::string out, value(3, static_cast<char>(byte));
        outbox::resp::append(out, value);
        EXPECT_EQ(parsed(out), (std::vector<command>{{value}}));
    }
}

TEST(resp, lengths_of_every_number_of_digits) {
    for (std::size_t length : {0, 1, 9, 10, 99, 100, 999, 1000, 65535, 65536, 1000000}) {
        std::string out, value(length, 'x');
        outbox::resp::append(out, "ECHO", value);
        EXPECT_EQ(parsed(out), (std::vector<command>{{"ECHO", value}}));
    }
}

TEST(resp, a_header_holds_any_number) {
    std::string out;
    outbox::resp::header(out, '$', 18446744073709551615ULL);
    EXPECT_EQ(out, "$18446744073709551615\r\n");
}

TEST(resp, random_commands_come_back_as_they_were) {
    std::mt19937 random(20260121);
    std::string out;
    std::vector<command> sent;
    for (int i = 0; i < 500; ++i) {
        command one;
        std::size_t arguments = 1 + random() % 20;
        outbox::resp::command(out, arguments);
        for (std::size_t j = 0; j < arguments; ++j) {
            std::string value;
            for (std::size_t length = random() % 40; value.size() < length;)
                value += static_cast<char>(random());
            outbox::resp::argument(out, value);
            one.push_back(value);
        }
        sent.push_back(one);
    }
    EXPECT_EQ(parsed(out), sent);
}

} // namespace

#include "bgworker/position.hpp"

#include <gtest/gtest.h>

#include <string>

using outbox::parse;
using outbox::position;

namespace {

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

std::string printed(position value) {
    char text[outbox::position_text_size];
    return std::string(text, print(value, text));
}

position parsed(std::string_view text) {
    position value;
    EXPECT_TRUE(parse(text, value)) << text;
    return value;
}

TEST(position, is_printed_as_an_entry_id) {
    EXPECT_EQ(printed({0, 0}), "0-0");
    EXPECT_EQ(printed({1790000000000, 7}), "1790000000000-7");
    EXPECT_EQ(printed({most, most}), "9223372036854775807-9223372036854775807");
}

TEST(position, before_the_first_event_is_printed_as_an_id_that_redis_takes) {
    EXPECT_EQ(printed({5, -1}), "5-0");
}

TEST(position, the_longest_text_fits) {
    EXPECT_LE(printed({most, most}).size(), outbox::position_text_size);
    EXPECT_LE(printed({std::numeric_limits<std::int64_t>::min(), most}).size(), outbox::position_text_size);
}

TEST(position, survives_printing_and_parsing) {
    for (std::int64_t ms : {INT64_C(0), INT64_C(1), INT64_C(9), INT64_C(10), INT64_C(1790000000000), most - 1, most})
        for (std::int64_t n : {INT64_C(0), INT64_C(1), INT64_C(255), INT64_C(999999), most})
            EXPECT_EQ(parsed(printed({ms, n})), (position{ms, n}));
}

TEST(position, leading_zeros_do_not_matter) { EXPECT_EQ(parsed("007-000"), (position{7, 0})); }

// Redis counts in unsigned 64 bits, and a foreign writer may have gone to the end of them.
TEST(position, beyond_our_range_is_cut_to_its_end) {
    EXPECT_EQ(parsed("9223372036854775807-9223372036854775808"), (position{most, most}));
    EXPECT_EQ(parsed("9223372036854775808-0"), (position{most, 0}));
    EXPECT_EQ(parsed("18446744073709551615-18446744073709551615"), (position{most, most}));
}

TEST(position, anything_else_is_refused) {
    for (std::string_view text :
         {"", "-", "1", "1-", "-1", "1-2-3", "--1", "1--1", "+1-1", "1-+1", " 1-1", "1-1 ", "1 -1", "1- 1", "a-1", "1-a",
          "1.0-1", "1e3-1", "0x1-1", "1-1\n", "18446744073709551616-0", "0-18446744073709551616",
          "99999999999999999999999999999999-1", "$", "*", "(1-1"}) {
        position value;
        EXPECT_FALSE(parse(text, value)) << '"' << text << '"';
    }
    using namespace std::string_view_literals;
    position value;
    EXPECT_FALSE(parse("1\0-1"sv, value));
    EXPECT_FALSE(parse("1-1\0"sv, value));
}

TEST(position, order_is_that_of_entry_ids) {
    const position rising[] = {{0, -1}, {0, 0}, {0, 1}, {0, most}, {1, -1}, {1, 0}, {2, 5}, {10, 0}, {most, most}};
    for (std::size_t i = 0; i < std::size(rising); ++i)
        for (std::size_t j = 0; j < std::size(rising); ++j) {
            EXPECT_EQ(rising[i] < rising[j], i < j);
            EXPECT_EQ(rising[i] == rising[j], i == j);
            EXPECT_EQ(rising[i] >= rising[j], i >= j);
        }
}

TEST(position, a_new_one_is_before_every_event) {
    EXPECT_LT(position{}, (position{0, 0}));
    EXPECT_LT(position{}, (position{1, -1}));
}

} // namespace

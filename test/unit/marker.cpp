#include "bgworker/marker.hpp"

#include <gtest/gtest.h>

#include <string>

using outbox::carried_tick;
using outbox::parse;
using outbox::sink_marker;

namespace {

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

std::string printed(const sink_marker &value) {
    char text[outbox::marker_text_size];
    std::size_t length = print(value, text);
    EXPECT_EQ(text[length], 0);
    return std::string(text, length);
}

sink_marker parsed(std::string_view text) {
    sink_marker value;
    EXPECT_TRUE(parse(text, value)) << text;
    return value;
}

carried_tick some_tick() {
    carried_tick tick;
    tick.ms = 1790000000000;
    tick.previous = 1789999999999;
    tick.anchor = -5;
    tick.seq = 77;
    tick.timeline = 2;
    tick.log_end = 0x100000028;
    tick.xmin = 100;
    tick.xmax = 110;
    tick.xip[0] = 100;
    tick.xip[1] = 105;
    tick.nxip = 2;
    return tick;
}

TEST(marker, says_who_and_up_to_where) {
    EXPECT_EQ(printed({"abc", {1790000000000, 7}, 3, 2, {}}), "abc:1790000000000-7:3:2");
    EXPECT_EQ(printed({"", {}, 0, 0, {}}), ":0-0:0:0");
}

TEST(marker, carries_a_tick) {
    sink_marker marker = {"abc", {1790000000000, 7}, 3, 2, some_tick()};
    EXPECT_EQ(printed(marker), "abc:1790000000000-7:3:2:1789999999999,-5,77,2,4294967336,100,110,0,5");
    std::string text = printed(marker);
    sink_marker read = parsed(text);
    EXPECT_EQ(read.incarnation, "abc");
    EXPECT_EQ(read.at, (outbox::position{1790000000000, 7}));
    EXPECT_EQ(read.repairs, 3);
    EXPECT_EQ(read.in_doubt, 2);
    EXPECT_EQ(read.tick.ms, 1790000000000);
    EXPECT_EQ(read.tick.previous, 1789999999999);
    EXPECT_EQ(read.tick.anchor, -5);
    EXPECT_EQ(read.tick.seq, 77);
    EXPECT_EQ(read.tick.timeline, 2U);
    EXPECT_EQ(read.tick.log_end, 0x100000028U);
    EXPECT_EQ(read.tick.xmin, 100U);
    EXPECT_EQ(read.tick.xmax, 110U);
    ASSERT_EQ(read.tick.nxip, 2);
    EXPECT_EQ(read.tick.xip[0], 100U);
    EXPECT_EQ(read.tick.xip[1], 105U);
}

TEST(marker, the_longest_fits) {
    sink_marker marker = {"0123456789012345678901234567890123456789", {most, most}, most, most, {}};
    marker.tick.ms = most;
    marker.tick.previous = most;
    marker.tick.anchor = std::numeric_limits<std::int32_t>::min();
    marker.tick.seq = std::numeric_limits<std::int64_t>::min();
    marker.tick.timeline = std::numeric_limits<std::uint32_t>::max();
    marker.tick.log_end = marker.tick.xmax = std::numeric_limits<std::uint64_t>::max();
    marker.tick.xmin = 0;
    marker.tick.nxip = outbox::max_carried_xids;
    for (int i = 0; i < marker.tick.nxip; ++i)
        marker.tick.xip[i] = 18446744073709551000U + static_cast<unsigned>(i);
    std::string text = printed(marker);
    EXPECT_LT(text.size(), outbox::marker_text_size);
    EXPECT_EQ(parsed(text).tick.nxip, outbox::max_carried_xids);
}

TEST(marker, of_earlier_versions_has_no_tick) {
    sink_marker read = parsed("abc:5-1:0:0");
    EXPECT_EQ(read.tick.ms, 0);
    EXPECT_EQ(read.tick.nxip, 0);
}

TEST(marker, what_is_none_is_refused) {
    sink_marker value;
    for (const char *text : {"", "abc", "abc:", "abc:5-1", "abc:5-1:0", "abc:5-1:0:", "abc:x:0:0", "abc:5-1:a:0", "abc:5-1:0:1a"})
        EXPECT_FALSE(parse(text, value)) << text;
}

TEST(marker, a_tick_that_cannot_be_read_is_none) {
    for (const char *text : {"", "1", "0,1,2,3,4,5", "0,1,2,3,4,5,", "0,1,2,3,4,9,5", "0,1,2,3,4,9,5,1", "0,1,2,3,4,5,9,4", "0,1,2,3,4,5,9,-1",
                             "0,1,2,3,4,5,9,2,1", "0,1,2,3,4,5,9,1,1", "0,1,2,3,4,5,9,x", "a,1,2,3,4,5,9", "0,1,2,-3,4,5,9", "0,99999999999,2,3,4,5,9"}) {
        std::string whole = std::string("abc:5-1:0:0:") + text;
        sink_marker read = parsed(whole);
        EXPECT_EQ(read.tick.ms, 0) << text;
    }
    std::string many = "abc:5-1:0:0:0,1,2,3,4,10,1000";
    for (int i = 0; i <= outbox::max_carried_xids; ++i)
        many += "," + std::to_string(i);
    EXPECT_EQ(parsed(many).tick.ms, 0);
}

} // namespace

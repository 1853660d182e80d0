#include "extension/uuid.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

namespace {

using uuid = std::array<unsigned char, 16>;
constexpr unsigned char zeros[8] = {};
constexpr unsigned char ones[8] = {255, 255, 255, 255, 255, 255, 255, 255};

uuid made(std::int64_t unix_us, const unsigned char *random) {
    uuid result;
    result.fill(0xee);
    outbox::make_uuid7(unix_us, random, result.data());
    return result;
}

TEST(uuid, has_version_7_and_the_variant_of_rfc_9562) {
    for (const unsigned char *random : {zeros, ones})
        for (std::int64_t us : {INT64_C(0), INT64_C(999), INT64_C(1790000000123456), INT64_C(253402300799999999)}) {
            uuid id = made(us, random);
            EXPECT_EQ(id[6] >> 4, 7);
            EXPECT_EQ(id[8] >> 6, 2);
        }
}

TEST(uuid, begins_with_the_milliseconds) {
    // RFC 9562's example: 2022-02-22T19:22:22.000Z is 017F22E279B0
    uuid id = made(INT64_C(1645557742000000), zeros);
    const unsigned char expected[] = {0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0, 0x70, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0};
    EXPECT_TRUE(std::equal(id.begin(), id.end(), expected));
}

TEST(uuid, goes_on_with_the_fraction_of_the_millisecond) {
    uuid id = made(INT64_C(1645557742000500), zeros);
    EXPECT_EQ(id[5], 0xb0);
    EXPECT_EQ(id[6], 0x78); // half of 4096
    EXPECT_EQ(id[7], 0x00);
}

TEST(uuid, later_microseconds_sort_later_whatever_the_random_bytes) {
    uuid before = made(INT64_C(1790000000000000), ones);
    for (std::int64_t us = INT64_C(1790000000000001); us < INT64_C(1790000000003000); ++us) {
        EXPECT_LT(before, made(us, zeros));
        before = made(us, ones);
    }
}

TEST(uuid, ends_with_62_random_bits) {
    uuid id = made(0, ones);
    EXPECT_EQ(id[8], 0xbf);
    for (int i = 9; i < 16; ++i)
        EXPECT_EQ(id[i], 0xff);
    const unsigned char counted[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    id = made(0, counted);
    EXPECT_EQ(id[8], 0x81);
    for (int i = 9; i < 16; ++i)
        EXPECT_EQ(id[i], i - 7);
}

} // namespace

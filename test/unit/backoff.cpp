#include "bgworker/backoff.hpp"

#include <gtest/gtest.h>

#include <climits>

using outbox::backoff;

namespace {

constexpr double just_below_one = 1 - 1e-12;
constexpr double samples[] = {0.0, 1e-9, 0.25, 0.5, 0.75, 0.999, just_below_one};

// as the settings' ranges allow: outbox.retry_min and outbox.retry_max, ms
constexpr int bounds[][2] = {{10, 10}, {10, 3600000}, {100, 30000}, {60000, 3600000}, {60000, 60000}, {10, 11}, {1, INT_MAX}};

TEST(backoff, the_first_retry_comes_after_the_least_delay) {
    for (double random : samples)
        EXPECT_EQ(backoff(1, 100, 30000, random), 100);
}

TEST(backoff, doubles_up_to_the_cap) {
    EXPECT_EQ(backoff(2, 100, 30000, just_below_one), 199);
    EXPECT_EQ(backoff(3, 100, 30000, 0.0), 200);
    EXPECT_EQ(backoff(4, 100, 30000, 0.0), 400);
    EXPECT_EQ(backoff(4, 100, 30000, 0.5), 600);
    EXPECT_EQ(backoff(50, 100, 30000, 0.0), 15000);
    EXPECT_EQ(backoff(50, 100, 30000, just_below_one), 29999);
}

TEST(backoff, stays_within_its_bounds) {
    for (const auto &[least, most] : bounds)
        for (int attempt = 1; attempt < 100; ++attempt)
            for (double random : samples) {
                int delay = backoff(attempt, least, most, random);
                EXPECT_GE(delay, least) << attempt;
                EXPECT_LE(delay, most) << attempt;
            }
}

TEST(backoff, never_gets_shorter_with_the_same_luck) {
    for (const auto &[least, most] : bounds)
        for (double random : samples)
            for (int attempt = 1; attempt < 100; ++attempt)
                EXPECT_LE(backoff(attempt, least, most, random), backoff(attempt + 1, least, most, random));
}

TEST(backoff, half_of_the_delay_is_up_to_chance) {
    EXPECT_EQ(backoff(5, 100, 30000, 0.0), 800);
    EXPECT_EQ(backoff(5, 100, 30000, just_below_one), 1599);
}

TEST(backoff, any_number_of_attempts_does) {
    for (int attempt : {1000, 1000000, INT_MAX - 1, INT_MAX}) {
        EXPECT_EQ(backoff(attempt, 100, 30000, 0.0), 15000);
        EXPECT_GE(backoff(attempt, 1, INT_MAX, 0.0), INT_MAX / 2);
    }
    for (int attempt : {0, -1, INT_MIN})
        EXPECT_EQ(backoff(attempt, 100, 30000, 0.5), 100);
}

TEST(backoff, a_cap_below_the_least_delay_is_raised_to_it) {
    for (int attempt : {1, 2, 10, 1000})
        EXPECT_EQ(backoff(attempt, 5000, 100, 0.5), 5000);
}

} // namespace

#include <outbox/retry.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

using outbox::retry_policy;
using std::chrono::milliseconds;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity(),
                 nan = std::numeric_limits<double>::quiet_NaN();
constexpr double almost_one = 0.9999999999999999;

TEST(Retry, the_delay_grows_exponentially_up_to_the_maximum) {
    retry_policy policy{
        .initial = milliseconds(200), .max = milliseconds(1500), .multiplier = 2, .jitter = 0};
    EXPECT_EQ(policy.delay(1, 0.5), milliseconds(200));
    EXPECT_EQ(policy.delay(2, 0.5), milliseconds(400));
    EXPECT_EQ(policy.delay(3, 0.5), milliseconds(800));
    EXPECT_EQ(policy.delay(4, 0.5), milliseconds(1500));
    EXPECT_EQ(policy.delay(1'000'000, 0.5), milliseconds(1500));
    EXPECT_EQ(policy.delay(std::numeric_limits<int>::max(), 0.5), milliseconds(1500));
}

TEST(Retry, jitter_shortens_and_lengthens_by_its_part) {
    retry_policy policy{.initial = milliseconds(1000), .max = milliseconds(1000), .jitter = 0.2};
    EXPECT_NEAR(static_cast<double>(policy.delay(1, 0).count()), 800, 1);
    EXPECT_EQ(policy.delay(1, 0.5), milliseconds(1000));
    EXPECT_EQ(policy.delay(1, 0.75), milliseconds(1100));
    EXPECT_NEAR(static_cast<double>(policy.delay(1, almost_one).count()), 1200, 1);
    policy.jitter = 1;
    EXPECT_EQ(policy.delay(1, 0), milliseconds(0));
}

TEST(Retry, a_multiplier_of_1_keeps_the_delay) {
    retry_policy policy{.initial = milliseconds(70), .multiplier = 1, .jitter = 0};
    EXPECT_EQ(policy.delay(50, 0), milliseconds(70));
}

TEST(Retry, no_delay_stays_none) {
    retry_policy policy{.initial = milliseconds(0), .multiplier = 1e300};
    EXPECT_EQ(policy.delay(1, 0.9), milliseconds(0));
    EXPECT_EQ(policy.delay(1'000'000, 0.9), milliseconds(0));
}

TEST(Retry, the_longest_delay_there_is_does_not_overflow) {
    retry_policy policy{.initial = milliseconds::max(),
                        .max = milliseconds::max(),
                        .multiplier = 1e308,
                        .jitter = 1};
    EXPECT_EQ(policy.delay(1, almost_one), milliseconds::max());
    EXPECT_EQ(policy.delay(1000, almost_one), milliseconds::max());
    policy.jitter = 0;
    EXPECT_EQ(policy.delay(1000, 0), milliseconds::max());
}

TEST(Retry, whatever_the_numbers_are_the_delay_is_in_bounds) {
    for (int attempt :
         {std::numeric_limits<int>::min(), -1, 0, 1, 7, std::numeric_limits<int>::max()})
        for (double random : {-infinity, -1.0, 0.0, 0.3, almost_one, 1.0, 2.0, infinity, nan})
            for (double multiplier : {-infinity, -2.0, 0.0, 1.0, 1.5, 1e308, infinity, nan})
                for (double jitter : {-infinity, -1.0, 0.0, 0.2, 1.0, 5.0, infinity, nan})
                    for (auto initial : {milliseconds::min(), milliseconds(-1), milliseconds(0),
                                         milliseconds(200), milliseconds::max()}) {
                        retry_policy policy{.initial = initial,
                                            .max = milliseconds(60'000),
                                            .multiplier = multiplier,
                                            .jitter = jitter};
                        auto delay = policy.delay(attempt, random);
                        double most = 60'000 * (1 + (jitter >= 0 ? std::fmin(jitter, 1) : 0));
                        EXPECT_GE(delay.count(), 0)
                            << attempt << " " << random << " " << multiplier << " " << jitter;
                        EXPECT_LE(static_cast<double>(delay.count()), most)
                            << attempt << " " << random << " " << multiplier << " " << jitter;
                    }
}

std::string why(const retry_policy &policy) {
    try {
        policy.validate();
    } catch (const std::invalid_argument &error) {
        return error.what();
    }
    return {};
}

TEST(Retry, a_policy_that_cannot_work_says_what_to_change) {
    EXPECT_EQ(why({}), "");
    EXPECT_EQ(why({.max_attempts = 1,
                   .initial = milliseconds(0),
                   .max = milliseconds(0),
                   .multiplier = 1,
                   .jitter = 0}),
              "");
    EXPECT_EQ(why({.max_attempts = 0}), "retry.max_attempts must be 1 or more, not 0");
    EXPECT_EQ(why({.initial = milliseconds(-5)}), "retry.initial must be 0 ms or more, not -5 ms");
    EXPECT_EQ(why({.max = milliseconds(10)}),
              "retry.max must be retry.initial (200 ms) or more, not 10 ms");
    EXPECT_EQ(why({.multiplier = 0.5}), "retry.multiplier must be 1 or more, not 0.500000");
    EXPECT_EQ(why({.jitter = 1.5}), "retry.jitter must be 0 to 1, not 1.500000");
    for (double value : {nan, infinity, -infinity}) {
        EXPECT_NE(why({.multiplier = value}), "") << value;
        EXPECT_NE(why({.jitter = value}), "") << value;
    }
}

} // namespace

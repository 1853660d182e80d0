#include "src/scheduler.hpp"

#include <gtest/gtest.h>

#include <memory>

using namespace outbox::detail;

namespace {

std::unique_ptr<delivery> one(std::uint64_t ms) {
    auto made = std::make_unique<delivery>(outbox::event({}, {}, {}, 1, nullptr), entry_id{ms, 0}, std::string_view());
    made->aggregate = 7;
    return made;
}

const time_point now = time_point() + std::chrono::hours(1);

// As after a loss of Redis: a consumer asks whether an entry that it has in hand is still its own, and is handed those before it.
TEST(Scheduler, what_came_in_behind_one_that_is_put_back_and_belongs_before_it_goes_first) {
    scheduler lanes(true);
    auto first = one(1), second = one(2), third = one(3), fourth = one(4);
    lanes.admit(*third);
    ASSERT_EQ(lanes.next(now), third.get());
    lanes.admit(*first);
    lanes.admit(*second);
    lanes.admit(*fourth);
    EXPECT_EQ(lanes.next(now), nullptr) << "nothing starts beside one that has started";
    lanes.put_back(*third);
    for (delivery *expected : {first.get(), second.get(), third.get(), fourth.get()}) {
        ASSERT_EQ(lanes.next(now), expected);
        ASSERT_EQ(lanes.next(now), nullptr);
        lanes.remove(*expected);
    }
}

TEST(Scheduler, what_came_in_behind_one_that_is_delayed_and_belongs_before_it_does_not_wait_for_it) {
    scheduler lanes(true);
    auto first = one(1), second = one(2);
    lanes.admit(*second);
    ASSERT_EQ(lanes.next(now), second.get());
    lanes.admit(*first);
    lanes.delay(*second, now + std::chrono::seconds(1));
    ASSERT_EQ(lanes.next(now), first.get());
    EXPECT_EQ(lanes.next(now + std::chrono::seconds(2)), nullptr) << "its time has come, but not its turn";
    lanes.remove(*first);
    EXPECT_EQ(lanes.next(now + std::chrono::seconds(2)), second.get());
    lanes.remove(*second);
}

TEST(Scheduler, one_that_is_put_back_behind_nothing_stays_first) {
    scheduler lanes(true);
    auto first = one(1), second = one(2);
    lanes.admit(*first);
    lanes.admit(*second);
    ASSERT_EQ(lanes.next(now), first.get());
    lanes.put_back(*first);
    EXPECT_EQ(lanes.next(now), first.get());
    lanes.remove(*first);
    EXPECT_EQ(lanes.next(now), second.get());
    lanes.remove(*second);
}

} // namespace

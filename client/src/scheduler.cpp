#include "src/scheduler.hpp"

#include <time.h>

namespace outbox::detail {

time_point lease_clock::now() noexcept {
    timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return time_point(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec));
}

// Whether it belongs before the other in their lane. What is redriven was there first; the new ones may be waiting for it.
static bool comes_before(const delivery &one, const delivery &other) noexcept {
    return one.redriven != other.redriven ? one.redriven : one.id < other.id;
}

void scheduler::admit(delivery &one) {
    one.is = delivery::state::waiting;
    if (ordered_ && one.aggregate != 0) {
        lane &lane = lanes_[one.aggregate];
        one.lane = &lane;
        if (lane.last == nullptr) {
            lane.first = lane.last = &one;
        } else if (!comes_before(one, *lane.last)) {
            lane.last->behind = &one;
            lane.last = &one;
        } else {
            insert(lane, one);
        }
    }
    reconsider(one);
}

// One that comes late, because it was taken over: before the first that is after it, and has not started.
void scheduler::insert(lane &lane, delivery &one) {
    delivery **place = &lane.first;
    while (*place != nullptr && ((*place)->is == delivery::state::started || !comes_before(one, **place)))
        place = &(*place)->behind;
    one.behind = *place;
    *place = &one;
    if (one.behind == nullptr)
        lane.last = &one;
    else if (one.behind->is == delivery::state::offered)
        withdraw(*one.behind);
}

void scheduler::reconsider(delivery &one) {
    if (one.is == delivery::state::waiting && !one.held && is_first(one))
        offer(one);
    else if (one.is == delivery::state::offered && one.held)
        withdraw(one);
}

void scheduler::offer(delivery &one) {
    one.is = delivery::state::offered;
    one.next_offer = nullptr;
    (last_offer_ != nullptr ? last_offer_->next_offer : first_offer_) = &one;
    last_offer_ = &one;
}

// Rare: from the middle of a list that has one link.
void scheduler::withdraw(delivery &one) {
    if (one.is == delivery::state::delayed) {
        delayed_.erase({one.due, &one});
    } else if (one.is == delivery::state::offered) {
        delivery *before = nullptr;
        for (delivery *other = first_offer_; other != &one; other = other->next_offer)
            before = other;
        (before != nullptr ? before->next_offer : first_offer_) = one.next_offer;
        if (last_offer_ == &one)
            last_offer_ = before;
    } else {
        return;
    }
    one.is = delivery::state::waiting;
}

void scheduler::wake(time_point now) {
    while (!delayed_.empty() && delayed_.begin()->first <= now) {
        delivery &one = *delayed_.begin()->second;
        delayed_.erase(delayed_.begin());
        one.is = delivery::state::waiting;
        reconsider(one);
    }
}

const delivery *scheduler::peek(time_point now) {
    if (!delayed_.empty())
        wake(now);
    return first_offer_;
}

delivery *scheduler::next(time_point now) {
    if (peek(now) == nullptr)
        return nullptr;
    delivery *one = first_offer_;
    first_offer_ = one->next_offer;
    if (first_offer_ == nullptr)
        last_offer_ = nullptr;
    one->is = delivery::state::started;
    return one;
}

// While it was started, what comes before it may have been admitted, and stands behind it.
void scheduler::give_way(delivery &one) {
    lane *const lane = one.lane;
    if (lane == nullptr || lane->first != &one || one.behind == nullptr || !comes_before(*one.behind, one))
        return;
    lane->first = one.behind;
    insert(*lane, one);
    reconsider(*lane->first);
}

void scheduler::put_back(delivery &one) {
    one.is = delivery::state::waiting;
    give_way(one);
    reconsider(one);
}

void scheduler::delay(delivery &one, time_point until) {
    withdraw(one);
    one.is = delivery::state::delayed;
    one.due = until;
    delayed_.emplace(until, &one);
    give_way(one);
}

void scheduler::remove(delivery &one) {
    withdraw(one);
    one.is = delivery::state::settling;
    lane *const lane = one.lane;
    if (lane == nullptr)
        return;
    delivery *before = nullptr;
    for (delivery *other = lane->first; other != &one; other = other->behind)
        before = other;
    (before != nullptr ? before->behind : lane->first) = one.behind;
    if (lane->last == &one)
        lane->last = before;
    one.lane = nullptr;
    one.behind = nullptr;
    if (lane->first == nullptr)
        lanes_.erase(one.aggregate);
    else
        reconsider(*lane->first);
}

std::optional<time_point> scheduler::next_due() const {
    if (delayed_.empty())
        return std::nullopt;
    return delayed_.begin()->first;
}

} // namespace outbox::detail

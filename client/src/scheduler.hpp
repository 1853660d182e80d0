// Which delivery may start next: order within an aggregate, retries in their time. A state machine without threads, clock or
// Redis; the in-memory broker runs on it as well.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "src/delivery.hpp"

namespace outbox::detail {

// The deliveries of one aggregate, in the order in which they may run. At most one of them is past `waiting`: the first.
struct lane {
    delivery *first = nullptr, *last = nullptr;
};

class scheduler {
  public:
    explicit scheduler(bool ordered) : ordered_(ordered) {}

    // Takes it in: behind those of its aggregate that are before it by entry ID.
    void admit(delivery &one);

    // Whether it is still what its lane has first: an older one may have been admitted since it was offered.
    bool is_first(const delivery &one) const noexcept { return one.lane == nullptr || one.lane->first == &one; }

    // Its source has changed `held`: offers it if nothing is in the way now.
    void reconsider(delivery &one);

    // The next one that may start, in the order in which they became free to; null if there is none. It is `started` then.
    delivery *next(time_point now);
    const delivery *peek(time_point now);

    // It will not start now: back among the waiting, or to be offered again at that time. What was admitted meanwhile and
    // comes before it goes first.
    void put_back(delivery &one);
    void delay(delivery &one, time_point until);

    // It is over: handled, dead, or no longer ours. The next of its lane may come.
    void remove(delivery &one);

    // When the next delayed one is due.
    std::optional<time_point> next_due() const;
    std::size_t delayed() const noexcept { return delayed_.size(); }

    // Every delivery behind this one in its lane.
    template <typename F> void for_each_behind(delivery &one, F function) {
        for (delivery *other = one.behind; other != nullptr;) {
            delivery *next = other->behind;
            function(*other);
            other = next;
        }
    }

  private:
    void insert(lane &lane, delivery &one);
    void give_way(delivery &one);
    void offer(delivery &one);
    void withdraw(delivery &one);
    void wake(time_point now);

    bool ordered_;
    std::unordered_map<std::uint64_t, lane> lanes_;
    delivery *first_offer_ = nullptr, *last_offer_ = nullptr;
    std::set<std::pair<time_point, delivery *>> delayed_;
};

} // namespace outbox::detail

// How finished deliveries get from the threads that handled them back to the thread that reads.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include "src/delivery.hpp"

namespace outbox::detail {

class mailbox {
  public:
    // `wake` is called by any thread.
    explicit mailbox(std::function<void()> wake) : wake_(std::move(wake)) {}

    // Whoever calls this gives the delivery away. In a closed box it is destroyed: nobody waits for it.
    void post(delivery *one) noexcept {
        put(one);
        wake();
    }

    // Without waking anybody: the caller does it soon, or knows that somebody looks.
    void put(delivery *one) noexcept {
        delivery *last = last_.load(std::memory_order_relaxed);
        do {
            if (last == closed()) {
                delete one;
                return;
            }
            one->posted_before = last;
        } while (!last_.compare_exchange_weak(last, one));
    }

    // Wakes the reading thread, once until it collects.
    void wake() noexcept {
        if (woken_.load() || woken_.exchange(true))
            return;
        // under the lock, so that nobody wakes a loop that is gone
        std::lock_guard guard(lock_);
        if (wake_)
            wake_();
    }

    // Appends what has come, in order.
    void collect(std::vector<delivery *> &finished) {
        // first: whoever puts something in behind this wakes again
        woken_.store(false);
        take(last_.exchange(nullptr), finished);
    }

    // The same, for the last time: what is still running is its thread's from now on.
    void close(std::vector<delivery *> &finished) {
        take(last_.exchange(closed()), finished);
        std::lock_guard guard(lock_);
        wake_ = nullptr;
    }

  private:
    // An address that no delivery has.
    delivery *closed() noexcept { return reinterpret_cast<delivery *>(this); }

    static void take(delivery *last, std::vector<delivery *> &finished) {
        auto before = static_cast<std::ptrdiff_t>(finished.size());
        for (; last != nullptr; last = last->posted_before)
            finished.push_back(last);
        std::reverse(finished.begin() + before, finished.end());
    }

    std::atomic<delivery *> last_{nullptr}; // and those before it
    std::atomic<bool> woken_{false};
    std::mutex lock_;
    std::function<void()> wake_;
};

} // namespace outbox::detail

// How finished deliveries get from the threads that handled them back to the thread that reads.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "src/delivery.hpp"

namespace outbox::detail {

class mailbox {
  public:
    // `wake` is called by any thread, for the first delivery that comes into an empty box.
    explicit mailbox(std::function<void()> wake) : wake_(std::move(wake)) {}

    // Whoever calls this gives the delivery away. In a closed box it is destroyed: nobody waits for it.
    void post(delivery *one) noexcept {
        std::unique_lock guard(lock_);
        if (closed_) {
            guard.unlock();
            delete one;
            return;
        }
        finished_.push_back(one);
        // under the lock, so that nobody wakes a loop that is gone
        if (finished_.size() == 1)
            wake_();
    }

    // Swaps what has come with an empty vector.
    void collect(std::vector<delivery *> &finished) {
        std::lock_guard guard(lock_);
        finished_.swap(finished);
    }

    // What is still running is its thread's from now on.
    void close() {
        std::lock_guard guard(lock_);
        closed_ = true;
        wake_ = nullptr;
    }

  private:
    std::mutex lock_;
    std::vector<delivery *> finished_;
    std::function<void()> wake_;
    bool closed_ = false;
};

} // namespace outbox::detail

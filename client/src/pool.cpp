#include "src/pool.hpp"

#include <algorithm>
#include <system_error>

#include <outbox/error.hpp>

#include "common/crash_point.hpp"
#include "src/signals.hpp"

namespace outbox::detail {

pool::pool(int threads, std::shared_ptr<const handlers> handlers, std::shared_ptr<mailbox> mailbox, make_runner make)
    : shared_(std::make_shared<shared>()) {
    shared_->handlers = std::move(handlers);
    shared_->mailbox = std::move(mailbox);
    shared_->make = std::move(make);
    no_signals guard;
    try {
        while (shared_->alive < threads) {
            threads_.emplace_back([shared = shared_] { work(shared); });
            ++shared_->alive; // nobody looks before the end
        }
    } catch (const std::system_error &) {
        stop();
        throw error("could not start " + std::to_string(threads) + " threads: lower consumer_options::concurrency");
    }
}

pool::~pool() { stop(); }

void pool::stop() {
    bool all_ended;
    {
        std::unique_lock guard(shared_->lock);
        shared_->stop = true;
        shared_->some.notify_all();
        // Those without a handler to finish end at once.
        all_ended = shared_->some.wait_for(guard, std::chrono::milliseconds(100), [this] { return shared_->alive == 0; });
    }
    for (std::thread &thread : threads_)
        if (all_ended)
            thread.join();
        else
            thread.detach();
}

void pool::submit(const std::vector<delivery *> &work) {
    std::lock_guard guard(shared_->lock);
    auto &queue = shared_->queue;
    // what has been taken, once it is the larger part
    if (shared_->next > 0 && shared_->next * 2 >= queue.size()) {
        queue.erase(queue.begin(), queue.begin() + static_cast<std::ptrdiff_t>(shared_->next));
        shared_->next = 0;
    }
    queue.insert(queue.end(), work.begin(), work.end());
    auto waking = std::min(work.size(), static_cast<std::size_t>(shared_->idle));
    for (std::size_t i = 0; i < waking; ++i)
        shared_->some.notify_one();
}

std::vector<delivery *> pool::recall() {
    std::lock_guard guard(shared_->lock);
    std::vector<delivery *> rest(shared_->queue.begin() + static_cast<std::ptrdiff_t>(shared_->next), shared_->queue.end());
    shared_->queue.clear();
    shared_->next = 0;
    return rest;
}

void pool::work(const std::shared_ptr<shared> &shared) {
    std::unique_ptr<transaction_runner> transactions = shared->make ? shared->make() : nullptr;
    std::unique_lock guard(shared->lock);
    for (;;) {
        ++shared->idle;
        shared->some.wait(guard, [&] { return shared->stop || shared->next < shared->queue.size(); });
        --shared->idle;
        if (shared->stop)
            break;
        delivery *one = shared->queue[shared->next++];
        guard.unlock();
        OUTBOX_CRASH_POINT("before_handler");
        if (lease_clock::now() >= one->lease_until.load(std::memory_order_relaxed)) {
            one->end = {outcome::kind::stale, {}, {}};
            shared->mailbox->post(one);
        } else if (shared->handlers->call(*one, transactions.get(), shared->mailbox)) {
            shared->mailbox->post(one);
        }
        guard.lock();
    }
    // before the pool is told that this thread has ended: the runner holds a connection
    guard.unlock();
    transactions.reset();
    guard.lock();
    --shared->alive;
    shared->some.notify_all();
}

} // namespace outbox::detail

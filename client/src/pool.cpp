#include "src/pool.hpp"

#include <algorithm>
#include <bit>
#include <system_error>

#include <outbox/error.hpp>

#include "common/crash_point.hpp"
#include "src/signals.hpp"

namespace outbox::detail {

using namespace std::chrono_literals;
using std::chrono::nanoseconds;

// A handler that takes less is quick: what it is done with need not be told at once if the next one starts.
constexpr nanoseconds quick = 20us;

// A thread more is worth waking for so much work.
constexpr nanoseconds worth_a_thread = 100us;

// How many may be finished without a word: the acknowledgement of these goes on while the next are handled.
constexpr int most_untold = 64;

pool::pool(int threads, std::size_t most, std::shared_ptr<const handlers> handlers, std::shared_ptr<mailbox> mailbox,
           make_runner make)
    : shared_(std::make_shared<shared>(std::bit_ceil(most))) {
    shared_->usual = worth_a_thread; // until that is known
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

// A slot is filled anew only after it was taken: whoever has read it before that does not get it.
delivery *pool::shared::take() noexcept {
    std::size_t at = first.load();
    for (;;) {
        if (at == last.load())
            return nullptr;
        delivery *one = ring[at % ring.size()].load(std::memory_order_relaxed);
        if (first.compare_exchange_weak(at, at + 1))
            return one;
    }
}

void pool::submit(const std::vector<delivery *> &work) {
    std::size_t at = shared_->last.load(std::memory_order_relaxed);
    for (delivery *one : work)
        shared_->ring[at++ % shared_->ring.size()].store(one, std::memory_order_relaxed);
    shared_->last.store(at);
    // Threads that are at work will come for it if they are quick; else they may be a long time.
    std::size_t waiting = shared_->waiting();
    nanoseconds usual = shared_->usual.load(std::memory_order_relaxed);
    if (usual >= quick)
        wake(waiting, 0);
    else
        wake(waiting * usual / worth_a_thread + 1, threads_.size());
}

void pool::look() { wake(shared_->waiting(), 0); }

// So many threads are wanted, of which so many may be at work already.
void pool::wake(std::size_t wanted, std::size_t at_work) {
    std::lock_guard guard(shared_->lock);
    auto asleep = static_cast<std::size_t>(shared_->idle - shared_->waking);
    wanted -= std::min({wanted, at_work, threads_.size() - asleep});
    for (std::size_t i = 0; i < std::min(wanted, asleep); ++i) {
        ++shared_->waking;
        shared_->some.notify_one();
    }
}

std::vector<delivery *> pool::recall() {
    std::vector<delivery *> rest;
    while (delivery *one = shared_->take())
        rest.push_back(one);
    return rest;
}

void pool::work(const std::shared_ptr<shared> &shared) {
    std::unique_ptr<transaction_runner> transactions = shared->make ? shared->make() : nullptr;
    int untold = 0;
    time_point began = lease_clock::now();
    for (;;) {
        delivery *one = shared->take();
        if (one == nullptr) {
            if (std::exchange(untold, 0) > 0)
                shared->mailbox->wake();
            std::unique_lock guard(shared->lock);
            ++shared->idle;
            while (!shared->stop && shared->waiting() == 0) {
                shared->some.wait(guard);
                shared->waking = std::max(shared->waking - 1, 0);
            }
            --shared->idle;
            if (shared->stop)
                break;
            guard.unlock();
            began = lease_clock::now();
            continue;
        }
        OUTBOX_CRASH_POINT("before_handler");
        bool ended = true;
        if (began >= one->lease_until.load(std::memory_order_relaxed))
            one->end = {outcome::kind::stale, {}, {}};
        else
            ended = shared->handlers->call(*one, transactions.get(), shared->mailbox);
        time_point now = lease_clock::now();
        nanoseconds took = now - began;
        began = now;
        auto usual = shared->usual.load(std::memory_order_relaxed);
        shared->usual.store(usual + (took - usual) / 8, std::memory_order_relaxed);
        if (ended) {
            shared->mailbox->put(one);
            ++untold;
        }
        if (untold >= most_untold || (untold > 0 && took >= quick)) {
            untold = 0;
            shared->mailbox->wake();
        }
    }
    // before the pool is told that this thread has ended: the runner holds a connection
    transactions.reset();
    std::lock_guard guard(shared->lock);
    --shared->alive;
    shared->some.notify_all();
}

} // namespace outbox::detail

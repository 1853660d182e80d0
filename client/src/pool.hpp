// The threads that call handlers.
//
// To wake a thread costs as much as ten quick handlers. So while handlers are quick, as many threads are woken as the work
// keeps busy, and what is finished is told when a thread has nothing left to do. Handlers may be quick for long and then one is
// not: so whoever submits must look() again within a millisecond, and once more for each time that something came of it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "src/delivery.hpp"
#include "src/handlers.hpp"
#include "src/mailbox.hpp"

namespace outbox::detail {

class pool {
  public:
    // Makes the transaction runner of a thread, in that thread; may be empty.
    using make_runner = std::function<std::unique_ptr<transaction_runner>()>;

    // `most` deliveries at a time are with it. Throws outbox::error if there cannot be so many threads.
    pool(int threads, std::size_t most, std::shared_ptr<const handlers> handlers, std::shared_ptr<mailbox> mailbox,
         make_runner make);

    // Threads that are still in a handler live on, with what they need, and end after it.
    ~pool();

    // submit(), recall() and look() are for one thread.

    // Gives deliveries to the threads; they come back through the mailbox. One whose lease has run out before its turn comes
    // back unhandled, as outcome::stale.
    void submit(const std::vector<delivery *> &work);

    // Takes back what has not started.
    std::vector<delivery *> recall();

    // Whatever waits gets a thread, if there is an idle one.
    void look();

  private:
    struct shared {
        // A ring: what is from `first` to `last` waits. Threads take by moving `first`.
        std::vector<std::atomic<delivery *>> ring;
        alignas(64) std::atomic<std::size_t> first{0};
        alignas(64) std::atomic<std::size_t> last{0};
        alignas(64) std::atomic<std::chrono::nanoseconds> usual; // what a handler takes

        std::mutex lock;
        std::condition_variable some;
        int idle = 0;
        int waking = 0; // of those: told, and not there yet
        int alive = 0;
        bool stop = false;

        std::shared_ptr<const detail::handlers> handlers;
        std::shared_ptr<detail::mailbox> mailbox;
        make_runner make;

        explicit shared(std::size_t size) : ring(size) {}
        std::size_t waiting() const noexcept { return last.load() - first.load(); }
        delivery *take() noexcept;
    };
    void stop();
    void wake(std::size_t wanted, std::size_t at_work);
    static void work(const std::shared_ptr<shared> &shared);

    std::shared_ptr<shared> shared_;
    std::vector<std::thread> threads_;
};

} // namespace outbox::detail

// The threads that call handlers.
#pragma once

#include <condition_variable>
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

    // Throws outbox::error if there cannot be so many.
    pool(int threads, std::shared_ptr<const handlers> handlers, std::shared_ptr<mailbox> mailbox, make_runner make);

    // Threads that are still in a handler live on, with what they need, and end after it.
    ~pool();

    // Gives deliveries to the threads; they come back through the mailbox. One whose lease has run out before its turn comes
    // back unhandled, as outcome::stale.
    void submit(const std::vector<delivery *> &work);

    // Takes back what has not started.
    std::vector<delivery *> recall();

  private:
    struct shared {
        std::mutex lock;
        std::condition_variable some;
        std::vector<delivery *> queue; // from `next` on
        std::size_t next = 0;
        int idle = 0;
        int alive = 0;
        bool stop = false;

        std::shared_ptr<const detail::handlers> handlers;
        std::shared_ptr<detail::mailbox> mailbox;
        make_runner make;
    };
    void stop();
    static void work(const std::shared_ptr<shared> &shared);

    std::shared_ptr<shared> shared_;
    std::vector<std::thread> threads_;
};

} // namespace outbox::detail

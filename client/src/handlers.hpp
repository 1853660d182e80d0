// The handlers of a consumer: which one an event goes to, and calling it.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <outbox/consumer.hpp>

#include "src/delivery.hpp"
#include "src/pattern.hpp"

namespace outbox::detail {

// Runs a handler in a transaction with the inbox; by a connection to PostgreSQL, or by the in-memory broker. False if the
// event was handled before.
class transaction_runner {
  public:
    virtual ~transaction_runner() = default;
    virtual bool run(const event &event, const consumer::transaction_handler &handler) = 0;
};

// Where a delivery goes when its handler is through with it, in whatever thread that happens. Outlives the consumer as long
// as a completion token does.
class mailbox;

class handlers {
  public:
    using any = std::variant<consumer::handler, consumer::async_handler, consumer::transaction_handler>;

    // Throws std::invalid_argument
    void add(std::string_view pattern, int version, any handler);

    bool empty() const noexcept { return routes_.empty(); }
    bool need_transactions() const noexcept { return need_transactions_; }
    bool any_async() const noexcept { return any_async_; }
    const std::vector<std::string> &patterns() const noexcept { return routes_.patterns(); }

    // Finds the handler of one that was decoded: unhandled, or one.handler is set. An event that its handler cannot take has
    // a reason then.
    bool route(delivery &one, bool unhandled_dies) const;

    // Calls it. False if the handler goes on by itself: the mailbox gets the delivery later. Else one.end says how it ended.
    bool call(delivery &one, transaction_runner *transactions, const std::shared_ptr<mailbox> &mailbox) const;

  private:
    std::vector<any> handlers_;
    routes routes_;
    bool need_transactions_ = false;
    bool any_async_ = false;
};

// What an exception that left a handler means. To be called in a catch block.
outcome outcome_of_exception() noexcept;

} // namespace outbox::detail

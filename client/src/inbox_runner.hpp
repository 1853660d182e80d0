// Runs the transaction handlers of one thread, on a connection of its own.
#pragma once

#include "src/handlers.hpp"
#include "src/inbox.hpp"

namespace outbox::detail {

class inbox_runner final : public transaction_runner {
  public:
    inbox_runner(std::string conninfo, std::string group) : connection_(std::move(conninfo)), group_(std::move(group)) {}

    bool run(const event &event, const consumer::transaction_handler &handler) override {
        return connection_.run(group_, event, [&](transaction &tx) { handler(event, tx); }) ==
               inbox_connection::result::handled;
    }

  private:
    inbox_connection connection_;
    std::string group_;
};

} // namespace outbox::detail

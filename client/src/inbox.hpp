// The inbox as the consumer uses it: a worker thread's connection, on which handlers run exactly once, and the positions that
// groups have finished.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <outbox/error.hpp>
#include <outbox/event.hpp>
#include <outbox/inbox.hpp>

#include "src/postgres.hpp"

namespace outbox::detail {

// The handler was not called, because the inbox could not be reached, or refused. That says nothing about the event: it is to
// wait, without spending an attempt.
class inbox_unavailable : public connection_error {
  public:
    using connection_error::connection_error;
};

// Throws std::invalid_argument if libpq cannot read the connection string, or reads the end of a password as something else.
// The message quotes nothing of it.
void check_conninfo(const std::string &conninfo);

// A connection to the database with the inbox, made when it is first needed and made anew after it broke. For one thread.
class inbox_connection {
  public:
    enum class result { handled, duplicate };

    // Throws as check_conninfo.
    explicit inbox_connection(std::string conninfo);

    // Runs the handler in a transaction with the event's id, unless the group has the id already. Throws:
    // - inbox_unavailable before the handler was called;
    // - what the handler threw, after a ROLLBACK;
    // - error if the handler returned, but ended the transaction, left it aborted, or left a statement running; reply_error if
    //   COMMIT failed. Nothing of it is committed then, but for what a handler committed itself;
    // - connection_error if the connection broke in the handler or in COMMIT. In COMMIT nobody knows how it ended: the event,
    //   delivered again, finds its id in the inbox, or does not.
    result run(std::string_view group, const event &event, const std::function<void(transaction &)> &handler);

    // The connection, for anything else; connects if need be. Throws connection_error.
    PGconn *connection();

  private:
    bool begin(std::string_view group, const event &event);
    bool claim(std::string_view group, const event &event);
    void commit();
    void rollback() noexcept;

    std::string conninfo_;
    pg_connection connection_;
};

// How far the group is known to have finished the topic; nothing if that was never said.
// Throw reply_error, connection_error; save_position also std::invalid_argument if it is no position.
std::optional<std::string> load_position(PGconn *connection, std::string_view group, std::string_view topic);

// Never goes back: a position below the one that is there changes nothing.
void save_position(PGconn *connection, std::string_view group, std::string_view topic, std::string_view position);

} // namespace outbox::detail

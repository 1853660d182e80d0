// The inbox: a handler's effects and the event's id in one PostgreSQL transaction, so that the effects happen exactly once.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include <libpq-fe.h>

#include <outbox/event.hpp>

namespace outbox {

/// The transaction that an `on_transaction` handler writes its effects in. The library begins it, records the event in the
/// inbox, calls the handler, and commits; a handler that throws rolls it back.
///
/// A crash before the COMMIT leaves nothing, and the event is delivered again; a crash after it leaves the effects and the
/// id, and the event, delivered again, is found there and acknowledged without calling the handler. Two processes that have
/// the same event at the same time (a zombie) wait for one another at the id: the second finds it there.
class transaction {
  public:
    explicit transaction(PGconn *connection) noexcept : connection_(connection) {}

    /// The connection, in the open transaction. Run statements, emit events; never COMMIT or ROLLBACK (savepoints are
    /// fine), and do not keep it. A handler that ends the transaction itself is an error, and the event is tried again.
    PGconn *connection() const noexcept { return connection_; }

  private:
    PGconn *connection_;
};

/// The tables of the inbox, in schema `outbox_inbox`: `event` (one row for each handled event and group) and `position` (how
/// far each group is known to have finished each topic). They belong into the database that holds the effects; that need not
/// be the one that emits.
namespace inbox {

/// Creates the schema and its tables where they are missing; safe to run at every start and by several processes at once.
/// Needs the right to create a schema in the database the first time.
/// \throws reply_error, connection_error
void create_schema(PGconn *connection);

/// Deletes the ids of events that were handled longer ago than `age` (0 or more), some thousands at a time in transactions
/// of their own, and returns how many. An event delivered again after that runs its handler again: keep them longer than
/// `outbox.retention` and the streams' own length. A consumer with an inbox does this by itself, see
/// `consumer_options::inbox_retention`.
/// \throws reply_error, connection_error
std::int64_t purge(PGconn *connection, std::chrono::seconds age);

} // namespace inbox
} // namespace outbox

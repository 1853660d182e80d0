// Emitting events from C++, in the caller's transaction.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <libpq-fe.h>
#include <nlohmann/json.hpp>

#include <outbox/event.hpp>

namespace outbox {

/// What `outbox.emit()` takes. What is left empty is left to the database: a new id, now, no aggregate, the event type's
/// first segment as the topic.
struct new_event {
    // every member has an initializer: without one, -Wextra warns of those that a designated initializer leaves out
    std::string type = {};              ///< `module.aggregate.action`
    nlohmann::json payload = nullptr;   ///< sent as text; a payload that is never set is the JSON null
    std::string aggregate_id = {};
    std::string aggregate_type = {};
    int version = 1;                    ///< of the payload's contract, 1 or more
    nlohmann::json headers = nullptr;   ///< a flat object
    std::string topic = {};
    std::string occurred_at = {};       ///< RFC 3339
    std::string id = {};                ///< a UUID
    std::string deliver_at = {};        ///< RFC 3339: publish it then, and not at once; `cancel` takes it back until then
    std::string dedupe_key = {};        ///< at most 256 bytes: emit nothing if it has been used, see `emit`
};

/// Emits an event in the transaction that is open on `connection`, or in one of its own if none is, and returns its id.
///
/// Inside a handler the event carries, unless its headers say otherwise: `causation_id` (the id of the event that is being
/// handled), `correlation_id` (that event's, or its id), and that event's `traceparent` and `tracestate`.
///
/// With a `dedupe_key` that was used before, while the events of that time are retained, nothing is emitted and the id is that of
/// the first event with the key. If a transaction that has not ended has used it, this waits for its end.
///
///     outbox::emit(connection, {.type = "invoice.paid", .payload = invoice, .dedupe_key = "invoice 7 paid"});
///
/// The connection must be idle or in a transaction, and not in pipeline mode; it is used by this thread alone meanwhile. Its
/// client_encoding must be UTF8 (or SQL_ASCII, where the server converts nothing either), because all texts are UTF-8.
///
/// \throws std::invalid_argument, before anything is sent, if the connection is not so, or if a text in the payload or in the
///     headers is not UTF-8
/// \throws reply_error as outbox.emit() refused it, with the SQLSTATE; the transaction is then aborted, as after any error
/// \throws connection_error
std::string emit(PGconn *connection, const new_event &event);

/// The same for several, in order, in one round trip. All or none: an error emits nothing, also without an open transaction.
std::vector<std::string> emit(PGconn *connection, std::span<const new_event> events);

/// Takes a delayed event back, in the transaction that is open on `connection`, or in one of its own. False: there is no event with
/// that id that waits for its time; perhaps it has been delivered.
///
///     auto id = outbox::emit(connection, {.type = "invoice.overdue", .payload = invoice, .deliver_at = "2026-12-01T08:00:00Z"});
///     outbox::cancel(connection, id);
///
/// \throws std::invalid_argument if the connection is not ready for it, as for `emit`
/// \throws reply_error if the id is no UUID, with the SQLSTATE
/// \throws connection_error
bool cancel(PGconn *connection, const std::string &id);

/// While one lives, events emitted by this thread carry the context of `event`. The library makes one around every handler;
/// an asynchronous handler makes its own where it goes on in another thread. Scopes nest; a scope ends in its own thread.
class handling {
  public:
    explicit handling(const event &event) noexcept;
    ~handling();
    handling(const handling &) = delete;
    handling &operator=(const handling &) = delete;

  private:
    const event *before_;
};

} // namespace outbox

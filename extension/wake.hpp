// Waking the workers when a transaction commits.
#pragma once

#include "extension/pg.hpp"

namespace outbox {

// Register the transaction callback, once, at load time.
void define_wake();

// This transaction emitted: wake this database's workers when it has committed.
void wake_at_commit();

// This transaction emitted an event that is due at that time: no worker shall sleep for longer.
void deliver_at_commit(TimestampTz due);

// This transaction changed a sink or created the extension: they shall look again.
void reload_at_commit();

// This transaction created a database: the launcher shall look for it.
void look_at_commit();

// Workers that this transaction has stopped come back when it ends, whichever way.
void restart_at_end();

} // namespace outbox

// Who keeps a partition from being dropped, by name: for the one who is to end it.
#pragma once

#include "extension/pg.hpp"

namespace outbox {

// Both in a transaction; the text is in the current memory context. `since`: when that transaction began, or was prepared; as it was
// where it cannot be told.
const char *lock_holder(Oid table, int partition, TimestampTz &since);
const char *snapshot_holder(const VirtualTransactionId &transaction, TimestampTz &since);

} // namespace outbox

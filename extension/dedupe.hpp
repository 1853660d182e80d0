// Emit once: keys that have been used, in a ring of partitions that turns with that of events.
#pragma once

#include "extension/pg.hpp"

namespace outbox {

// Null where the extension is not updated yet, or is being dropped.
Oid dedupe_partition(int number);

// Takes the key for this transaction's event. False where it is taken: `first` is then the id of the event that has it. Waits for a
// transaction that has taken it and has not ended.
bool claim(text *key, pg_uuid_t *event_id, pg_uuid_t &first);

} // namespace outbox

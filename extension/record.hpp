// Recording an event: the last step of outbox.emit(), and all of what appends an event that was emitted before to its stream again.
#pragma once

#include "extension/pg.hpp"

namespace outbox {

// Inserts a row into the partition that is written to now, in the caller's transaction. Columns of storage::event_column; seq, xid
// and anchor are filled in.
void record_event(Datum *values, bool *nulls);

} // namespace outbox

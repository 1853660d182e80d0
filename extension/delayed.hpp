// Events that are to be delivered later. They are kept apart, in a ring of partitions by due time, until a worker moves them
// to where others are (bgworker/deliver.cpp).
#pragma once

#include "extension/pg.hpp"

namespace outbox {

constexpr int delayed_partitions = 17;

// Columns of outbox.delayed, from 0.
namespace delayed_column {
enum { deliver_at, seq, occurred_at, emitted_at, event_id, anchor, version, partition, event_type, topic, aggregate_type,
       aggregate_id, headers, payload, count };
}

// Null where the extension is not updated yet, or is being dropped.
Oid delayed_partition(int number);

// Raises an error for a time that no event can have; false for one that has passed.
bool is_later(TimestampTz deliver_at);

// Appends a row. `event` has the columns of outbox.event_<n>, but for seq and xid.
void append_delayed(const Datum *event, const bool *nulls, TimestampTz deliver_at);

} // namespace outbox

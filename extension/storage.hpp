// Where events and ticks are stored: a ring of partitions, opened by number, appended to row by row. Rows are only ever
// inserted; a whole partition is truncated when nothing in it is needed any more.
#pragma once

#include "extension/pg.hpp"
#include "extension/version.hpp"

namespace outbox::storage {

constexpr int partitions = 8;

// Columns of outbox.event_<n> and outbox.tick_<n>, from 0.
namespace event_column {
enum { seq, xid, occurred_at, event_id, anchor, version, event_type, topic, aggregate_type, aggregate_id,
       headers, payload, sink_id, recorded_at, count };
}
namespace tick_column {
enum { sink_id, anchor, ms, seq, cursor_ms, cursor_n, snapshot, count };
}

struct relations {
    Oid schema;
    Oid extension;
    char version[version::max_length]; // of the SQL in this database
    version::fit fit;                  // with this library
    Oid ring;
    Oid event_seq;
    Oid sink_definition;
    Oid sink_filter; // invalid in version 1.0
    Oid event[partitions];
    Oid tick[partitions];
    int64 generation;       // of the ring
    TimestampTz started_at; // of that generation; 0 for the first

    int current() const { return static_cast<int>(generation % partitions); }
};

// Those of this database, from a cache that is dropped when the ring moves on or the extension goes or is updated. Null when there is
// no extension here.
const relations *find();

// As find(), but raises an error; also where the extension is newer than this library. It may be older: see version::require_same().
const relations &require();

// Forget what is known when this transaction commits, in all processes; or at once, in this one.
void forget_everywhere();
void forget_here();

// Identifies this cluster and database. Rows that carry another value came with a restored dump: their transaction ids mean
// nothing here.
int32 anchor();

// A table and the index to read it by, locked until the transaction ends.
struct partition {
    Relation table = nullptr;
    Relation index = nullptr;

    void close();
};

// Null when the table was dropped meanwhile. The index is found by its columns and not by name: REINDEX CONCURRENTLY puts
// another in its place.
partition open_events(const relations &relations, int number);
partition open_ticks(const relations &relations, int number);

// The table to append to, null when it was dropped. An emitter takes the lock in every call: one taken in a savepoint is gone
// after ROLLBACK TO, and without it TRUNCATE could pass a row that nobody has read.
Relation open_for_append(Oid table);

// Opens the event partition that is written to now, for the same. The transaction has its id by then (see emit.cpp).
Relation open_current();

// Appends a row, also to every index that wants it.
void append(Relation table, const Datum *values, const bool *nulls);

// The next number of the sequence, without a look at the caller's privileges.
int64 next_seq(const relations &relations);

// The last one drawn; 0 before the first.
int64 last_seq(const relations &relations);

void define(); // at load time

} // namespace outbox::storage

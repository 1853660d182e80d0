// Ticks: recorded batch boundaries. A tick is a snapshot, written down before anything of its batch is sent, here and, as long as
// that is not durable, in Redis with what is sent (carry.cpp). The batch is what its snapshot sees and that of the tick before (of
// the same anchor) does not: a set that never changes, so it can be sent again identically for ever. The idea is PgQ's.
#pragma once

#include "bgworker/marker.hpp"
#include "bgworker/position.hpp"
#include "extension/pg.hpp"

namespace outbox {

// PostgreSQL's pg_snapshot as it is laid out on disk (utils/adt/xid8funcs.c, the same since version 13).
struct stored_snapshot {
    int32 length_word;
    uint32 nxip;
    FullTransactionId xmin;
    FullTransactionId xmax;
    FullTransactionId xip[FLEXIBLE_ARRAY_MEMBER];

    // Had the transaction ended (committed or not) when the snapshot was taken?
    bool sees(FullTransactionId xid) const;
    // Can `later` have been taken after this one? Then it sees whatever this one does.
    bool precedes(const stored_snapshot &later) const;
};

struct tick {
    int64 ms = 0;
    int32 anchor = 0;
    int64 seq = 0;                             // of the sequence, when it was recorded
    const stored_snapshot *snapshot = nullptr; // in the memory context that was current
};

// All of these run in a transaction; null snapshot or false: there is none.
bool first_tick_after(int sink_id, int64 ms, tick &found);
bool last_tick_before(int sink_id, int64 ms, tick &found);
// The tick whose batch ended where that of `current` begins. Its snapshot is null when `current` is the first of its anchor.
tick predecessor(int sink_id, const tick &current);

// Is it the tick that a marker carries, and not only of the same ms?
bool is_same(const tick &recorded, const carried_tick &carried);

// Takes the lock that orders ticks, which must come before the snapshot: one that is older than its predecessor's would put
// events into two batches. The caller pushes a new snapshot after it.
void lock_ticks(int sink_id);
const stored_snapshot *active_snapshot();
void insert_tick(int sink_id, const tick &recorded, position cursor);

constexpr int64 no_tick = PG_INT64_MAX;

} // namespace outbox

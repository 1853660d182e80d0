// The ring of partitions. Emission moves on to the next one in time; the oldest is truncated when its events are older than
// outbox.retention and nothing can need them any more. No row is ever deleted.

#include "bgworker/dispatcher.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"

extern "C" {
#include "storage/procarray.h"
}

namespace outbox {

using storage::partitions;

static std::pair<Oid, Datum> of(int64 value) { return {INT8OID, Int64GetDatum(value)}; }

static bool is_empty(const char *kind, int number) {
    return state::execute(psprintf("SELECT FROM outbox.%s_%d LIMIT 1", kind, number)) == 0;
}

static bool is_old(TimestampTz replaced_at) {
    return replaced_at != 0 && TimestampDifferenceExceeds(replaced_at, GetCurrentTimestamp(), settings::retention * 1000);
}

// By the index: what the snapshot does not see is at its end.
static bool has_events_behind(int number, const stored_snapshot *snapshot) {
    return state::execute(psprintf("SELECT FROM outbox.event_%d WHERE xid >= pg_snapshot_xmin($1) AND anchor = $2 "
                                   "AND NOT pg_visible_in_snapshot(xid, $1) LIMIT 1",
                                   number),
                          {{PG_SNAPSHOTOID, PointerGetDatum(snapshot)}, {INT4OID, Int32GetDatum(storage::anchor())}}) > 0;
}

// Whether this generation shares no batch with a newer one that is not old itself: a place in a batch counts the events before
// it. Events of a transaction that ended only after the ring had moved on are in a batch of a later generation.
bool dispatcher::is_apart(int64 generation, int64 current) {
    int number = static_cast<int>(generation % partitions);
    int64 last = generation;
    const stored_snapshot *end;
    while ((!(end = state::last_snapshot_in(sink_id_, static_cast<int>(last % partitions))) || has_events_behind(number, end)) &&
           last < current)
        ++last;
    if (last < current)
        return is_old(state::generation_start(last + 1));
    // In the current one: then from when they were seen to be in batches, all of them. A ring that is full could not wait for
    // the next one.
    if (!end || has_events_behind(number, end)) {
        late_generation_ = -1;
        return false;
    }
    if (late_generation_ != generation) {
        late_generation_ = generation;
        late_until_ = GetCurrentTimestamp();
    }
    return is_old(late_until_);
}

static VirtualTransactionId *open_snapshots(int &count) {
    return GetCurrentVirtualXIDs(InvalidTransactionId, true, false, PROC_IN_VACUUM | PROC_IS_AUTOVACUUM, &count);
}

// Keeps the position that is recorded durably, and who may have a snapshot that does not see it yet. The way of CREATE INDEX
// CONCURRENTLY (WaitForOlderSnapshots).
void dispatcher::sample() {
    checkpoint();
    sampled_ = saved_;
    int count;
    VirtualTransactionId *open = open_snapshots(count);
    if (older_)
        pfree(older_);
    older_ = static_cast<VirtualTransactionId *>(
        MemoryContextAlloc(batches_, sizeof(VirtualTransactionId) * static_cast<Size>(count + 1)));
    older_count_ = count;
    memcpy(static_cast<void *>(older_), open, sizeof(VirtualTransactionId) * static_cast<Size>(count));
}

bool dispatcher::older_snapshots_remain() const {
    int count;
    VirtualTransactionId *open = open_snapshots(count);
    for (int i = 0; i < count; ++i)
        for (int k = 0; k < older_count_; ++k)
            if (VirtualTransactionIdEquals(open[i], older_[k]))
                return true;
    return false;
}

void dispatcher::hold_back(const char *reason) {
    strlcpy(stats_.held_back_by, reason, sizeof stats_.held_back_by);
    TimestampTz now = GetCurrentTimestamp();
    if (held_back_since_ == 0)
        held_back_since_ = now;
    // A ring that does not turn costs disk, never an event. Worth a word after a whole interval.
    int interval_ms = settings::retention > 60 ? 3600 * 1000 : 10000;
    if (TimestampDifferenceExceeds(held_back_since_, now, interval_ms)) {
        held_back_since_ = now;
        ereport(WARNING, errmsg("old events of sink \"%s\" cannot be dropped: %s", sink_.name, reason),
                errdetail("They stay until they can; new events are not affected, but the disk fills."));
    }
}

// Truncates the partition of a past generation. Lock first, without waiting; then look, with a snapshot that is newer than the
// lock: a writer that committed while we waited would otherwise be cut off unread.
bool dispatcher::drop_partition(int64 generation, TimestampTz replaced_at) {
    const storage::relations &relations = storage::require();
    sampled_is_spent_ = false;
    int number = static_cast<int>(generation % partitions);
    int next = (number + 1) % partitions;
    for (Oid table : {relations.event[number], relations.tick[number]})
        if (!ConditionalLockRelationOid(table, AccessExclusiveLock)) {
            hold_back(psprintf("a transaction uses partition %d (see pg_locks)", number));
            return false;
        }
    // Everything in it must be behind the position that was recorded durably.
    int64 upto = sampled_.ms; // that tick itself may not be complete
    bool held = false;
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, streams_);
    while (auto *stream = static_cast<stream_state *>(hash_seq_search(&scan)))
        if (stream->held && stream->held_from.ms < upto) {
            upto = stream->held_from.ms;
            held = true;
        }
    tick confirmed;
    bool known = last_tick_before(sink_id_, upto, confirmed);
    const char *unconfirmed_reason = held ? "a stream that refuses its events is held (see outbox.stream)"
                                          : "the sink has not confirmed its events";
    if (!known || confirmed.anchor != storage::anchor()) {
        hold_back(unconfirmed_reason);
        sampled_is_spent_ = true;
        return false;
    }
    if (has_events_behind(number, confirmed.snapshot)) {
        sampled_is_spent_ = true;
        hold_back(unconfirmed_reason);
        return false;
    }
    // A dump whose snapshot is older than the confirmation would miss the events that it still counts as unsent.
    if (older_snapshots_remain()) {
        hold_back("a snapshot that is older than the confirmation is in use (see pg_stat_activity.backend_xmin)");
        return false;
    }
    // The newest ticks are where the next ones begin; they go along.
    state::execute(psprintf("INSERT INTO outbox.tick_%d SELECT DISTINCT ON (sink_id, anchor) * FROM outbox.tick_%d t "
                            "WHERE NOT EXISTS (SELECT FROM outbox.tick_%d n WHERE n.sink_id = t.sink_id AND n.ms = t.ms) "
                            "ORDER BY sink_id, anchor, ms DESC",
                            next, number, next));
    OUTBOX_CRASH_POINT("before_truncate");
    state::execute(psprintf("TRUNCATE outbox.event_%d, outbox.tick_%d", number, number));
    state::execute("DELETE FROM outbox.move WHERE sink_id = $1 AND ms < $2",
                   {{INT4OID, Int32GetDatum(sink_id_)}, of(unix_ms(replaced_at) - INT64CONST(1000) * settings::retention)});
    OUTBOX_CRASH_POINT("after_truncate");
    held_back_since_ = 0;
    stats_.held_back_by[0] = '\0';
    ereport(LOG, errmsg("events older than outbox.retention were dropped from partition %d", number));
    return true;
}

void dispatcher::turn_ring() {
    int look_interval = std::clamp(settings::retention * 10, 200, 60000); // ms
    if (!TimestampDifferenceExceeds(turned_at_, steady_now(), look_interval))
        return;
    turned_at_ = steady_now();
    // A checkpoint is of use here once nobody's snapshot is older, so one is kept until then.
    if (sampled_.ms == 0)
        sample();

    begin_transaction();
    const storage::relations &relations = storage::require();
    int64 current = relations.generation;
    TimestampTz now = GetCurrentTimestamp();

    // The oldest generation that still has something, and when the one after it began.
    for (int64 generation = std::max<int64>(0, current - partitions + 1); generation < current; ++generation) {
        int number = static_cast<int>(generation % partitions);
        if (is_empty("event", number) && is_empty("tick", number))
            continue;
        TimestampTz replaced_at = state::generation_start(generation + 1);
        if (!is_old(replaced_at) || !is_apart(generation, current))
            break;
        if (drop_partition(generation, replaced_at) || sampled_is_spent_)
            sampled_ = {};
        break;
    }

    // On to the next partition when this one covers its share of the time. A ring that is full stays where it is.
    int next = static_cast<int>((current + 1) % partitions);
    int share_ms = static_cast<int>(INT64CONST(1000) * settings::retention / (partitions - 2));
    if (relations.started_at != 0 && TimestampDifferenceExceeds(relations.started_at, now, share_ms) &&
        !is_empty("event", relations.current()) && is_empty("event", next) && is_empty("tick", next)) {
        OUTBOX_CRASH_POINT("before_turn");
        state::execute("INSERT INTO outbox.ring (generation, started_at) VALUES ($1, now())", {of(current + 1)});
        state::execute("DELETE FROM outbox.ring WHERE generation < $1", {of(current - 2 * partitions)});
        CacheInvalidateRelcacheByRelid(relations.ring);
    }
    commit_transaction();
}

} // namespace outbox

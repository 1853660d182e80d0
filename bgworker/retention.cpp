// The ring of partitions. Emission moves on to the next one in time, or when it has its share of outbox.retention_size; the oldest is
// truncated when its events are older than outbox.retention, or all of them take more than that size, and nothing can need them any
// more. No row is ever deleted.

#include "bgworker/dispatcher.hpp"
#include "bgworker/holder.hpp"
#include "bgworker/replay_task.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/dedupe.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"

extern "C" {
#include "storage/procarray.h"
}

namespace outbox {

using storage::partitions;

constexpr uint16 ring_lock = 65535; // beside those of the sinks, see lock_ticks()

static std::pair<Oid, Datum> of(int64 value) { return {INT8OID, Int64GetDatum(value)}; }

static bool is_empty(const char *kind, int number) {
    return state::execute(psprintf("SELECT FROM outbox.%s_%d LIMIT 1", kind, number)) == 0;
}

static bool is_old(TimestampTz replaced_at) {
    return replaced_at != 0 && TimestampDifferenceExceeds(replaced_at, GetCurrentTimestamp(), settings::retention * 1000);
}

// What stored events take, where that has a bound.
struct dispatcher::ring_size {
    int64 limit = 0; // bytes; 0: there is none
    int64 current;   // generation
    int64 total = 0;
    int64 bytes[partitions] = {};

    explicit ring_size(int64 current_generation) : current(current_generation) {
        if (settings::retention_size == 0)
            return;
        limit = INT64CONST(1024) * settings::retention_size;
        state::load_sizes(bytes);
        for (int64 generation = std::max<int64>(0, current - partitions + 1); generation <= current; ++generation)
            total += of(generation);
    }
    int64 of(int64 generation) const { return bytes[generation % partitions]; }
    bool is_over() const { return limit > 0 && total > limit; }
    // The newest half of what may be stored is never dropped before its time, nor is what shares a batch with it.
    bool is_enough(int64 newer) const { return is_over() && newer >= limit / 2; }
    bool has_enough_behind(int64 generation) const {
        int64 newer = 0;
        while (++generation <= current)
            newer += of(generation);
        return is_enough(newer);
    }
    bool has_share() const { return limit > 0 && of(current) >= limit / (partitions - 2); }
};

// By the index: what the snapshot does not see is at its end.
static bool has_events_behind(int number, const stored_snapshot *snapshot) {
    return state::execute(psprintf("SELECT FROM outbox.event_%d WHERE xid >= pg_snapshot_xmin($1) AND anchor = $2 "
                                   "AND NOT pg_visible_in_snapshot(xid, $1) LIMIT 1",
                                   number),
                          {{PG_SNAPSHOTOID, PointerGetDatum(snapshot)}, {INT4OID, Int32GetDatum(storage::anchor())}}) > 0;
}

// Whether this generation shares no batch of any sink with a newer one that is not old itself: a place in a batch counts the
// events before it. Events of a transaction that ended only after the ring had moved on are in a batch of a later generation.
// `without`: a sink that has no batch yet for some of them.
bool dispatcher::is_apart(int64 generation, int64 current, const state::sink_progress *sinks, int count, const ring_size &size,
                          const state::sink_progress *&without) {
    int number = static_cast<int>(generation % partitions);
    bool reaches_current = false;
    for (int i = 0; i < count; ++i) {
        int64 last = generation;
        const stored_snapshot *end;
        while ((!(end = state::last_snapshot_in(sinks[i].id, static_cast<int>(last % partitions))) ||
                has_events_behind(number, end)) &&
               last < current)
            ++last;
        if (last < current) {
            if (!is_old(state::generation_start(last + 1)) && !size.has_enough_behind(last))
                return false;
            continue;
        }
        if (!end || has_events_behind(number, end)) {
            late_generation_ = -1;
            without = &sinks[i];
            return false;
        }
        reaches_current = true;
    }
    if (!reaches_current)
        return true;
    // In the current one: then from when they were seen to be in batches, all of them. A ring that is full could not wait for
    // the next one.
    if (late_generation_ != generation) {
        late_generation_ = generation;
        late_until_ = GetCurrentTimestamp();
        late_current_ = current;
        late_bytes_ = size.of(current);
    }
    int64 since = -late_bytes_;
    for (int64 later = late_current_; later <= current; ++later)
        since += size.of(later);
    return is_old(late_until_) || size.is_enough(since);
}

static VirtualTransactionId *open_snapshots(int &count) {
    return GetCurrentVirtualXIDs(InvalidTransactionId, true, false, PROC_IN_VACUUM | PROC_IS_AUTOVACUUM, &count);
}

// Keeps what is recorded durably of every sink, and who may have a snapshot that does not see it yet. The way of CREATE INDEX
// CONCURRENTLY (WaitForOlderSnapshots).
void dispatcher::sample() {
    checkpoint();
    if (sampled_)
        pfree(sampled_);
    begin_transaction();
    MemoryContextSwitchTo(batches_);
    sampled_ = state::load_progress(sampled_count_);
    commit_transaction();
    int count;
    VirtualTransactionId *open = open_snapshots(count);
    if (older_)
        pfree(older_);
    older_ = static_cast<VirtualTransactionId *>(
        MemoryContextAlloc(batches_, sizeof(VirtualTransactionId) * static_cast<Size>(count + 1)));
    older_count_ = count;
    memcpy(static_cast<void *>(older_), open, sizeof(VirtualTransactionId) * static_cast<Size>(count));
}

const VirtualTransactionId *dispatcher::older_snapshot() const {
    int count;
    VirtualTransactionId *open = open_snapshots(count);
    for (int i = 0; i < count; ++i)
        for (int k = 0; k < older_count_; ++k)
            if (VirtualTransactionIdEquals(open[i], older_[k]))
                return &older_[k];
    return nullptr;
}

// `since`: when what the reason names began.
void dispatcher::hold_back(int64 generation, const char *reason, TimestampTz since) {
    strlcpy(stats_.held_back_by, reason, sizeof stats_.held_back_by);
    stats_.held_back_generation = generation;
    TimestampTz now = GetCurrentTimestamp();
    if (held_back_since_ == 0)
        held_back_since_ = now;
    stats_.held_back_since = since != 0 ? since : held_back_since_;
    // A ring that does not turn costs disk, never an event. Worth a word after a whole interval.
    int interval_ms = settings::retention > 60 ? 3600 * 1000 : 10000;
    if (TimestampDifferenceExceeds(held_back_since_, now, interval_ms)) {
        held_back_since_ = now;
        ereport(WARNING, errmsg("old events cannot be dropped: %s", reason),
                errdetail("They stay until they can; new events are not affected, but the disk fills."));
    }
}

void dispatcher::release_ring() {
    held_back_since_ = 0;
    stats_.held_back_since = 0;
    stats_.held_back_by[0] = '\0';
}

// A sink that appends again what Redis had lost is behind what was written down of it.
static int64 healed_upto(int sink_id) {
    for (int i = 0; i < shared::slot_count(); ++i) {
        shared::slot slot;
        if (shared::read(i, slot) && slot.database == MyDatabaseId && slot.sink_id == sink_id && slot.pid != 0 &&
            (slot.stats.cursor_ms > 0 || slot.stats.heals))
            return slot.stats.cursor_ms;
    }
    return PG_INT64_MAX;
}

// Why this sink still needs the partition, and since when; null where it does not.
const char *dispatcher::reason_to_keep(int number, const state::sink_progress &sink, TimestampTz &since) const {
    const state::sink_progress *then = sampled_;
    while (then < sampled_ + sampled_count_ && then->id != sink.id)
        ++then;
    if (then == sampled_ + sampled_count_)
        return psprintf("sink \"%s\" is new", sink.name);
    // That tick itself may not be complete.
    int64 recorded = std::min(then->confirmed.ms, sink.id == sink_id_ ? confirmed().ms : healed_upto(sink.id));
    int64 upto = std::max(recorded, sink.start_ms);
    int64 held_ms = sink.held_ms;
    const char *held_topic = sink.held_topic;
    TimestampTz held_since = sink.held_since;
    if (sink.id == sink_id_) {
        HASH_SEQ_STATUS scan;
        hash_seq_init(&scan, streams_);
        while (auto *stream = static_cast<stream_state *>(hash_seq_search(&scan)))
            if (stream->held && stream->held_from.ms < held_ms) {
                held_ms = stream->held_from.ms;
                held_topic = pstrdup(stream->topic);
                held_since = stream->failed_at;
            }
    }
    tick confirmed;
    if (last_tick_before(sink.id, std::min(upto, held_ms), confirmed) && confirmed.anchor == storage::anchor() &&
        !has_events_behind(number, confirmed.snapshot))
        return nullptr;
    bool held = held_ms < upto;
    since = held ? held_since : sink.confirmed_at;
    const char *behind = since != 0 ? psprintf(" since %s", timestamptz_to_str(since)) : "";
    return held ? psprintf("the stream of topic \"%s\" of sink \"%s\", which refuses its events, is held%s", held_topic, sink.name, behind)
                : psprintf("sink \"%s\" has not confirmed its events%s", sink.name, behind);
}

bool dispatcher::is_kept_for(const state::sink_progress &sink, int64 generation) {
    TimestampTz since = 0;
    const char *reason = reason_to_keep(static_cast<int>(generation % partitions), sink, since);
    if (!reason)
        return false;
    hold_back(generation, reason, since);
    sampled_is_spent_ = true;
    return true;
}

// A replay that has still to read the partition; null where there is none.
const char *dispatcher::replay_that_needs(int number) {
    int count;
    const replay::need *needs = replay::needs(count);
    for (int i = 0; i < count; ++i) {
        tick before;
        // it also asks that the whole batch can still be there, as outbox.verify() does: see expectation::find_horizon()
        FullTransactionId horizon = FirstNormalFullTransactionId;
        tick next;
        next.ms = state::last_tick_in(needs[i].sink_id, number);
        for (int found = 0; found < 2 && next.ms != 0 && first_tick_after(needs[i].sink_id, next.ms, next);)
            if (next.anchor == storage::anchor()) {
                horizon = next.snapshot->xmax;
                ++found;
            }
        if (!last_tick_before(needs[i].sink_id, needs[i].ms, before) || before.anchor != storage::anchor() ||
            has_events_behind(number, before.snapshot) || FullTransactionIdPrecedes(before.snapshot->xmin, horizon))
            return psprintf("replay %lld has not read its events yet (see outbox.stat_replay)", static_cast<long long>(needs[i].id));
    }
    return nullptr;
}

// Truncates the partition of a past generation. Lock first, without waiting; then look, with a snapshot that is newer than the
// lock: a writer that committed while we waited would otherwise be cut off unread.
bool dispatcher::drop_partition(int64 generation, TimestampTz replaced_at) {
    const storage::relations &relations = storage::require();
    int number = static_cast<int>(generation % partitions);
    int next = (number + 1) % partitions;
    Oid dedupe = dedupe_partition(number); // not there before the extension is updated
    for (Oid table : {relations.event[number], relations.tick[number], dedupe})
        if (OidIsValid(table) && !ConditionalLockRelationOid(table, AccessExclusiveLock)) {
            TimestampTz since = 0;
            const char *reason = lock_holder(table, number, since);
            hold_back(generation, reason, since);
            return false;
        }
    // Every sink must be behind it with the position that was recorded durably.
    int count;
    const state::sink_progress *sinks = state::load_progress(count);
    for (int i = 0; i < count; ++i)
        if (is_kept_for(sinks[i], generation))
            return false;
    if (const char *reason = replay_that_needs(number)) {
        hold_back(generation, reason, 0);
        return false;
    }
    // A dump whose snapshot is older than the confirmation would miss the events that it still counts as unsent.
    if (const VirtualTransactionId *older = older_snapshot()) {
        TimestampTz since = 0;
        const char *reason = snapshot_holder(*older, since);
        hold_back(generation, reason, since);
        return false;
    }
    // The newest ticks are where the next ones begin; they go along.
    state::execute(psprintf("INSERT INTO outbox.tick_%d SELECT DISTINCT ON (sink_id, anchor) * FROM outbox.tick_%d t "
                            "WHERE NOT EXISTS (SELECT FROM outbox.tick_%d n WHERE n.sink_id = t.sink_id AND n.ms = t.ms) "
                            "AND EXISTS (SELECT FROM outbox.sink_definition d WHERE d.id = t.sink_id) "
                            "ORDER BY sink_id, anchor, ms DESC",
                            next, number, next));
    OUTBOX_CRASH_POINT("before_truncate");
    state::execute(psprintf("TRUNCATE outbox.event_%d, outbox.tick_%d", number, number));
    if (OidIsValid(dedupe))
        state::execute(psprintf("TRUNCATE outbox.dedupe_%d", number));
    state::execute("DELETE FROM outbox.move WHERE ms < $1",
                   {of(unix_ms(replaced_at) - INT64CONST(1000) * settings::retention)});
    // Their events were dropped: in a batch, and so stored, before they died. With a margin, as for moves: clocks differ.
    TimestampTz settled_before = TimestampTzPlusMilliseconds(replaced_at, -INT64CONST(1000) * settings::retention);
    state::execute("DELETE FROM outbox.settled_letter WHERE dead_at < $1", {{TIMESTAMPTZOID, TimestampTzGetDatum(settled_before)}});
    OUTBOX_CRASH_POINT("after_truncate");
    release_ring();
    if (is_old(replaced_at))
        ereport(LOG, errmsg("events older than outbox.retention were dropped from partition %d", number));
    else
        ereport(LOG, errmsg("events beyond outbox.retention_size were dropped from partition %d", number));
    return true;
}

void dispatcher::turn_ring() {
    int look_interval = std::clamp(settings::retention * 10, 200, settings::retention_size > 0 ? 250 : 60000); // ms
    if (!TimestampDifferenceExceeds(turned_at_, steady_now(), look_interval))
        return;
    turned_at_ = steady_now();
    publish(); // what this sink itself needs is read from there, too
    // A checkpoint is of use here once nobody's snapshot is older, so one is kept until then.
    if (sampled_count_ == 0)
        sample();

    begin_transaction();
    // One worker at a time, whose sink it may be.
    if (!ConditionalLockDatabaseObject(ExtensionRelationId, extension_, ring_lock, ExclusiveLock)) {
        commit_transaction();
        return;
    }
    const storage::relations &relations = storage::require();
    int64 current = relations.generation;
    int count;
    const state::sink_progress *sinks = state::load_progress(count);
    TimestampTz now = GetCurrentTimestamp();
    ring_size size(current);

    bool due = false;
    // The oldest generation that still has something, and when the one after it began.
    for (int64 generation = std::max<int64>(0, current - partitions + 1); generation < current; ++generation) {
        int number = static_cast<int>(generation % partitions);
        if (is_empty("event", number) && is_empty("tick", number))
            continue;
        TimestampTz replaced_at = state::generation_start(generation + 1);
        if (!is_old(replaced_at) && !size.has_enough_behind(generation))
            break;
        const state::sink_progress *without = nullptr;
        bool dropped = false;
        sampled_is_spent_ = false;
        if (is_apart(generation, current, sinks, count, size, without)) {
            due = true;
            dropped = drop_partition(generation, replaced_at);
        } else if (without) {
            due = is_kept_for(*without, generation);
        }
        if (dropped)
            turned_at_ = 0; // more may be due, and the ring turns as often as we look: look again at once
        if (dropped || sampled_is_spent_)
            sampled_count_ = 0;
        break;
    }
    if (!due) // any more: another sink's worker may have dropped it
        release_ring();
    stats_.looked_at = GetCurrentTimestamp();

    // On to the next partition when this one covers its share of the time. A ring that is full stays where it is.
    int next = static_cast<int>((current + 1) % partitions);
    int share_ms = static_cast<int>(INT64CONST(1000) * settings::retention / (partitions - 2));
    if (relations.started_at != 0 && (TimestampDifferenceExceeds(relations.started_at, now, share_ms) || size.has_share()) &&
        !is_empty("event", relations.current()) && is_empty("event", next) && is_empty("tick", next)) {
        OUTBOX_CRASH_POINT("before_turn");
        state::execute("INSERT INTO outbox.ring (generation, started_at) VALUES ($1, now())", {of(current + 1)});
        state::execute("DELETE FROM outbox.ring WHERE generation < $1", {of(current - 2 * partitions)});
        CacheInvalidateRelcacheByRelid(relations.ring);
    }
    commit_transaction();
}

} // namespace outbox

// Delayed events that are due. A worker moves them, in a transaction of its own, from where they waited into the partition of
// events that is current; from there on they are like any others, emitted then. Whichever worker of the database comes first does
// it, so no sink that is down keeps them from the others.
//
// A row is there until it is moved or cancelled, and what is left is always looked for from the first due time on: one whose
// transaction committed long after its time is found like any other. The rows deleted here are no work for vacuum: a partition
// is truncated when all that was in it is over.

#include "bgworker/dispatcher.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/delayed.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"
#include "extension/wake.hpp"

extern "C" {
#include "access/detoast.h"
#include "access/heapam.h"
#include "storage/bufmgr.h"
}

namespace outbox {

constexpr uint16 deliver_lock = 65533; // beside those of the sinks, see lock_ticks()
constexpr int move_at_once = 1000;     // events in a transaction
constexpr Size move_bytes = 8 * 1024 * 1024; // of payload, or a little more
constexpr int fetch_at_once = 100;
constexpr int taken_delay = 20;        // ms, while another worker moves events
constexpr int sweep_interval = 10000;  // ms
constexpr BlockNumber looked_at_once = 1024;
constexpr BlockNumber swept_size = 128; // pages; with less in it a partition is left to vacuum

static const char *const due_events = "SELECT tableoid, ctid, deliver_at, seq, occurred_at, emitted_at, event_id, anchor, version, partition, "
                                      "event_type, topic, aggregate_type, aggregate_id, headers, payload "
                                      "FROM outbox.delayed WHERE deliver_at <= $1 ORDER BY deliver_at, seq";
constexpr int before_columns = 2; // tableoid and ctid

// Deletes the row; false where somebody else has locked or deleted it, for whom nobody waits here.
static bool take(Oid table, ItemPointer at) {
    Relation from = table_open(table, RowExclusiveLock);
    TM_FailureData failure;
    TM_Result result = table_tuple_delete(from, at, GetCurrentCommandId(true), GetActiveSnapshot(), InvalidSnapshot, false, &failure,
                                          false);
    table_close(from, NoLock);
    return result == TM_Ok;
}

static void append_event(Relation target, HeapTuple row, TupleDesc description) {
    namespace from = delayed_column;
    namespace to = storage::event_column;
    Datum values[to::count];
    bool nulls[to::count] = {};
    const struct { int from, to; } same[] = {
        {from::occurred_at, to::occurred_at}, {from::event_id, to::event_id}, {from::version, to::version},
        {from::event_type, to::event_type}, {from::topic, to::topic}, {from::aggregate_type, to::aggregate_type},
        {from::aggregate_id, to::aggregate_id}, {from::headers, to::headers}, {from::payload, to::payload}};
    for (const auto &column : same)
        values[column.to] = SPI_getbinval(row, description, before_columns + column.from + 1, &nulls[column.to]);
    nulls[to::sink_id] = true;
    values[to::recorded_at] = TimestampTzGetDatum(GetCurrentTimestamp());
    values[to::anchor] = Int32GetDatum(storage::anchor());
    values[to::xid] = FullTransactionIdGetDatum(GetTopFullTransactionId());
    values[to::seq] = Int64GetDatum(storage::next_seq(storage::require()));
    storage::append(target, values, nulls);
}

// Of those that are committed by now.
static TimestampTz first_due_after(TimestampTz time) {
    Oid type = TIMESTAMPTZOID;
    Datum value = TimestampTzGetDatum(time);
    PushActiveSnapshot(GetLatestSnapshot());
    if (SPI_execute_with_args("SELECT deliver_at FROM outbox.delayed WHERE deliver_at > $1 ORDER BY deliver_at LIMIT 1", 1, &type,
                              &value, nullptr, true, 1) != SPI_OK_SELECT)
        elog(ERROR, "could not look for delayed events");
    TimestampTz found = PG_INT64_MAX;
    if (SPI_processed == 1) {
        bool null;
        found = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
    }
    PopActiveSnapshot();
    return found;
}

// Moves some of what is due by then, the first ones first. Sets when to look again; true when that is at once.
bool dispatcher::move_due(TimestampTz now, int &moved) {
    bool skipped = false, more = false;
    Size bytes = 0;
    Oid type = TIMESTAMPTZOID;
    Datum value = TimestampTzGetDatum(now);
    Relation target = nullptr;
    SPI_connect();
    PushActiveSnapshot(GetTransactionSnapshot());
    Portal portal = SPI_cursor_open_with_args(nullptr, due_events, 1, &type, &value, nullptr, true, 0);
    while (!more) {
        SPI_cursor_fetch(portal, true, fetch_at_once);
        if (SPI_processed == 0)
            break;
        for (uint64 i = 0; i < SPI_processed && bytes < move_bytes; ++i) {
            HeapTuple row = SPI_tuptable->vals[i];
            TupleDesc description = SPI_tuptable->tupdesc;
            bool null;
            Oid table = DatumGetObjectId(SPI_getbinval(row, description, 1, &null));
            auto *at = reinterpret_cast<ItemPointer>(DatumGetPointer(SPI_getbinval(row, description, 2, &null)));
            if (!take(table, at)) {
                skipped = true;
                continue;
            }
            if (!target) {
                (void)GetTopFullTransactionId(); // before the partition, as emit() does
                target = storage::open_current();
            }
            bytes += toast_raw_datum_size(SPI_getbinval(row, description, before_columns + delayed_column::payload + 1, &null));
            append_event(target, row, description);
            ++moved;
        }
        SPI_freetuptable(SPI_tuptable);
        more = moved >= move_at_once || bytes >= move_bytes;
    }
    SPI_cursor_close(portal);
    if (target)
        table_close(target, NoLock);
    PopActiveSnapshot();
    CommandCounterIncrement();

    // What is committed by now is seen here; who commits later says so. What was skipped is being cancelled, by a transaction that
    // may yet roll back: it is tried again after a while, and delays nobody else.
    bool retry = skipped && !more;
    TimestampTz next = first_due_after(retry ? now : PG_INT64_MIN);
    SPI_finish();
    if (retry) {
        due_delay_ = std::clamp(due_delay_ * 2, taken_delay, std::max(settings::poll_interval, taken_delay));
        next = std::min(next, TimestampTzPlusMilliseconds(now, due_delay_));
    } else {
        due_delay_ = 0;
    }
    shared::expect_due(slot_, next);
    return next <= now;
}

// Is every row dead to everybody, also to a dump whose snapshot is older than the moves? With the lock held: no when somebody waits
// for it. From the end, where the youngest are.
static bool is_over(Relation table) {
    SnapshotData snapshot;
    InitNonVacuumableSnapshot(snapshot, GlobalVisTestFor(table));
    TupleTableSlot *slot = table_slot_create(table, nullptr);
    bool over = true;
    for (BlockNumber end = RelationGetNumberOfBlocks(table); end > 0 && over;) {
        BlockNumber begin = end - std::min(end, looked_at_once);
        TableScanDesc scan = table_beginscan_strat(table, &snapshot, 0, nullptr, true, false);
        heap_setscanlimits(scan, begin, end - begin);
        over = !table_scan_getnextslot(scan, ForwardScanDirection, slot) && !LockHasWaitersRelation(table, AccessExclusiveLock);
        table_endscan(scan);
        end = begin;
    }
    ExecDropSingleTupleTableSlot(slot);
    return over;
}

static bool is_large(Oid partition) {
    Relation table = try_relation_open(partition, AccessShareLock);
    if (!table)
        return false;
    BlockNumber size = RelationGetNumberOfBlocks(table);
    table_close(table, AccessShareLock);
    return size >= swept_size;
}

// Truncates a partition whose rows are all over. Lock first, without waiting, also what autovacuum may have locked; then look: what
// committed in between would be cut off.
static void sweep(Oid partition) {
    if (!ConditionalLockRelationOid(partition, AccessExclusiveLock))
        return;
    Relation table = try_relation_open(partition, NoLock);
    if (!table)
        return;
    Oid toast = table->rd_rel->reltoastrelid;
    bool over = (!OidIsValid(toast) || ConditionalLockRelationOid(toast, AccessExclusiveLock)) && is_over(table);
    const char *name = quote_identifier(pstrdup(RelationGetRelationName(table)));
    table_close(table, NoLock);
    if (over)
        state::execute(psprintf("TRUNCATE outbox.%s", name));
}

void dispatcher::sweep_delayed() {
    if (!TimestampDifferenceExceeds(swept_at_, steady_now(), sweep_interval))
        return;
    swept_at_ = steady_now();
    for (int number = 0; number < delayed_partitions; ++number)
        if (Oid partition = delayed_partition(number); OidIsValid(partition) && is_large(partition))
            sweep(partition);
}

// True when more is due: the first look at Redis waits for all of it, batches go on in between.
bool dispatcher::deliver_due() {
    TimestampTz now = GetCurrentTimestamp();
    bool long_ago = TimestampDifferenceExceeds(looked_for_due_at_, steady_now(), settings::poll_interval);
    if (looked_for_due_ && shared::next_due(slot_) > now && !long_ago)
        return false;
    looked_for_due_at_ = steady_now();
    shared::expect_no_due(slot_);
    begin_transaction();
    if (!OidIsValid(delayed_partition(0))) {
        commit_transaction(); // the library is newer than the extension's version
        looked_for_due_ = true;
        return false;
    }
    if (!ConditionalLockDatabaseObject(ExtensionRelationId, extension_, deliver_lock, ExclusiveLock)) {
        commit_transaction();
        shared::expect_due(slot_, TimestampTzPlusMilliseconds(now, taken_delay));
        return false;
    }
    int moved = 0;
    bool more = move_due(now, moved);
    if (moved == 0)
        sweep_delayed();
    else
        wake_at_commit();
    // As for a tick, nobody waits for the disk: what is not on it is not sent, and what a crash takes back is due again.
    synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
    OUTBOX_CRASH_POINT(moved > 0 ? "due_moved" : "");
    commit_transaction();
    OUTBOX_CRASH_POINT(moved > 0 ? "due_committed" : "");
    synchronous_commit = SYNCHRONOUS_COMMIT_ON; // as in pin_settings(); an error ends the process
    looked_for_due_ = looked_for_due_ || !more;
    return more;
}

} // namespace outbox

// Delayed events that are due. A worker moves them, in a transaction of its own, from where they waited into the partition of
// events that is current; from there on they are like any others, emitted then. Whichever worker of the database comes first does
// it, so no sink that is down keeps them from the others.
//
// A row is there until it is moved or cancelled, and what is left is always looked for from the first due time on: one whose
// transaction committed long after its time is found like any other. The rows deleted here are no work for vacuum: a partition
// is truncated when all that was in it is over.

#include "bgworker/dispatcher.hpp"
#include "extension/clock.hpp"
#include "extension/delayed.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"
#include "extension/wake.hpp"

extern "C" {
#include "storage/bufmgr.h"
}

namespace outbox {

constexpr uint16 deliver_lock = 65533; // beside those of the sinks, see lock_ticks()
constexpr int move_at_once = 1000;     // events in a transaction
constexpr int fetch_at_once = 100;
constexpr int taken_delay = 20;        // ms, while another worker moves events
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
    values[to::anchor] = Int32GetDatum(storage::anchor());
    values[to::xid] = FullTransactionIdGetDatum(GetTopFullTransactionId());
    values[to::seq] = Int64GetDatum(storage::next_seq(storage::require()));
    storage::append(target, values, nulls);
}

// Moves some of what is due by then, the first ones first. Sets when to look again; true when that is at once.
bool dispatcher::move_due(TimestampTz now, int &moved) {
    bool skipped = false, more = false;
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
        for (uint64 i = 0; i < SPI_processed; ++i) {
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
            append_event(target, row, description);
            ++moved;
        }
        SPI_freetuptable(SPI_tuptable);
        more = moved >= move_at_once;
    }
    SPI_cursor_close(portal);
    if (target)
        table_close(target, NoLock);
    PopActiveSnapshot();
    CommandCounterIncrement();

    // What is committed by now is seen here; who commits later says so.
    PushActiveSnapshot(GetLatestSnapshot());
    if (SPI_execute("SELECT deliver_at FROM outbox.delayed ORDER BY deliver_at, seq LIMIT 1", true, 1) != SPI_OK_SELECT)
        elog(ERROR, "could not look for delayed events");
    TimestampTz next = PG_INT64_MAX;
    if (SPI_processed == 1) {
        bool null;
        next = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
    }
    PopActiveSnapshot();
    SPI_finish();

    if (next <= now && skipped && !more) {
        // It is being cancelled, by a transaction that may yet roll back.
        due_delay_ = std::clamp(due_delay_ * 2, taken_delay, std::max(settings::poll_interval, taken_delay));
        shared::expect_due(slot_, TimestampTzPlusMilliseconds(now, due_delay_));
        return false;
    }
    due_delay_ = 0;
    shared::expect_due(slot_, next);
    return next <= now;
}

// Is every row dead to everybody, also to a dump whose snapshot is older than the moves?
static bool is_over(Relation table) {
    SnapshotData snapshot;
    InitNonVacuumableSnapshot(snapshot, GlobalVisTestFor(table));
    TableScanDesc scan = table_beginscan(table, &snapshot, 0, nullptr);
    TupleTableSlot *slot = table_slot_create(table, nullptr);
    // from the end, where the youngest are
    bool found = table_scan_getnextslot(scan, BackwardScanDirection, slot);
    ExecDropSingleTupleTableSlot(slot);
    table_endscan(scan);
    return !found;
}

static bool is_swept_out(Oid partition) {
    Relation table = try_relation_open(partition, AccessShareLock);
    if (!table)
        return false;
    bool over = RelationGetNumberOfBlocks(table) >= swept_size && is_over(table);
    table_close(table, AccessShareLock);
    return over;
}

// Truncates partitions whose rows are all over. Lock first, then look again: what committed while we waited would be cut off.
void dispatcher::sweep_delayed() {
    for (int number = 0; number < delayed_partitions; ++number) {
        Oid partition = delayed_partition(number);
        if (OidIsValid(partition) && is_swept_out(partition) && ConditionalLockRelationOid(partition, AccessExclusiveLock) &&
            is_swept_out(partition))
            state::execute(psprintf("TRUNCATE outbox.delayed_%d", number));
    }
}

// True when it should be called again before anything else.
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
    commit_transaction();
    synchronous_commit = SYNCHRONOUS_COMMIT_ON; // as in pin_settings(); an error ends the process
    looked_for_due_ = looked_for_due_ || !more;
    return more;
}

} // namespace outbox

#include "extension/record.hpp"

#include "extension/storage.hpp"
#include "extension/wake.hpp"

namespace outbox {

// Opens the partition that is written to now. The lock may have waited for the worker to move on or for DROP EXTENSION, so
// what was looked up before it is checked after it.
static Relation open_current() {
    for (;;) {
        const storage::relations &before = storage::require();
        int64 generation = before.generation;
        // DROP EXTENSION comes by the sequence before the partitions; in the same order neither can wait for the other.
        LockRelationOid(before.event_seq, RowExclusiveLock);
        Oid table = before.event[before.current()];
        Relation target = storage::open_for_append(table);
        const storage::relations &after = storage::require();
        if (target && after.generation == generation && after.event[after.current()] == table)
            return target;
        if (target)
            table_close(target, NoLock);
        CHECK_FOR_INTERRUPTS();
    }
}

void record_event(Datum *values, bool *nulls) {
    using namespace storage;
    values[event_column::anchor] = Int32GetDatum(anchor());
    // The transaction id before the partition: whoever gets one after a tick of the new partition sees that the ring has moved on,
    // so what is in the old one is below that tick's xmax. And before the sequence number: within a batch, seq must not run ahead.
    values[event_column::xid] = FullTransactionIdGetDatum(GetTopFullTransactionId());
    Relation target = open_current();
    values[event_column::seq] = Int64GetDatum(next_seq(require()));
    append(target, values, nulls);
    table_close(target, NoLock);
    wake_at_commit();
}

extern "C" {

// An event that was emitted before, as a new row that only one sink takes. What was checked when it was emitted is not checked again.
PG_FUNCTION_INFO_V1(outbox_append_again);
PGDLLEXPORT Datum outbox_append_again(PG_FUNCTION_ARGS) {
    using namespace storage::event_column;
    PreventCommandIfReadOnly("outbox.append_again()");
    Datum values[count] = {};
    bool nulls[count] = {};
    const int places[] = {sink_id, event_id, event_type, topic, aggregate_type, aggregate_id, version, occurred_at, headers, payload};
    int argument = 0;
    for (int place : places) {
        nulls[place] = PG_ARGISNULL(argument);
        values[place] = PG_GETARG_DATUM(argument);
        ++argument;
    }
    for (int place : {sink_id, event_id, event_type, version, occurred_at, payload})
        if (nulls[place])
            ereport(ERROR, errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("an event that is appended again is not whole"));
    record_event(values, nulls);
    PG_RETURN_VOID();
}
}

} // namespace outbox

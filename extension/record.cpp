#include "extension/record.hpp"

#include "extension/storage.hpp"
#include "extension/wake.hpp"

namespace outbox {

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
    namespace to = storage::event_column;
    PreventCommandIfReadOnly("outbox.append_again()");
    Datum values[to::count] = {};
    bool nulls[to::count] = {};
    const int places[] = {to::sink_id, to::event_id, to::event_type, to::topic, to::aggregate_type, to::aggregate_id,
                          to::version, to::occurred_at, to::headers, to::payload};
    int argument = 0;
    for (int place : places) {
        nulls[place] = PG_ARGISNULL(argument);
        values[place] = PG_GETARG_DATUM(argument);
        ++argument;
    }
    for (int place : {to::sink_id, to::event_id, to::event_type, to::version, to::occurred_at, to::payload})
        if (nulls[place])
            ereport(ERROR, errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("an event that is appended again is not whole"));
    values[to::recorded_at] = TimestampTzGetDatum(GetCurrentTimestamp());
    record_event(values, nulls);
    PG_RETURN_VOID();
}
}

} // namespace outbox

#include "extension/delayed.hpp"

#include "common/crash_point.hpp"
#include "extension/storage.hpp"
#include "extension/wake.hpp"

namespace outbox {

constexpr int64 most_days_ahead = 3660;

Oid delayed_partition(int number) {
    char name[NAMEDATALEN];
    pg_snprintf(name, sizeof name, "delayed_%d", number);
    return get_relname_relid(name, storage::require().schema);
}

bool is_later(TimestampTz deliver_at) {
    if (TIMESTAMP_NOT_FINITE(deliver_at))
        ereport(ERROR, errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("deliver_at must be finite"),
                errhint("Without deliver_at an event is published as soon as the transaction has committed."));
    TimestampTz now = GetCurrentTimestamp();
    if (deliver_at > now + most_days_ahead * USECS_PER_DAY)
        ereport(ERROR, errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("deliver_at is too far ahead"),
                errdetail("It may be at most ten years from now."));
    return deliver_at > now;
}

// In a ring, so that a partition is used again only when all that was in it is over. Where a row is matters to nobody but to
// who wants its partition empty.
static int partition_for(TimestampTz deliver_at, TimestampTz now) {
    TimestampTz ahead = deliver_at - now;
    if (ahead < 7 * USECS_PER_HOUR)
        return static_cast<int>(deliver_at / USECS_PER_HOUR % 8);
    if (ahead < 7 * USECS_PER_DAY)
        return 8 + static_cast<int>(deliver_at / USECS_PER_DAY % 8);
    return 16;
}

void append_delayed(const Datum *event, const bool *nulls, TimestampTz deliver_at) {
    namespace from = storage::event_column;
    namespace to = delayed_column;
    TimestampTz now = GetCurrentTimestamp();
    int number = partition_for(deliver_at, now);
    // as for the partitions of events: DROP EXTENSION comes by the sequence first
    LockRelationOid(storage::require().event_seq, RowExclusiveLock);
    Oid table = delayed_partition(number);
    Relation target = OidIsValid(table) ? storage::open_for_append(table) : nullptr;
    if (!target)
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_TABLE),
                errmsg("table \"outbox.delayed_%d\" does not exist", number),
                errhint("Run ALTER EXTENSION outbox UPDATE."));

    Datum values[to::count];
    bool null_values[to::count] = {};
    const struct { int from, to; } same[] = {
        {from::occurred_at, to::occurred_at}, {from::event_id, to::event_id}, {from::anchor, to::anchor},
        {from::version, to::version}, {from::event_type, to::event_type}, {from::topic, to::topic},
        {from::aggregate_type, to::aggregate_type}, {from::aggregate_id, to::aggregate_id},
        {from::headers, to::headers}, {from::payload, to::payload}};
    for (const auto &column : same) {
        values[column.to] = event[column.from];
        null_values[column.to] = nulls[column.from];
    }
    values[to::deliver_at] = TimestampTzGetDatum(deliver_at);
    values[to::seq] = Int64GetDatum(storage::next_seq(storage::require()));
    values[to::emitted_at] = TimestampTzGetDatum(now);
    values[to::partition] = Int32GetDatum(number);
    storage::append(target, values, null_values);
    table_close(target, NoLock);
    OUTBOX_CRASH_POINT("inserted");
    deliver_at_commit(deliver_at);
}

} // namespace outbox

// The functions behind outbox.stat_consumer, and what stat_sink says of Redis.

#include "bgworker/consumers.hpp"
#include "bgworker/shared.hpp"
#include "extension/pg.hpp"
#include "extension/printable.hpp"

namespace outbox {

extern "C" {

PG_FUNCTION_INFO_V1(outbox_consumer_state);
PGDLLEXPORT Datum outbox_consumer_state(PG_FUNCTION_ARGS) {
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    int count;
    const consumers::group *groups = consumers::all(count);
    for (int i = 0; i < count; ++i) {
        const consumers::group &group = groups[i];
        std::string_view name(group.name);
        Datum values[] = {Int32GetDatum(group.sink_id),
                          CStringGetTextDatum(group.topic),
                          CStringGetTextDatum(printable(name, sizeof group.name)),
                          Int64GetDatum(group.lag),
                          Int64GetDatum(group.pending),
                          Int64GetDatum(group.oldest_pending_ms),
                          Int64GetDatum(group.consumers),
                          Int64GetDatum(group.dead_letters),
                          TimestampTzGetDatum(group.refreshed_at)};
        bool nulls[lengthof(values)] = {};
        nulls[3] = group.lag < 0;
        nulls[5] = group.oldest_pending_ms < 0;
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
    PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_redis_state);
PGDLLEXPORT Datum outbox_redis_state(PG_FUNCTION_ARGS) {
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    for (int i = 0; i < shared::slot_count(); ++i) {
        shared::slot slot;
        if (!shared::read(i, slot) || slot.database != MyDatabaseId || slot.pid == 0)
            continue;
        Datum values[] = {Int32GetDatum(slot.sink_id), Int64GetDatum(slot.stats.trimmed),
                          BoolGetDatum(slot.stats.evicts == shared::eviction::yes)};
        bool nulls[lengthof(values)] = {false, false, slot.stats.evicts == shared::eviction::unknown};
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
    PG_RETURN_VOID();
}
}

} // namespace outbox

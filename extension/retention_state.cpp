// What the workers say of the ring: what holds the oldest events back, as of their last look.

#include "bgworker/shared.hpp"
#include "extension/pg.hpp"

namespace outbox {

extern "C" {

PG_FUNCTION_INFO_V1(outbox_retention_state);
PGDLLEXPORT Datum outbox_retention_state(PG_FUNCTION_ARGS) {
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    for (int i = 0; i < shared::slot_count(); ++i) {
        shared::slot slot;
        if (!shared::read(i, slot) || slot.database != MyDatabaseId || slot.pid == 0 || slot.stats.looked_at == 0)
            continue;
        const shared::worker_stats &stats = slot.stats;
        bool held = *stats.held_back_by != '\0';
        Datum values[5] = {Int32GetDatum(slot.sink_id), TimestampTzGetDatum(stats.looked_at)};
        bool nulls[5] = {false, false, !held, !held, !held};
        if (held) {
            values[2] = Int64GetDatum(stats.held_back_generation);
            values[3] = CStringGetTextDatum(stats.held_back_by);
            values[4] = TimestampTzGetDatum(stats.held_back_since);
        }
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
    PG_RETURN_VOID();
}
}

} // namespace outbox

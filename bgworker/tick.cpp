#include "bgworker/tick.hpp"

#include "bgworker/index_scan.hpp"
#include "extension/storage.hpp"

namespace outbox {

namespace column = storage::tick_column;

bool stored_snapshot::sees(FullTransactionId xid) const {
    if (FullTransactionIdPrecedes(xid, xmin))
        return true;
    if (!FullTransactionIdPrecedes(xid, xmax))
        return false;
    return !std::binary_search(xip, xip + nxip, xid, [](FullTransactionId a, FullTransactionId b) {
        return FullTransactionIdPrecedes(a, b);
    });
}

bool stored_snapshot::precedes(const stored_snapshot &later) const {
    return !FullTransactionIdPrecedes(later.xmax, xmax) &&
           std::none_of(later.xip, later.xip + later.nxip, [this](FullTransactionId xid) { return sees(xid); });
}

static void read(TupleTableSlot *slot, tick &result) {
    slot_getallattrs(slot);
    result.ms = DatumGetInt64(slot->tts_values[column::ms]);
    result.anchor = DatumGetInt32(slot->tts_values[column::anchor]);
    result.seq = DatumGetInt64(slot->tts_values[column::seq]);
    result.snapshot = reinterpret_cast<const stored_snapshot *>(
        PG_DETOAST_DATUM_COPY(slot->tts_values[column::snapshot]));
}

// The nearest tick on one side of `ms`, over the partitions of the ring.
static bool find(int sink_id, StrategyNumber strategy, RegProcedure comparison, int64 ms, ScanDirection direction,
                 tick &result) {
    const storage::relations &relations = storage::require();
    bool found = false;
    int64 best = 0;
    PushActiveSnapshot(GetLatestSnapshot());
    for (int i = 0; i < storage::partitions; ++i) {
        storage::partition part = storage::open_ticks(relations, i);
        if (!part.table)
            continue;
        ScanKeyData keys[2];
        ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(sink_id));
        ScanKeyInit(&keys[1], 2, strategy, comparison, Int64GetDatum(ms));
        IndexScanDesc scan = begin_index_scan(part, keys, 2);
        TupleTableSlot *slot = table_slot_create(part.table, nullptr);
        if (index_getnext_slot(scan, direction, slot)) {
            bool null;
            int64 candidate = DatumGetInt64(slot_getattr(slot, column::ms + 1, &null));
            bool nearer = !found || (ScanDirectionIsForward(direction) ? candidate < best : candidate > best);
            if (nearer) {
                best = candidate;
                read(slot, result);
            }
            found = true;
        }
        ExecDropSingleTupleTableSlot(slot);
        index_endscan(scan);
        part.close();
    }
    PopActiveSnapshot();
    return found;
}

bool first_tick_after(int sink_id, int64 ms, tick &found) {
    return find(sink_id, BTGreaterStrategyNumber, F_INT8GT, ms, ForwardScanDirection, found);
}

bool last_tick_before(int sink_id, int64 ms, tick &found) {
    return find(sink_id, BTLessStrategyNumber, F_INT8LT, ms, BackwardScanDirection, found);
}

bool is_same(const tick &recorded, const carried_tick &carried) {
    const stored_snapshot &snapshot = *recorded.snapshot;
    return recorded.ms == carried.ms && recorded.anchor == carried.anchor && snapshot.nxip == static_cast<uint32>(carried.nxip) &&
           U64FromFullTransactionId(snapshot.xmin) == carried.xmin && U64FromFullTransactionId(snapshot.xmax) == carried.xmax &&
           std::equal(carried.xip, carried.xip + carried.nxip, snapshot.xip,
                      [](uint64 ours, FullTransactionId theirs) { return ours == U64FromFullTransactionId(theirs); });
}

tick predecessor(int sink_id, const tick &current) {
    tick found = current;
    // Another anchor's ticks lie between only after a restore.
    while (last_tick_before(sink_id, found.ms, found))
        if (found.anchor == current.anchor)
            return found;
    return {};
}

void lock_ticks(int sink_id) {
    // A part of the extension as the object: locked by nobody else, and released at commit.
    LockDatabaseObject(ExtensionRelationId, storage::require().extension, static_cast<uint16>(sink_id),
                       ExclusiveLock);
}

const stored_snapshot *active_snapshot() {
    LOCAL_FCINFO(call, 0);
    InitFunctionCallInfoData(*call, nullptr, 0, InvalidOid, nullptr, nullptr);
    return reinterpret_cast<const stored_snapshot *>(DatumGetPointer(pg_current_snapshot(call)));
}

void insert_tick(int sink_id, const tick &recorded, position cursor) {
    const storage::relations &relations = storage::require();
    Relation table = storage::open_for_append(relations.tick[relations.current()]);
    Datum values[column::count];
    bool nulls[column::count] = {};
    values[column::sink_id] = Int32GetDatum(sink_id);
    values[column::anchor] = Int32GetDatum(recorded.anchor);
    values[column::ms] = Int64GetDatum(recorded.ms);
    values[column::seq] = Int64GetDatum(recorded.seq);
    values[column::cursor_ms] = Int64GetDatum(cursor.ms);
    values[column::cursor_n] = Int64GetDatum(cursor.n);
    values[column::snapshot] = PointerGetDatum(recorded.snapshot);
    storage::append(table, values, nulls);
    table_close(table, NoLock);
}

} // namespace outbox

#include "extension/storage.hpp"

extern "C" {
#include "access/xlog.h"
#include "common/hashfn.h"
}

namespace outbox::storage {

static relations cached;
static bool cache_is_valid = false;

// The worker invalidates the ring's entry when it moves on; DROP EXTENSION does by dropping it.
static void forget(Datum, Oid relation) {
    if (!OidIsValid(relation) || relation == cached.ring)
        cache_is_valid = false;
}

void define() { CacheRegisterRelcacheCallback(forget, 0); }

static Oid numbered(const char *format, int i) {
    char name[NAMEDATALEN];
    pg_snprintf(name, sizeof name, format, i);
    return get_relname_relid(name, cached.schema);
}

static void read_ring() {
    cached.generation = 0;
    cached.started_at = 0;
    Relation ring = table_open(cached.ring, AccessShareLock);
    Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
    TableScanDesc scan = table_beginscan(ring, snapshot, 0, nullptr);
    TupleTableSlot *slot = table_slot_create(ring, nullptr);
    while (table_scan_getnextslot(scan, ForwardScanDirection, slot)) {
        bool null;
        int64 generation = DatumGetInt64(slot_getattr(slot, 1, &null));
        if (generation >= cached.generation) {
            cached.generation = generation;
            cached.started_at = DatumGetTimestampTz(slot_getattr(slot, 2, &null));
        }
    }
    ExecDropSingleTupleTableSlot(slot);
    table_endscan(scan);
    UnregisterSnapshot(snapshot);
    table_close(ring, AccessShareLock);
}

const relations *find() {
    if (cache_is_valid)
        return &cached;
    cached.schema = get_namespace_oid("outbox", true);
    cached.extension = get_extension_oid("outbox", true);
    if (!OidIsValid(cached.schema) || !OidIsValid(cached.extension))
        return nullptr;
    cached.ring = get_relname_relid("ring", cached.schema);
    cached.event_seq = get_relname_relid("event_seq", cached.schema);
    for (int i = 0; i < partitions; ++i) {
        cached.event[i] = numbered("event_%d", i);
        cached.event_index[i] = numbered("event_%d_xid_seq", i);
        cached.tick[i] = numbered("tick_%d", i);
        cached.tick_index[i] = numbered("tick_%d_sink_ms", i);
        if (!OidIsValid(cached.event[i]) || !OidIsValid(cached.event_index[i]) ||
            !OidIsValid(cached.tick[i]) || !OidIsValid(cached.tick_index[i]))
            return nullptr;
    }
    if (!OidIsValid(cached.ring) || !OidIsValid(cached.event_seq))
        return nullptr;
    // Set first: an invalidation that arrives while the ring is read must not be overwritten.
    cache_is_valid = true;
    read_ring();
    return &cached;
}

const relations &require() {
    const relations *found = find();
    if (!found)
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT),
                errmsg("extension \"outbox\" is not installed in this database"),
                errhint("Run CREATE EXTENSION outbox."));
    return *found;
}

int32 anchor() {
    static int32 value = 0;
    if (value == 0) {
        struct {
            uint64 system_identifier;
            uint64 database;
        } identity = {GetSystemIdentifier(), MyDatabaseId};
        value = static_cast<int32>(
            hash_bytes(reinterpret_cast<unsigned char *>(&identity), sizeof identity) & 0x7fffffff);
        if (value == 0)
            value = 1;
    }
    return value;
}

void partition::close() {
    // Locks are kept until the transaction ends.
    if (index)
        index_close(index, NoLock);
    if (table)
        table_close(table, NoLock);
    *this = {};
}

partition open(Oid table, Oid index, LOCKMODE mode) {
    partition opened;
    opened.table = try_relation_open(table, mode);
    if (opened.table)
        opened.index = index_open(index, mode);
    return opened;
}

void append(const partition &target, Datum *values, bool *nulls, const int *keys, int key_count) {
    TupleDesc description = RelationGetDescr(target.table);
    TupleTableSlot *slot = MakeSingleTupleTableSlot(description, &TTSOpsVirtual);
    for (int i = 0; i < description->natts; ++i) {
        slot->tts_values[i] = values[i];
        slot->tts_isnull[i] = nulls[i];
    }
    ExecStoreVirtualTuple(slot);
    table_tuple_insert(target.table, slot, GetCurrentCommandId(true), 0, nullptr);

    Datum key_values[INDEX_MAX_KEYS];
    bool key_nulls[INDEX_MAX_KEYS];
    for (int i = 0; i < key_count; ++i) {
        key_values[i] = values[keys[i]];
        key_nulls[i] = nulls[keys[i]];
    }
    index_insert(target.index, key_values, key_nulls, &slot->tts_tid, target.table,
                 target.index->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false,
                 BuildIndexInfo(target.index));
    ExecDropSingleTupleTableSlot(slot);
}

int64 next_seq(const relations &relations) { return nextval_internal(relations.event_seq, false); }

int64 last_seq(const relations &relations) {
    LOCAL_FCINFO(call, 1);
    InitFunctionCallInfoData(*call, nullptr, 1, InvalidOid, nullptr, nullptr);
    call->args[0] = {ObjectIdGetDatum(relations.event_seq), false};
    Datum last = pg_sequence_last_value(call);
    return call->isnull ? 0 : DatumGetInt64(last);
}

} // namespace outbox::storage

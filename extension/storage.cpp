#include "extension/storage.hpp"

extern "C" {
#include "access/xlog.h"
#include "common/hashfn.h"
}

namespace outbox::storage {

static relations cached;
static bool cache_is_valid = false;

// The worker invalidates the ring's entry when it moves on, an update at its end; DROP EXTENSION does by dropping it.
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
    cached.sink_definition = get_relname_relid("sink_definition", cached.schema);
    cached.sink_filter = get_relname_relid("sink_filter", cached.schema);
    version::read(cached.extension, cached.version);
    cached.fit = version::compare(cached.version);
    for (int i = 0; i < partitions; ++i) {
        cached.event[i] = numbered("event_%d", i);
        cached.tick[i] = numbered("tick_%d", i);
        if (!OidIsValid(cached.event[i]) || !OidIsValid(cached.tick[i]))
            return nullptr;
    }
    if (!OidIsValid(cached.ring) || !OidIsValid(cached.event_seq) || !OidIsValid(cached.sink_definition))
        return nullptr;
    // what an older version has not
    if (cached.fit == version::fit::same && !OidIsValid(cached.sink_filter))
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
    if (found->fit == version::fit::newer)
        version::refuse(found->fit, found->version);
    return *found;
}

void forget_everywhere() {
    Oid schema = get_namespace_oid("outbox", true);
    Oid ring = OidIsValid(schema) ? get_relname_relid("ring", schema) : InvalidOid;
    if (OidIsValid(ring))
        CacheInvalidateRelcacheByRelid(ring);
}

void forget_here() { cache_is_valid = false; }

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

// The index whose keys are the two columns, in that order.
static partition open(Oid table, int first, int second) {
    partition opened;
    opened.table = try_relation_open(table, AccessShareLock);
    if (!opened.table)
        return opened;
    List *indexes = RelationGetIndexList(opened.table);
    ListCell *cell;
    foreach (cell, indexes) {
        Relation index = index_open(lfirst_oid(cell), AccessShareLock);
        Form_pg_index form = index->rd_index;
        if (form->indisvalid && form->indnkeyatts == 2 && form->indkey.values[0] == first + 1 &&
            form->indkey.values[1] == second + 1 && RelationGetIndexPredicate(index) == NIL) {
            opened.index = index;
            break;
        }
        index_close(index, NoLock);
    }
    list_free(indexes);
    if (!opened.index)
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT),
                errmsg("index of outbox table \"%s\" is missing or invalid", RelationGetRelationName(opened.table)),
                errhint("Run REINDEX TABLE outbox.%s.", RelationGetRelationName(opened.table)));
    return opened;
}

partition open_events(const relations &relations, int number) {
    return open(relations.event[number], event_column::xid, event_column::seq);
}

partition open_ticks(const relations &relations, int number) {
    return open(relations.tick[number], tick_column::sink_id, tick_column::ms);
}

Relation open_for_append(Oid table) { return try_relation_open(table, RowExclusiveLock); }

// The lock may have waited for the worker to move on or for DROP EXTENSION, so what was looked up before it is checked after it.
Relation open_current() {
    for (;;) {
        const relations &before = require();
        int64 generation = before.generation;
        // DROP EXTENSION comes by the sequence before the partitions; in the same order neither can wait for the other.
        LockRelationOid(before.event_seq, RowExclusiveLock);
        Oid table = before.event[before.current()];
        Relation target = open_for_append(table);
        const relations &after = require();
        if (target && after.generation == generation && after.event[after.current()] == table)
            return target;
        if (target)
            table_close(target, NoLock);
        CHECK_FOR_INTERRUPTS();
    }
}

void append(Relation table, const Datum *values, const bool *nulls) {
    TupleDesc description = RelationGetDescr(table);
    TupleTableSlot *slot = MakeSingleTupleTableSlot(description, &TTSOpsVirtual);
    for (int i = 0; i < description->natts; ++i) {
        slot->tts_values[i] = values[i];
        slot->tts_isnull[i] = nulls[i];
    }
    ExecStoreVirtualTuple(slot);
    table_tuple_insert(table, slot, GetCurrentCommandId(true), 0, nullptr);

    // Mostly one. While REINDEX CONCURRENTLY builds another, rows must reach that one, too.
    List *indexes = RelationGetIndexList(table);
    ListCell *cell;
    foreach (cell, indexes) {
        Relation index = index_open(lfirst_oid(cell), RowExclusiveLock);
        IndexInfo *info = BuildIndexInfo(index);
        if (info->ii_Expressions != NIL || info->ii_Predicate != NIL)
            ereport(ERROR, errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                    errmsg("index \"%s\" on outbox table \"%s\" is not supported", RelationGetRelationName(index),
                           RelationGetRelationName(table)),
                    errdetail("It has an expression or a predicate."), errhint("Drop the index."));
        if (info->ii_ReadyForInserts) {
            Datum keys[INDEX_MAX_KEYS];
            bool null_keys[INDEX_MAX_KEYS];
            for (int i = 0; i < info->ii_NumIndexAttrs; ++i) {
                keys[i] = values[info->ii_IndexAttrNumbers[i] - 1];
                null_keys[i] = nulls[info->ii_IndexAttrNumbers[i] - 1];
            }
            index_insert(index, keys, null_keys, &slot->tts_tid, table,
                         index->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, info);
        }
        index_close(index, NoLock);
    }
    list_free(indexes);
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

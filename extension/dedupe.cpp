// A key is taken by a row with a unique index. The partition of the ring that is current takes it, but another one may have it, and
// the ring may turn at any moment; so it is done as for an exclusion constraint. The row is inserted for others to see but so that it
// can be withdrawn, and only then the other partitions are looked at, with the eyes of one who sees what is not committed yet: of
// two who take the same key at the same time, at least one sees the other, and withdraws.

#include "extension/dedupe.hpp"

#include "extension/storage.hpp"

namespace outbox {

// Columns of outbox.dedupe_<n>, from 0.
namespace dedupe_column {
enum { event_id, key, count };
}

enum class claimed { by_nobody, by_event, by_running };

struct claimant {
    claimed is = claimed::by_nobody;
    pg_uuid_t event_id;    // of the event
    TransactionId xid;     // that runs
    uint32 token;          // not 0: it may yet withdraw
};

Oid dedupe_partition(int number) {
    char name[NAMEDATALEN];
    pg_snprintf(name, sizeof name, "dedupe_%d", number);
    return get_relname_relid(name, storage::require().schema);
}

static Oid require_partition(int number) {
    Oid table = dedupe_partition(number);
    if (!OidIsValid(table))
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_TABLE), errmsg("table \"outbox.dedupe_%d\" does not exist", number),
                errhint("Run ALTER EXTENSION outbox UPDATE."));
    return table;
}

// By what it is and not by name: REINDEX CONCURRENTLY puts another in its place.
static Relation open_unique_index(Relation table) {
    Relation found = nullptr;
    List *indexes = RelationGetIndexList(table);
    ListCell *cell;
    foreach (cell, indexes) {
        Relation index = index_open(lfirst_oid(cell), AccessShareLock);
        Form_pg_index form = index->rd_index;
        if (form->indisvalid && form->indisunique && form->indnkeyatts == 1 && form->indkey.values[0] == dedupe_column::key + 1 &&
            RelationGetIndexPredicate(index) == NIL) {
            found = index;
            break;
        }
        index_close(index, AccessShareLock);
    }
    list_free(indexes);
    if (!found)
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT),
                errmsg("index of outbox table \"%s\" is missing or invalid", RelationGetRelationName(table)),
                errhint("Run REINDEX TABLE outbox.%s.", RelationGetRelationName(table)));
    return found;
}

// Where a transaction keeps to one snapshot, it must not go by what that does not see: as INSERT ... ON CONFLICT.
static void check_visible(Relation table, TupleTableSlot *slot) {
    if (!IsolationUsesXactSnapshot() || table_tuple_satisfies_snapshot(table, slot, GetTransactionSnapshot()))
        return;
    bool null;
    TransactionId xmin = DatumGetTransactionId(slot_getsysattr(slot, MinTransactionIdAttributeNumber, &null));
    if (!TransactionIdIsCurrentTransactionId(xmin))
        ereport(ERROR, errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                errmsg("could not serialize access due to concurrent update"),
                errdetail("The dedupe key was used by a transaction that committed after this one had begun."),
                errhint("The transaction might succeed if retried."));
}

static claimant look(int number, text *key) {
    claimant found;
    Relation table = table_open(require_partition(number), AccessShareLock);
    Relation index = open_unique_index(table);
    SnapshotData dirty;
    InitDirtySnapshot(dirty);
    ScanKeyData wanted;
    ScanKeyInit(&wanted, 1, BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(key)); // in collation "C"
#if PG_VERSION_NUM >= 180000
    IndexScanDesc scan = index_beginscan(table, index, &dirty, nullptr, 1, 0);
#else
    IndexScanDesc scan = index_beginscan(table, index, &dirty, 1, 0);
#endif
    index_rescan(scan, &wanted, 1, nullptr, 0);
    TupleTableSlot *slot = table_slot_create(table, nullptr);
    if (index_getnext_slot(scan, ForwardScanDirection, slot)) {
        if (TransactionIdIsValid(dirty.xmin) || TransactionIdIsValid(dirty.xmax)) {
            found.is = claimed::by_running;
            found.xid = TransactionIdIsValid(dirty.xmin) ? dirty.xmin : dirty.xmax;
            found.token = TransactionIdIsValid(dirty.xmin) ? dirty.speculativeToken : 0;
        } else {
            bool null;
            found.is = claimed::by_event;
            found.event_id = *DatumGetUUIDP(slot_getattr(slot, dedupe_column::event_id + 1, &null));
            check_visible(table, slot);
        }
    }
    ExecDropSingleTupleTableSlot(slot);
    index_endscan(scan);
    index_close(index, AccessShareLock);
    // Not kept until the transaction ends: retention would wait for it.
    table_close(table, AccessShareLock);
    return found;
}

static claimant look_everywhere(text *key, int but = -1) {
    claimant found;
    for (int number = 0; number < storage::partitions && found.is == claimed::by_nobody; ++number)
        if (number != but)
            found = look(number, key);
    return found;
}

// The partition beside that of the events. As with storage::open_current(), what was looked up before the lock is checked after it.
static Relation open_current(int &number) {
    for (;;) {
        int64 generation = storage::require().generation;
        number = storage::require().current();
        LockRelationOid(storage::require().event_seq, RowExclusiveLock);
        Relation target = storage::open_for_append(require_partition(number));
        if (target && storage::require().generation == generation)
            return target;
        if (target)
            table_close(target, NoLock);
        CHECK_FOR_INTERRUPTS();
    }
}

// Into every index that wants it. False where a unique one has the key, perhaps.
static bool insert_keys(Relation table, TupleTableSlot *slot) {
    bool unique = true;
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
            bool nulls[INDEX_MAX_KEYS] = {};
            for (int i = 0; i < info->ii_NumIndexAttrs; ++i)
                keys[i] = slot->tts_values[info->ii_IndexAttrNumbers[i] - 1];
            bool checked = index->rd_index->indisunique;
            bool alone = index_insert(index, keys, nulls, &slot->tts_tid, table, checked ? UNIQUE_CHECK_PARTIAL : UNIQUE_CHECK_NO,
                                      false, info);
            unique = unique && (alone || !checked);
        }
        index_close(index, NoLock);
    }
    list_free(indexes);
    return unique;
}

// False where it had to be withdrawn.
static bool insert(text *key, pg_uuid_t *event_id) {
    TransactionId xid = GetCurrentTransactionId(); // before the partition, as in emit()
    int number;
    Relation table = open_current(number);
    TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(table), &TTSOpsVirtual);
    slot->tts_values[dedupe_column::event_id] = UUIDPGetDatum(event_id);
    slot->tts_values[dedupe_column::key] = PointerGetDatum(key);
    slot->tts_isnull[dedupe_column::event_id] = slot->tts_isnull[dedupe_column::key] = false;
    ExecStoreVirtualTuple(slot);
    uint32 token = SpeculativeInsertionLockAcquire(xid);
    table_tuple_insert_speculative(table, slot, GetCurrentCommandId(true), 0, nullptr, token);
    bool ours = insert_keys(table, slot) && look_everywhere(key, number).is == claimed::by_nobody;
    table_tuple_complete_speculative(table, slot, token, ours);
    SpeculativeInsertionLockRelease(xid);
    ExecDropSingleTupleTableSlot(slot);
    table_close(table, NoLock);
    return ours;
}

bool claim(text *key, pg_uuid_t *event_id, pg_uuid_t &first) {
    for (;;) {
        CHECK_FOR_INTERRUPTS();
        claimant found = look_everywhere(key);
        if (found.is == claimed::by_event) {
            first = found.event_id;
            return false;
        }
        if (found.is == claimed::by_running) {
            if (found.token != 0)
                SpeculativeInsertionWait(found.xid, found.token);
            else
                XactLockTableWait(found.xid, nullptr, nullptr, XLTW_None);
        } else if (insert(key, event_id)) {
            return true;
        }
    }
}

} // namespace outbox

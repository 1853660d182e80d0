#include "bgworker/holder.hpp"

#include "extension/printable.hpp"

#if PG_VERSION_NUM < 170000
extern "C" {
#include "storage/sinvaladt.h"
}
#endif

namespace outbox {

// When the current transaction of a process began; 0 where it has none, or is gone. Straight from where pg_stat_activity has it, which
// would not tell this worker of other users.
static TimestampTz transaction_start(int pid) {
    int count = pgstat_fetch_stat_numbackends();
    for (int i = 1; i <= count; ++i) {
#if PG_VERSION_NUM >= 160000
        LocalPgBackendStatus *local = pgstat_get_local_beentry_by_index(i);
#else
        LocalPgBackendStatus *local = pgstat_fetch_stat_local_beentry(i);
#endif
        if (local && local->backendStatus.st_procpid == pid)
            return local->backendStatus.st_xact_start_timestamp;
    }
    return 0;
}

static const char *behind(TimestampTz since) { return since == 0 ? "" : psprintf(" since %s", timestamptz_to_str(since)); }

const char *lock_holder(Oid table, int partition, TimestampTz &since) {
    MemoryContext caller = CurrentMemoryContext;
    int pid = 0;
    char xid[24] = "", gid[201] = "";
    TimestampTz began = 0;
    bool found = false;
    SPI_connect();
    PushActiveSnapshot(GetTransactionSnapshot());
    Oid types[] = {OIDOID, OIDOID, INT4OID};
    Datum values[] = {ObjectIdGetDatum(table), ObjectIdGetDatum(MyDatabaseId), Int32GetDatum(MyProcPid)};
    // a prepared transaction has no process; what it has in common with its locks is the lock on its own number
    SPI_execute_with_args("SELECT l.pid, x.transactionid::text, p.gid, p.prepared FROM pg_catalog.pg_locks l "
                          "LEFT JOIN LATERAL (SELECT t.transactionid FROM pg_catalog.pg_locks t "
                          "WHERE t.virtualtransaction = l.virtualtransaction AND t.pid IS NOT DISTINCT FROM l.pid "
                          "AND t.locktype = 'transactionid' AND t.mode = 'ExclusiveLock' AND t.granted LIMIT 1) x ON true "
                          "LEFT JOIN pg_catalog.pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = x.transactionid "
                          "WHERE l.locktype = 'relation' AND l.relation = $1 AND l.database = $2 AND l.granted "
                          "AND l.pid IS DISTINCT FROM $3",
                          3, types, values, nullptr, true, 0);
    PopActiveSnapshot();
    // the one that has been there for longest
    for (uint64 i = 0; i < SPI_processed; ++i) {
        HeapTuple row = SPI_tuptable->vals[i];
        TupleDesc columns = SPI_tuptable->tupdesc;
        bool no_pid, no_time;
        int holder = DatumGetInt32(SPI_getbinval(row, columns, 1, &no_pid));
        Datum prepared = SPI_getbinval(row, columns, 4, &no_time);
        TimestampTz start = no_time ? no_pid ? 0 : transaction_start(holder) : DatumGetTimestampTz(prepared);
        if (found && (start == 0 || (began != 0 && start >= began)))
            continue;
        found = true;
        began = start;
        pid = no_pid ? 0 : holder;
        const char *number = SPI_getvalue(row, columns, 2), *name = SPI_getvalue(row, columns, 3);
        strlcpy(xid, number ? number : "", sizeof xid);
        strlcpy(gid, name ? name : "", sizeof gid);
    }
    SPI_finish();
    MemoryContextSwitchTo(caller);
    if (began != 0)
        since = began;
    if (*gid)
        return psprintf("prepared transaction \"%s\" (%s) uses partition %d%s", printable(gid, sizeof gid), xid, partition, behind(began));
    if (pid != 0 && *xid)
        return psprintf("transaction %s of process %d uses partition %d%s", xid, pid, partition, behind(began));
    if (pid != 0)
        return psprintf("a transaction of process %d uses partition %d%s", pid, partition, behind(began));
    return psprintf("a transaction uses partition %d (see pg_locks)", partition);
}

const char *snapshot_holder(const VirtualTransactionId &transaction, TimestampTz &since) {
    PGPROC *process = nullptr;
#if PG_VERSION_NUM >= 170000
    process = ProcNumberGetProc(transaction.procNumber);
#else
    process = BackendIdGetProc(transaction.backendId);
#endif
    int pid = process ? process->pid : 0; // read without a lock: it is only told
    TimestampTz began = pid != 0 ? transaction_start(pid) : 0;
    if (began != 0)
        since = began;
    if (pid == 0)
        return "a snapshot that is older than the confirmation is in use (see pg_stat_activity.backend_xmin)";
    return psprintf("process %d uses a snapshot that is older than the confirmation%s", pid, behind(began));
}

} // namespace outbox

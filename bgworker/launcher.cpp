// The launcher keeps one worker running for each sink of every database that has the extension. Which those are it cannot
// see by itself, being connected to none: it sends a scout, which looks into one database and claims a slot for each sink.

#include "bgworker/shared.hpp"
#include "extension/pg.hpp"
#include "extension/sinks.hpp"
#include "extension/storage.hpp"
#include "extension/wait_event.hpp"

#include "bgworker/worker.hpp"

namespace outbox {

constexpr int registry_retry = 5000;    // ms, after the server had no background worker to give
constexpr int look_interval = 10000;    // ms between two looks for new databases
constexpr int quick_restart = 200;      // ms; a worker that fails at once again waits longer
constexpr int slowest_restart = 30000;  // ms

// What the launcher remembers of a slot.
struct attempt {
    BackgroundWorkerHandle *handle;
    TimestampTz started_at;
    TimestampTz not_before;
    int delay; // ms
};

static TimestampTz in(int ms) { return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms); }

// Databases that can have a worker. Templates are left alone: a copy of one gets its own.
static List *open_databases(MemoryContext context) {
    List *databases = NIL;
    StartTransactionCommand();
    (void)GetTransactionSnapshot();
    Relation table = table_open(DatabaseRelationId, AccessShareLock);
    TableScanDesc scan = table_beginscan_catalog(table, 0, nullptr);
    HeapTuple tuple;
    while ((tuple = heap_getnext(scan, ForwardScanDirection)) != nullptr) {
        auto *database = reinterpret_cast<Form_pg_database>(GETSTRUCT(tuple));
        if (!database->datallowconn || database->datistemplate || database->datconnlimit < -1)
            continue;
        MemoryContext old = MemoryContextSwitchTo(context);
        databases = lappend_oid(databases, database->oid);
        MemoryContextSwitchTo(old);
    }
    table_endscan(scan);
    table_close(table, AccessShareLock);
    CommitTransactionCommand();
    return databases;
}

static bool start(const char *function, const char *what, const char *type, Oid database, Datum argument, const void *extra,
                  Size extra_size, BackgroundWorkerHandle **handle) {
    BackgroundWorker worker = {};
    worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = BGW_NEVER_RESTART;
    strlcpy(worker.bgw_library_name, "outbox", sizeof worker.bgw_library_name);
    strlcpy(worker.bgw_function_name, function, sizeof worker.bgw_function_name);
    pg_snprintf(worker.bgw_name, sizeof worker.bgw_name, "outbox %s for database %u", what, database);
    pg_snprintf(worker.bgw_type, sizeof worker.bgw_type, "outbox %s", type);
    worker.bgw_main_arg = argument;
    memcpy(worker.bgw_extra, extra, extra_size);
    worker.bgw_notify_pid = MyProcPid;

    static TimestampTz complained_at = 0;
    bool registered = RegisterDynamicBackgroundWorker(&worker, handle);
    shared::set_trouble(shared::outlook::no_process, !registered);
    if (!registered && TimestampDifferenceExceeds(complained_at, GetCurrentTimestamp(), 60000)) {
        complained_at = GetCurrentTimestamp();
        ereport(WARNING, errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
                errmsg("could not start the outbox %s for database %u: no background worker is free", what,
                       database),
                errhint("Increase max_worker_processes and restart the server."));
    }
    return registered;
}

static bool has_ended(BackgroundWorkerHandle *handle) {
    pid_t pid;
    return GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;
}

// The databases still to be scouted, one after the other.
struct scouting {
    MemoryContext context;
    List *waiting;
    BackgroundWorkerHandle *handle;
    TimestampTz not_before;
    List *known; // every database seen so far

    void take_requests() {
        Oid requested;
        while (shared::take_scout_request(requested)) {
            if (OidIsValid(requested))
                add(requested);
            else
                known = NIL; // all of them are new then
        }
    }

    void add(Oid database) {
        MemoryContext old = MemoryContextSwitchTo(context);
        waiting = list_append_unique_oid(waiting, database);
        MemoryContextSwitchTo(old);
    }

    void look_for_new_databases() {
        List *present = open_databases(context);
        ListCell *cell;
        foreach (cell, present)
            if (!list_member_oid(known, lfirst_oid(cell)))
                add(lfirst_oid(cell));
        list_free(known);
        known = present;
    }

    void proceed() {
        if (handle && has_ended(handle)) {
            pfree(handle);
            handle = nullptr;
        }
        if (handle || waiting == NIL || GetCurrentTimestamp() < not_before)
            return;
        Oid database = linitial_oid(waiting);
        if (!list_member_oid(known, database)) {
            waiting = list_delete_first(waiting); // dropped meanwhile, or a template
            return;
        }
        if (shared::is_blocked(database))
            return; // unblock() wakes us
        MemoryContext old = MemoryContextSwitchTo(context);
        if (start("outbox_scout_main", "scout", "scout", database, ObjectIdGetDatum(database), nullptr, 0, &handle))
            waiting = list_delete_first(waiting);
        else
            not_before = in(registry_retry);
        MemoryContextSwitchTo(old);
    }
};

static void keep_workers(attempt *attempts, const List *databases) {
    for (int i = 0; i < shared::slot_count(); ++i) {
        attempt &last = attempts[i];
        shared::slot slot;
        bool taken = shared::read(i, slot);
        if (last.handle && has_ended(last.handle)) {
            pfree(last.handle);
            last.handle = nullptr;
            // One that did its work is started again at once, one that cannot get going less and less often.
            bool ran = slot.served || TimestampDifferenceExceeds(last.started_at, GetCurrentTimestamp(), 10000);
            last.delay = ran || last.delay == 0 ? quick_restart
                                                : std::min(last.delay * 2, slowest_restart);
            last.not_before = in(last.delay);
        }
        if (!taken && !last.handle)
            last = {}; // whose it will be has nothing to do with whose it was
        if (!taken || slot.pid != 0 || last.handle)
            continue;
        if (!list_member_oid(databases, slot.database)) {
            shared::free_slots(slot.database);
            last = {};
            continue;
        }
        if (shared::is_blocked(slot.database, slot.sink_id)) {
            last = {}; // not its fault: start at once when the command is done
            continue;
        }
        if (GetCurrentTimestamp() < last.not_before)
            continue;
        worker_identity identity = {slot.database, slot.sink_id};
        char what[32] = "worker";
        if (slot.sink_id != default_sink)
            pg_snprintf(what, sizeof what, "worker of sink %d", slot.sink_id);
        if (start("outbox_dispatcher_main", what, "worker", slot.database, Int32GetDatum(i), &identity,
                  sizeof identity, &last.handle))
            last.started_at = GetCurrentTimestamp();
        else
            last.not_before = in(registry_retry);
    }
}

void register_launcher() {
    BackgroundWorker launcher = {};
    launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    launcher.bgw_start_time = BgWorkerStart_RecoveryFinished; // a standby has nothing to dispatch before promotion
    launcher.bgw_restart_time = 1;
    strlcpy(launcher.bgw_library_name, "outbox", sizeof launcher.bgw_library_name);
    strlcpy(launcher.bgw_function_name, "outbox_launcher_main", sizeof launcher.bgw_function_name);
    strlcpy(launcher.bgw_name, "outbox launcher", sizeof launcher.bgw_name);
    strlcpy(launcher.bgw_type, "outbox launcher", sizeof launcher.bgw_type);
    RegisterBackgroundWorker(&launcher);
}

extern "C" {

PGDLLEXPORT void outbox_launcher_main(Datum) {
    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    BackgroundWorkerInitializeConnection(nullptr, nullptr, 0);
    shared::attach_launcher();

    auto *attempts = static_cast<attempt *>(
        MemoryContextAllocZero(TopMemoryContext, sizeof(attempt) * shared::slot_count()));
    scouting scouts = {TopMemoryContext, NIL, nullptr, 0, NIL};
    TimestampTz looked_at = 0;

    for (;;) {
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            ProcessConfigFile(PGC_SIGHUP);
        }
        List *known_before = scouts.known;
        scouts.take_requests();
        bool asked = shared::take_look() || scouts.waiting != NIL || scouts.known != known_before;
        if (asked || TimestampDifferenceExceeds(looked_at, GetCurrentTimestamp(), look_interval)) {
            scouts.look_for_new_databases();
            looked_at = GetCurrentTimestamp();
        }
        MemoryContextSwitchTo(TopMemoryContext);
        scouts.proceed();
        keep_workers(attempts, scouts.known);

        // A worker or scout that starts or ends, a request and unblock() set the latch; the time is for retries.
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, scouts.handle ? 100 : 500,
                  wait_event(waiting_for::launcher));
        ResetLatch(MyLatch);
    }
}

PGDLLEXPORT void outbox_scout_main(Datum argument) {
    Oid database = DatumGetObjectId(argument);
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    shared::attach_scout(database);
    BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);

    MemoryContext context = CurrentMemoryContext;
    StartTransactionCommand();
    int count = 0;
    int one = default_sink;
    int *ids = &one;
    if (const storage::relations *found = storage::find()) {
        MemoryContextSwitchTo(context);
        if (found->fit == version::fit::newer)
            count = 1; // tables that this library does not know: one worker shall say so
        else
            ids = sinks::all(count);
    }
    CommitTransactionCommand();
    bool room = true;
    for (int i = 0; i < count; ++i)
        room = shared::claim(database, ids[i]) && room;
    if (count > 0)
        shared::set_trouble(shared::outlook::no_slot, !room);
    if (!room)
        ereport(WARNING, errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
                errmsg("could not start an outbox worker for database %u: all outbox.max_workers (%d) are in use",
                       database, shared::slot_count()),
                errhint("Increase outbox.max_workers and restart the server."));
    proc_exit(0);
}
}

} // namespace outbox

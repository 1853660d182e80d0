#include "extension/wake.hpp"

#include "bgworker/shared.hpp"
#include "common/crash_point.hpp"
#include "extension/pg.hpp"
#include "extension/storage.hpp"

namespace outbox {

static bool wake_wanted = false;
static TimestampTz first_due = PG_INT64_MAX; // of the delayed events of this transaction
static bool reload_wanted = false;
static bool look_wanted = false;
static bool workers_stopped = false;

// Runs after the transaction is visible, with interrupts held: nothing here can fail. A rollback to a savepoint leaves the
// flag set, which costs the worker one look for nothing. COMMIT PREPARED does not come by here: the utility hook wakes for
// it, and the poll does where the hook is not loaded.
static void at_end(XactEvent event, void *) {
    switch (event) {
    case XACT_EVENT_PRE_COMMIT:
        OUTBOX_CRASH_POINT(wake_wanted ? "before_commit" : "");
        return;
    case XACT_EVENT_PRE_PREPARE:
        // it could end whenever, and somebody else would do it
        if (workers_stopped)
            ereport(ERROR, errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                    errmsg("cannot PREPARE a transaction that has altered or dropped a sink"));
        return;
    case XACT_EVENT_COMMIT:
        OUTBOX_CRASH_POINT(wake_wanted ? "after_commit" : "");
        if (reload_wanted)
            shared::request_reload(MyDatabaseId);
        else if (wake_wanted)
            shared::wake_workers(MyDatabaseId);
        if (first_due != PG_INT64_MAX)
            shared::expect_due(MyDatabaseId, first_due);
        if (look_wanted)
            shared::request_look();
        break;
    case XACT_EVENT_ABORT:
    case XACT_EVENT_PREPARE:
        break;
    default:
        return;
    }
    if (workers_stopped)
        shared::restart_workers(MyDatabaseId);
    wake_wanted = reload_wanted = look_wanted = workers_stopped = false;
    first_due = PG_INT64_MAX;
}

void define_wake() { RegisterXactCallback(at_end, nullptr); }

void wake_at_commit() { wake_wanted = true; }

void deliver_at_commit(TimestampTz due) { first_due = std::min(first_due, due); }

void reload_at_commit() { reload_wanted = true; }

void look_at_commit() { look_wanted = true; }

void restart_at_end() { workers_stopped = true; }

extern "C" {
PG_FUNCTION_INFO_V1(outbox_wake);
PGDLLEXPORT Datum outbox_wake(PG_FUNCTION_ARGS) {
    if (!PG_ARGISNULL(0) && PG_GETARG_BOOL(0)) {
        reload_at_commit();
        storage::forget_everywhere(); // an update has made them anew, or a dump has filled the ring
    } else
        wake_at_commit();
    PG_RETURN_VOID();
}
}

} // namespace outbox

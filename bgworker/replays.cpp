// The sink's worker sees to it that outbox.replay() is done: by a worker of its own (replayer.cpp), one at a time for each sink.

#include "bgworker/dispatcher.hpp"
#include "bgworker/replay_task.hpp"
#include "bgworker/worker.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"

namespace outbox {

constexpr int first_restart = 100;    // ms
constexpr int slowest_restart = 5000; // ms; of one that meets trouble each time

void dispatcher::keep_replayer() {
    pid_t pid;
    if (replayer_ && GetBackgroundWorkerPid(replayer_, &pid) == BGWH_STOPPED) {
        pfree(replayer_);
        replayer_ = nullptr;
        replays_ = true; // it may have met trouble
        replayer_is_old_ = false;
    }
    // It takes up where it was, with the URL that counts then.
    if (replayer_ && (sink_.paused || !settings::enabled || replayer_is_old_)) {
        TerminateBackgroundWorker(replayer_);
        return;
    }
    TimestampTz now = steady_now();
    if (sink_.paused || !settings::enabled)
        return;
    if (replayer_ || !replays_ || now < replayer_at_)
        return;
    begin_transaction();
    // before ALTER EXTENSION UPDATE there is no such table
    Oid table = get_relname_relid("replay_task", storage::require().schema);
    replays_ = OidIsValid(table) && replay::any(sink_id_);
    commit_transaction();
    replayer_delay_ = replays_ ? std::clamp(replayer_delay_ * 2, first_restart, slowest_restart) : 0;
    replayer_at_ = TimestampTzPlusMilliseconds(now, replayer_delay_);
    if (!replays_ || shared::has_replayer(MyDatabaseId, sink_id_))
        return;

    BackgroundWorker worker = {};
    worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = BGW_NEVER_RESTART;
    strlcpy(worker.bgw_library_name, "outbox", sizeof worker.bgw_library_name);
    strlcpy(worker.bgw_function_name, "outbox_replayer_main", sizeof worker.bgw_function_name);
    pg_snprintf(worker.bgw_name, sizeof worker.bgw_name, "outbox replayer of sink %d for database %u", sink_id_, MyDatabaseId);
    strlcpy(worker.bgw_type, "outbox replayer", sizeof worker.bgw_type);
    worker_identity identity = {MyDatabaseId, sink_id_};
    memcpy(worker.bgw_extra, static_cast<const void *>(&identity), sizeof identity);
    worker.bgw_notify_pid = MyProcPid;
    MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
    bool registered = RegisterDynamicBackgroundWorker(&worker, &replayer_);
    MemoryContextSwitchTo(old);
    if (registered)
        return;
    replayer_ = nullptr;
    replayer_at_ = TimestampTzPlusMilliseconds(now, slowest_restart);
    ereport(WARNING, errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
            errmsg("a replay of sink \"%s\" has to wait: no background worker is free", sink_.name),
            errhint("Increase max_worker_processes and restart the server."));
}

} // namespace outbox

// outbox.compare(), on which outbox.verify() rests, and what stat_verify shows: the caller's side. It starts a worker, which
// looks at both the database and Redis, and takes what that finds from a queue. This backend opens no socket; a signal ends
// its wait at once, and the worker with it.

#include "bgworker/shared.hpp"
#include "bgworker/verify.hpp"
#include "extension/clock.hpp"
#include "extension/pg.hpp"
#include "extension/storage.hpp"

namespace outbox {

constexpr int finding_columns = 8;

// Nobody waits for the worker any more: because it is done, or because the caller was interrupted.
static void end_worker(dsm_segment *, Datum handle) {
    auto *worker = reinterpret_cast<BackgroundWorkerHandle *>(DatumGetPointer(handle));
    TerminateBackgroundWorker(worker);
    pfree(worker);
}

static BackgroundWorkerHandle *start_worker(dsm_segment *segment) {
    BackgroundWorker worker = {};
    worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = BGW_NEVER_RESTART;
    strlcpy(worker.bgw_library_name, "outbox", sizeof worker.bgw_library_name);
    strlcpy(worker.bgw_function_name, "outbox_verifier_main", sizeof worker.bgw_function_name);
    pg_snprintf(worker.bgw_name, sizeof worker.bgw_name, "outbox verifier for database %u", MyDatabaseId);
    strlcpy(worker.bgw_type, "outbox verifier", sizeof worker.bgw_type);
    worker.bgw_main_arg = UInt32GetDatum(dsm_segment_handle(segment));
    worker.bgw_notify_pid = MyProcPid;

    // end_worker() needs it when the transaction is being aborted
    MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
    BackgroundWorkerHandle *handle;
    bool registered = RegisterDynamicBackgroundWorker(&worker, &handle);
    MemoryContextSwitchTo(old);
    if (!registered)
        ereport(ERROR, errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
                errmsg("could not start a worker to verify with: no background worker is free"),
                errhint("Increase max_worker_processes and restart the server."));
    on_dsm_detach(segment, end_worker, PointerGetDatum(handle));
    return handle;
}

// A time as the ms of a position; null or infinity: no limit.
static int64 limit_of(FunctionCallInfo fcinfo, int argument, bool upper) {
    TimestampTz time = PG_ARGISNULL(argument) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(argument);
    if (TIMESTAMP_NOT_FINITE(time)) {
        bool everything = PG_ARGISNULL(argument) || (TIMESTAMP_IS_NOEND(time) == upper);
        return everything == upper ? PG_INT64_MAX : 0;
    }
    int64 us = unix_us(time);
    return std::max<int64>(0, upper ? us / 1000 : (us + 999) / 1000);
}

static text *take_text(StringInfo message) {
    auto length = static_cast<int>(pq_getmsgint(message, 4));
    return length < 0 ? nullptr : cstring_to_text_with_len(pq_getmsgbytes(message, length), length);
}

static void put_finding(ReturnSetInfo *result, StringInfo message) {
    Datum values[finding_columns];
    bool nulls[finding_columns] = {};
    pg_uuid_t id;
    int column = 0;
    auto text = [&] {
        auto *value = take_text(message);
        nulls[column] = !value;
        values[column++] = PointerGetDatum(value);
    };
    text(); // finding
    text(); // topic
    text(); // position
    nulls[column] = pq_getmsgbyte(message) == 0;
    if (!nulls[column])
        memcpy(id.data, pq_getmsgbytes(message, UUID_LEN), UUID_LEN);
    values[column++] = UUIDPGetDatum(&id);
    text(); // the topic where its event belongs
    text(); // and the position
    values[column++] = Int64GetDatum(pq_getmsgint64(message));
    text(); // detail
    tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

// What the answer is worth: no row means nothing for what was not looked at.
static void say_sum(StringInfo message) {
    char *sink = text_to_cstring(take_text(message));
    auto number = [message] { return static_cast<long long>(pq_getmsgint64(message)); };
    long long ms = number(), n = number(), ticks = number(), unchecked = number(), events = number(), open = number(),
              entries = number(), streams = number();
    ereport(NOTICE,
            errmsg("sink \"%s\" had confirmed everything up to %lld-%lld: %lld events of %lld ticks were compared with %lld "
                   "entries of %lld streams",
                   sink, ms, std::max(n, 0LL), events, ticks, entries, streams),
            unchecked > 0 || open > 0
                ? errdetail("%lld events were left out as they are not confirmed yet or their stream is held, and %lld ticks as "
                            "their events were dropped by retention.",
                            open, unchecked)
                : 0);
}

// True when the worker is done: it exits by itself, and nobody shall see it as running meanwhile.
static bool take(ReturnSetInfo *result, StringInfo message, const char *sink) {
    switch (pq_getmsgbyte(message)) {
    case verify::finding_message:
        put_finding(result, message);
        return false;
    case verify::sum_message:
        shared::end_verification();
        say_sum(message);
        return true;
    case 'E': {
        shared::end_verification();
        ErrorData error;
        pq_parse_errornotice(message, &error);
        if (error.sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
            ereport(ERROR, errcode(ERRCODE_OPERATOR_INTERVENTION),
                    errmsg("the worker that verified sink \"%s\" was terminated", sink),
                    errhint("Run outbox.verify() again."));
        // its end is not ours
        error.elevel = std::min(error.elevel, ERROR);
        ThrowErrorData(&error);
        return true;
    }
    default: // a notice
        return false;
    }
}

extern "C" {

PG_FUNCTION_INFO_V1(outbox_compare);
PGDLLEXPORT Datum outbox_compare(PG_FUNCTION_ARGS) {
    version::require_same();
    if (PG_ARGISNULL(0))
        ereport(ERROR, errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("sink must not be null"));
    verify::request request = {};
    request.database = MyDatabaseId;
    request.caller = MyProcPid;
    text *sink = PG_GETARG_TEXT_PP(0);
    if (VARSIZE_ANY_EXHDR(sink) >= sizeof request.sink)
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("sink \"%s\" does not exist", text_to_cstring(sink)),
                errhint("The sinks are listed in outbox.sink."));
    memcpy(request.sink, VARDATA_ANY(sink), VARSIZE_ANY_EXHDR(sink));
    request.since_ms = limit_of(fcinfo, 1, false);
    request.until_ms = limit_of(fcinfo, 2, true);
    if (request.since_ms > request.until_ms)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("since must not be later than until"));
    if (shared::worker_outlook(MyDatabaseId) == shared::outlook::not_loaded)
        ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("nothing can be verified: outbox is not preloaded"),
                errhint("Add outbox to shared_preload_libraries and restart the server."));
    if (RecoveryInProgress())
        ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("nothing can be verified during recovery"),
                errhint("Run outbox.verify() on the primary."));
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);

    dsm_segment *segment = dsm_create(verify::queue_at + verify::queue_size, 0);
    auto *base = static_cast<char *>(dsm_segment_address(segment));
    memcpy(base, static_cast<const void *>(&request), sizeof request);
    shm_mq *queue = shm_mq_create(base + verify::queue_at, verify::queue_size);
    shm_mq_set_receiver(queue, MyProc);
    shm_mq_handle *handle = shm_mq_attach(queue, segment, nullptr);
    // with it, a worker that cannot start or dies is noticed
    shm_mq_set_handle(handle, start_worker(segment));

    MemoryContext caller = CurrentMemoryContext;
    MemoryContext one = AllocSetContextCreate(caller, "outbox finding", ALLOCSET_DEFAULT_SIZES);
    for (bool done = false; !done;) {
        void *data;
        Size size;
        if (shm_mq_receive(handle, &size, &data, false) != SHM_MQ_SUCCESS)
            ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                    errmsg("the worker that verified sink \"%s\" ended before it was done", request.sink),
                    errhint("See the server's log, and try again."));
        MemoryContextSwitchTo(one);
        StringInfoData message;
        initStringInfo(&message);
        appendBinaryStringInfo(&message, static_cast<const char *>(data), static_cast<int>(size));
        done = take(result, &message, request.sink);
        MemoryContextSwitchTo(caller);
        MemoryContextReset(one);
    }
    dsm_detach(segment);
    PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_verify_state);
PGDLLEXPORT Datum outbox_verify_state(PG_FUNCTION_ARGS) {
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    for (int i = 0; i < shared::verification_count(); ++i) {
        shared::verification running;
        if (!shared::read(i, running) || running.database != MyDatabaseId)
            continue;
        Datum values[10] = {Int32GetDatum(running.sink_id),        Int32GetDatum(running.caller),
                            Int32GetDatum(running.pid),            TimestampTzGetDatum(running.started_at),
                            Int64GetDatum(running.ticks_total),    Int64GetDatum(running.ticks),
                            Int64GetDatum(running.upto_ms),        Int64GetDatum(running.events),
                            Int64GetDatum(running.entries),        Int64GetDatum(running.findings)};
        bool nulls[10] = {};
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
    PG_RETURN_VOID();
}
}

} // namespace outbox

// The functions behind the views, and flush(): what the callers see of the worker.

#include "bgworker/batch.hpp"
#include "bgworker/shared.hpp"
#include "bgworker/tick.hpp"
#include "extension/pg.hpp"
#include "extension/settings.hpp"
#include "extension/sinks.hpp"
#include "bgworker/worker.hpp"
#include "extension/printable.hpp"
#include "extension/storage.hpp"
#include "extension/wait_event.hpp"

namespace outbox {

// -- locate

// The batch that was asked for last: rows mostly come in the order they were emitted.
struct located_batch {
    tick current;
    stored_snapshot *snapshot;
    stored_snapshot *previous;
    int64 *seqs; // of its events, in order
    int64 count;
    bool known;
};

static stored_snapshot *keep(MemoryContext context, const stored_snapshot *snapshot) {
    if (!snapshot)
        return nullptr;
    void *copy = MemoryContextAlloc(context, VARSIZE(snapshot));
    memcpy(copy, static_cast<const void *>(snapshot), VARSIZE(snapshot));
    return static_cast<stored_snapshot *>(copy);
}

static bool is_in(const located_batch &batch, int32 anchor, FullTransactionId xid) {
    return batch.known && batch.current.anchor == anchor && batch.snapshot->sees(xid) &&
           !(batch.previous && batch.previous->sees(xid));
}

// Snapshots only grow, so the first tick of the anchor that sees the transaction is found by halving the time.
static bool find_tick(int sink_id, int32 anchor, FullTransactionId xid, tick &found) {
    tick probe;
    if (!last_tick_before(sink_id, no_tick, probe))
        return false;
    int64 high = probe.ms;
    int64 low = first_tick_after(sink_id, 0, probe) ? probe.ms : 1;
    bool any = false;
    while (low <= high) {
        CHECK_FOR_INTERRUPTS();
        int64 middle = low + (high - low) / 2;
        // The first tick of the anchor at or above the middle.
        bool exists = first_tick_after(sink_id, middle - 1, probe);
        while (exists && probe.anchor != anchor)
            exists = first_tick_after(sink_id, probe.ms, probe);
        if (exists && !probe.snapshot->sees(xid)) {
            low = probe.ms + 1;
            continue;
        }
        if (exists) {
            found = probe;
            any = true;
        }
        high = middle - 1;
    }
    return any;
}

// Mostly it is the tick after the one that was found last.
static bool is_next(const located_batch &batch, int sink_id, int32 anchor, FullTransactionId xid, tick &found) {
    return batch.known && batch.current.anchor == anchor && !batch.snapshot->sees(xid) &&
           first_tick_after(sink_id, batch.current.ms, found) && found.anchor == anchor && found.snapshot->sees(xid);
}

static void load(located_batch &batch, int sink_id, const tick &wanted, MemoryContext context) {
    MemoryContext old = MemoryContextSwitchTo(context);
    tick before = predecessor(sink_id, wanted);
    batch.current = wanted;
    batch.snapshot = keep(context, wanted.snapshot);
    batch.previous = keep(context, before.snapshot);
    batch.count = 0;
    int64 capacity = 1024;
    batch.seqs = static_cast<int64 *>(palloc(sizeof(int64) * static_cast<Size>(capacity)));
    batch_reader reader;
    reader.init(context);
    reader.open(wanted, before.snapshot);
    reader.begin();
    event_row event;
    while (reader.next(event)) {
        if (batch.count == capacity) {
            capacity *= 2;
            batch.seqs = static_cast<int64 *>(repalloc_huge(batch.seqs, sizeof(int64) * static_cast<Size>(capacity)));
        }
        batch.seqs[batch.count++] = event.seq;
    }
    reader.end();
    MemoryContextSwitchTo(old);
    batch.known = true;
}

extern "C" {

PG_FUNCTION_INFO_V1(outbox_locate);
PGDLLEXPORT Datum outbox_locate(PG_FUNCTION_ARGS) {
    struct cache {
        located_batch batch;
        MemoryContext context;
    };
    TupleDesc description;
    if (get_call_result_type(fcinfo, nullptr, &description) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "return type must be a row type");
    description = BlessTupleDesc(description);
    Datum values[2] = {};
    bool nulls[2] = {true, true};
    // version 1.0 had no start_ms
    bool has_start = PG_NARGS() > 4;
    if (!PG_ARGISNULL(0) && !PG_ARGISNULL(1) && !PG_ARGISNULL(2) && !PG_ARGISNULL(3) && !(has_start && PG_ARGISNULL(4))) {
        int sink_id = PG_GETARG_INT32(0);
        int32 anchor = PG_GETARG_INT32(1);
        FullTransactionId xid = DatumGetFullTransactionId(PG_GETARG_DATUM(2));
        int64 seq = PG_GETARG_INT64(3);
        storage::require();
        auto *known = static_cast<cache *>(fcinfo->flinfo->fn_extra);
        if (!known) {
            known = static_cast<cache *>(MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(cache)));
            known->context =
                AllocSetContextCreate(fcinfo->flinfo->fn_mcxt, "outbox located batch", ALLOCSET_DEFAULT_SIZES);
            fcinfo->flinfo->fn_extra = known;
        }
        tick found;
        bool in_batch = is_in(known->batch, anchor, xid);
        if (!in_batch && (is_next(known->batch, sink_id, anchor, xid, found) || find_tick(sink_id, anchor, xid, found))) {
            known->batch = {};
            MemoryContextReset(known->context);
            if (has_start && found.ms < PG_GETARG_INT64(4)) {
                // in no batch of the sink; what all these have in common is not worth reading
                values[0] = Int64GetDatum(found.ms);
                nulls[0] = false;
                PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(description, values, nulls)));
            }
            load(known->batch, sink_id, found, known->context);
            in_batch = is_in(known->batch, anchor, xid);
        }
        if (in_batch) {
            const located_batch &batch = known->batch;
            const int64 *place = std::lower_bound(batch.seqs, batch.seqs + batch.count, seq);
            if (place != batch.seqs + batch.count && *place == seq) {
                values[0] = Int64GetDatum(batch.current.ms);
                values[1] = Int64GetDatum(place - batch.seqs);
                nulls[0] = nulls[1] = false;
            }
        }
    }
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(description, values, nulls)));
}
}

// -- lag

constexpr int64 counted_at_most = 10000;

struct lag_count {
    int64 read = 0;
    int64 events = 0; // of these, as the sink takes them
    int64 first_seq = 0;
    TimestampTz oldest = 0;
};

// Adds the events of a batch behind index n. False when the count is full.
static bool count(batch_reader &reader, int sink_id, const sinks::filters &filters, const tick &current, const stored_snapshot *previous,
                  int64 n, lag_count &result) {
    const sinks::filter *filter = filters.at(current.ms);
    reader.open(current, previous);
    reader.begin();
    event_row event;
    bool room = true;
    while ((room = result.read < counted_at_most) && reader.next(event)) {
        if (event.n <= n)
            continue;
        ++result.read;
        if (result.first_seq == 0)
            result.first_seq = event.seq;
        if (!event.is_for(sink_id, filter))
            continue;
        ++result.events;
        if (result.oldest == 0 || event.recorded_at < result.oldest)
            result.oldest = event.recorded_at;
    }
    reader.end();
    return room;
}

static lag_count count_lag(int sink_id, int64 ms, int64 n) {
    lag_count result;
    sinks::filters filters;
    filters.load(sink_id, CurrentMemoryContext);
    position start = sinks::start_of(sink_id);
    if (ms < start.ms) {
        ms = start.ms;
        n = start.n - 1;
    }
    batch_reader reader;
    reader.init(CurrentMemoryContext);
    tick current;
    bool room = true;
    // First what is in ticks, batch by batch.
    for (int64 behind = ms - 1; room && first_tick_after(sink_id, behind, current); behind = current.ms)
        room = count(reader, sink_id, filters, current, predecessor(sink_id, current).snapshot, current.ms == ms ? n : -1, result);
    if (room) {
        // Then what has committed since the last of them.
        tick now;
        now.ms = no_tick;
        now.anchor = storage::anchor();
        PushActiveSnapshot(GetLatestSnapshot());
        now.snapshot = active_snapshot();
        PopActiveSnapshot();
        room = count(reader, sink_id, filters, now, predecessor(sink_id, now).snapshot, -1, result);
    }
    if (!room)
        // of the rest as many as of those that were read
        result.events = std::max(result.events, (storage::last_seq(storage::require()) - result.first_seq + 1) *
                                                    result.events / std::max<int64>(result.read, 1));
    return result;
}

extern "C" {

PG_FUNCTION_INFO_V1(outbox_lag);
PGDLLEXPORT Datum outbox_lag(PG_FUNCTION_ARGS) {
    TupleDesc description;
    if (get_call_result_type(fcinfo, nullptr, &description) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "return type must be a row type");
    storage::require();
    Datum values[2] = {Int64GetDatum(0), 0};
    bool nulls[2] = {false, true};
    if (!PG_ARGISNULL(0) && !PG_ARGISNULL(1) && !PG_ARGISNULL(2)) {
        lag_count lag = count_lag(PG_GETARG_INT32(0), PG_GETARG_INT64(1), PG_GETARG_INT64(2));
        values[0] = Int64GetDatum(lag.events);
        values[1] = TimestampTzGetDatum(lag.oldest);
        nulls[1] = lag.events == 0;
    }
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(description), values, nulls)));
}
}

// -- worker_state

extern "C" {

PG_FUNCTION_INFO_V1(outbox_worker_state);
PGDLLEXPORT Datum outbox_worker_state(PG_FUNCTION_ARGS) {
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    for (int i = 0; i < shared::slot_count(); ++i) {
        shared::slot slot;
        if (!shared::read(i, slot) || slot.database != MyDatabaseId || slot.pid == 0)
            continue;
        const shared::worker_stats &stats = slot.stats;
        Datum values[18];
        bool nulls[18] = {};
        int column = 0;
        auto number = [&](int64 value) { values[column++] = Int64GetDatum(value); };
        auto time = [&](TimestampTz value) {
            nulls[column] = value == 0;
            values[column++] = TimestampTzGetDatum(value);
        };
        auto text = [&](const char *value) {
            nulls[column] = *value == '\0';
            values[column++] = CStringGetTextDatum(value);
        };
        values[column++] = Int32GetDatum(slot.sink_id);
        values[column++] = Int32GetDatum(slot.pid);
        text(shared::name_of(stats.state));
        time(stats.since);
        number(stats.cursor_ms);
        number(stats.cursor_n);
        number(stats.tick_ms);
        number(stats.passed_ms);
        time(stats.confirmed_at);
        number(stats.published);
        number(stats.batches);
        number(stats.errors);
        number(stats.duplicates_rejected);
        number(stats.healed);
        values[column++] = Float8GetDatum(stats.throughput);
        text(stats.last_error);
        time(stats.last_error_at);
        text(stats.held_back_by);
        tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
    }
    PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_anchor);
PGDLLEXPORT Datum outbox_anchor(PG_FUNCTION_ARGS) {
    (void)fcinfo;
    PG_RETURN_INT32(storage::anchor());
}

PG_FUNCTION_INFO_V1(outbox_redis_url);
PGDLLEXPORT Datum outbox_redis_url(PG_FUNCTION_ARGS) {
    (void)fcinfo;
    PG_RETURN_TEXT_P(cstring_to_text(settings::shown_redis_url()));
}

// -- flush

PG_FUNCTION_INFO_V1(outbox_flush);
PGDLLEXPORT Datum outbox_flush(PG_FUNCTION_ARGS) {
    const storage::relations &relations = storage::require();
    if (relations.fit != version::fit::same)
        ereport(WARNING, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("nothing is published: %s", version::message(relations.version)),
                errhint("%s", version::hint(relations.fit)));
    int count = 1;
    int one = default_sink;
    int *ids = &one;
    if (PG_NARGS() < 2)
        ; // version 1.0 had one sink
    else if (PG_ARGISNULL(1))
        ids = sinks::all(count);
    else if ((one = sinks::find(text_to_cstring(PG_GETARG_TEXT_PP(1)))) == 0)
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT),
                errmsg("sink \"%s\" does not exist", printable(view_of(PG_GETARG_TEXT_PP(1)))),
                errhint("The sinks are listed in outbox.sink."));
    int64 timeout_us = PG_INT64_MAX; // null: as long as it takes
    if (!PG_ARGISNULL(0)) {
        Interval *timeout = PG_GETARG_INTERVAL_P(0);
        double days = timeout->day + timeout->month * 30.0;
        double wanted = static_cast<double>(timeout->time) + days * USECS_PER_DAY;
        // Beyond a century it is as good as for ever.
        timeout_us = wanted < 36525.0 * USECS_PER_DAY ? static_cast<int64>(wanted) : PG_INT64_MAX;
        if (timeout_us < 0)
            ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("timeout must not be negative"));
    }
    if (shared::worker_outlook(MyDatabaseId) == shared::outlook::not_loaded)
        ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("nothing is published: outbox is not preloaded"),
                errhint("Add outbox to shared_preload_libraries and restart the server."));

    TimestampTz began = GetCurrentTimestamp();
    int waiting_for = -1;
    uint64 ticket = 0;
    int at = 0; // the sink that is waited for, one after the other
    for (;;) {
        CHECK_FOR_INTERRUPTS();
        // The worker may not have started yet, or another may take its place with the slot's counters as they were.
        for (int i = 0; waiting_for < 0 && i < shared::slot_count(); ++i) {
            shared::slot slot;
            if (shared::read(i, slot) && slot.database == MyDatabaseId && slot.sink_id == ids[at]) {
                waiting_for = i;
                ticket = pg_atomic_add_fetch_u64(&shared::at(i)->flush_requested, 1);
            }
        }
        if (waiting_for >= 0) {
            shared::slot slot;
            if (!shared::read(waiting_for, slot) || slot.database != MyDatabaseId || slot.sink_id != ids[at]) {
                waiting_for = -1; // the sink was dropped; the slot may be another's
            } else if (pg_atomic_read_u64(&shared::at(waiting_for)->flush_done) >= ticket) {
                if (++at == count)
                    PG_RETURN_BOOL(true);
                waiting_for = -1;
                continue;
            }
            shared::wake_workers(MyDatabaseId);
        }
        if (GetCurrentTimestamp() - began >= timeout_us)
            PG_RETURN_BOOL(false);
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 2, wait_event(waiting_for::flush));
        ResetLatch(MyLatch);
    }
}
}

} // namespace outbox

// The worker of outbox.replay(). It reads the events again from the ticks, in the order of the positions that they were published
// at, and appends each to its target:
//
//   other streams   to Redis, with that position as its entry ID. Each chunk sets a marker in the same MULTI, which says how far the
//                   target is; after a crash, a lost connection or lost data it goes on from there.
//   the sink's own  as new rows of the ring that only this sink takes, with the progress in the same transaction. The sink's
//                   worker appends them like any others, so that nobody but it writes to its streams.
//
// It exits when there is none left, or it meets trouble. The sink's worker starts another as long as there is something to do
// (replays.cpp).

#include "bgworker/replayer.hpp"

#include "bgworker/shared.hpp"
#include "bgworker/worker.hpp"
#include "extension/clock.hpp"
#include "extension/record.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

constexpr int max_attempts = 5;    // of a worker that ends without a word
constexpr int save_interval = 200; // ms; a cancelled replay ends as soon

// -- what is to be appended

bool replayer::load() {
    expectation_.begin_transaction();
    bool found = state::load_sink(sink_id_, sink_) && replay::take(sink_id_, TopMemoryContext, task_);
    expectation_.commit_transaction();
    if (!found)
        return false;
    last_ = task_.at = task_.at.ms > 0 ? task_.at : position{};
    auto template_text = std::string_view(task_.into);
    auto at = std::min(template_text.find("%t"), template_text.size());
    naming_ = {template_text.substr(0, at), template_text.substr(std::min(at + 2, template_text.size()))};
    pg_snprintf(marker_key_, sizeof marker_key_, "outbox:replay:%s", task_.uuid);
    return true;
}

// Calls visit where the entry is to be replayed and is not yet. One whose transform fails is not left out: without it the replay
// would be less than what it says.
template <typename Visitor> void replayer::meet(std::string_view topic, const expected_entry &entry, Visitor visit) {
    if ((!entry.optional || entry.failed) && entry.at > last_ && entry.at >= task_.since && entry.at <= task_.until && task_.takes(topic))
        visit();
}

// How many there are, once. What is held or given up meanwhile may make it a few less.
replayer::outcome replayer::count() {
    expectation counted;
    counted.scratch = scratch_;
    counted.begin_transaction();
    counted.load(sink_id_, sink_.before_start(), task_.until, 0, task_.since.ms, task_.until.ms);
    counted.commit_transaction();
    int64 total = 0;
    const position last = last_;
    last_ = {};
    while (counted.any() && counted.next_window()) {
        counted.for_each([&](std::string_view topic, const expected_entry &entry) { meet(topic, entry, [&] { ++total; }); });
        MemoryContextReset(scratch_);
        if (save() == outcome::over)
            return outcome::over;
    }
    counted.release();
    last_ = last;
    task_.total = total;
    return save();
}

// Events of this window that another server had appended: each has a place of its own.
void replayer::load_placed(position after) {
    MemoryContextReset(window_);
    placed_count_ = at_placed_ = 0;
    Oid types[] = {INT4OID, INT8OID, INT8OID};
    Datum values[] = {Int32GetDatum(sink_id_), Int64GetDatum(after.ms), Int64GetDatum(expectation_.upto().ms)};
    SPI_connect();
    PushActiveSnapshot(GetTransactionSnapshot());
    SPI_execute_with_args("SELECT p.ms, p.n, e.seq, e.event_id, e.event_type, p.topic, e.occurred_at, e.version, e.aggregate_type, "
                          "e.aggregate_id, e.headers, e.payload FROM outbox.placed p "
                          "JOIN outbox.stored_event e ON e.event_id = p.event_id AND e.seq = p.seq "
                          "WHERE p.sink_id = $1 AND p.ms > $2 AND p.ms <= $3 ORDER BY p.ms, p.n",
                          3, types, values, nullptr, false, 0);
    PopActiveSnapshot();
    auto rows = static_cast<int>(SPI_processed);
    placed_ = static_cast<placed_event *>(
        MemoryContextAllocHuge(window_, sizeof(placed_event) * static_cast<Size>(rows + 1)));
    for (int i = 0; i < rows; ++i) {
        HeapTuple row = SPI_tuptable->vals[i];
        bool null;
        auto column = [&](int number) { return SPI_getbinval(row, SPI_tuptable->tupdesc, number, &null); };
        auto view_at = [&](int number, bool *present = nullptr) {
            Datum value = column(number);
            if (present)
                *present = !null;
            if (null)
                return std::string_view();
            std::string_view found = view_of(DatumGetTextPP(value));
            auto *kept = static_cast<char *>(MemoryContextAlloc(window_, found.size() + 1));
            memcpy(kept, found.data(), found.size());
            return std::string_view(kept, found.size());
        };
        placed_event &added = placed_[placed_count_++];
        added = {};
        added.at = {DatumGetInt64(column(1)), DatumGetInt64(column(2))};
        event_row &event = added.event;
        event.seq = DatumGetInt64(column(3));
        auto *id = static_cast<pg_uuid_t *>(MemoryContextAlloc(window_, sizeof(pg_uuid_t)));
        *id = *DatumGetUUIDP(column(4));
        event.event_id = id;
        event.event_type = view_at(5);
        event.topic = view_at(6);
        event.occurred_at = DatumGetTimestampTz(column(7));
        event.version = DatumGetInt32(column(8));
        event.aggregate_type = view_at(9, &event.has_aggregate_type);
        event.aggregate_id = view_at(10, &event.has_aggregate_id);
        event.headers = view_at(11, &event.has_headers);
        event.payload = view_at(12);
    }
    SPI_finish();
}

void replayer::append_placed(position before) {
    for (; at_placed_ < placed_count_ && placed_[at_placed_].at < before; ++at_placed_) {
        const placed_event &placed = placed_[at_placed_];
        meet(placed.event.topic, {placed.at, *placed.event.event_id, false, 0}, 
             [&] { append(placed.event, placed.at, expectation_.filter_at(placed.at.ms)); });
    }
}

// -- to the sink's own streams

static Datum text_datum(std::string_view value) {
    return PointerGetDatum(cstring_to_text_with_len(value.data(), static_cast<int>(value.size())));
}

void replayer::record_copy(const event_row &event) {
    namespace column = storage::event_column;
    Datum values[column::count] = {};
    bool nulls[column::count] = {};
    pg_uuid_t id = *event.event_id;
    values[column::occurred_at] = TimestampTzGetDatum(event.occurred_at);
    values[column::event_id] = UUIDPGetDatum(&id);
    values[column::version] = Int32GetDatum(event.version);
    values[column::event_type] = text_datum(event.event_type);
    values[column::topic] = text_datum(event.topic);
    values[column::aggregate_type] = text_datum(event.aggregate_type);
    nulls[column::aggregate_type] = !event.has_aggregate_type;
    values[column::aggregate_id] = text_datum(event.aggregate_id);
    nulls[column::aggregate_id] = !event.has_aggregate_id;
    values[column::headers] = text_datum(event.headers);
    nulls[column::headers] = !event.has_headers;
    values[column::payload] = text_datum(event.payload);
    values[column::sink_id] = Int32GetDatum(sink_id_);
    values[column::recorded_at] = TimestampTzGetDatum(GetCurrentTimestamp());
    record_event(values, nulls);
}

// At the end of the transaction that has recorded them.
void replayer::save_copies() {
    if (!copies() || added_ == 0)
        return;
    task_.at = last_;
    task_.done += added_;
    added_ = 0;
    task_.attempts = 0;
    if (!replay::save(task_))
        elog(ERROR, "a replay that was locked is gone");
}

// -- the whole

void replayer::show() const {
    char activity[160];
    pg_snprintf(activity, sizeof activity, "replaying sink \"%s\": %lld of %lld events", sink_.name,
                static_cast<long long>(task_.done), static_cast<long long>(std::max<int64>(task_.total, 0)));
    pgstat_report_activity(STATE_RUNNING, activity);
}

replayer::outcome replayer::save() {
    TimestampTz now = steady_now();
    if (!TimestampDifferenceExceeds(saved_at_, now, save_interval))
        return outcome::good;
    saved_at_ = now;
    show();
    expectation_.begin_transaction();
    bool running = replay::save(task_);
    expectation_.commit_transaction();
    pgstat_report_stat(false);
    return running ? outcome::good : outcome::over;
}

replayer::outcome replayer::end(const char *state, const char *error) {
    expectation_.begin_transaction();
    bool ended = replay::end(task_, state, error);
    expectation_.commit_transaction();
    if (ended)
        ereport(LOG, errmsg("replay %lld of sink \"%s\" is %s: %lld events were appended", static_cast<long long>(task_.id),
                            sink_.name, state, static_cast<long long>(task_.done)),
                error ? errdetail("%s", error) : 0);
    return outcome::over;
}

// No faster than it was asked for.
replayer::outcome replayer::pace() {
    for (;;) {
        CHECK_FOR_INTERRUPTS();
        if (save() == outcome::over)
            return outcome::over;
        if (task_.rate == 0)
            return outcome::good;
        TimestampTz due = began_at_ + (task_.done - done_before_) * USECS_PER_SEC / task_.rate;
        int ms = static_cast<int>(TimestampDifferenceMilliseconds(steady_now(), due));
        if (ms <= 0)
            return outcome::good;
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, std::min(ms, save_interval), PG_WAIT_EXTENSION);
        ResetLatch(MyLatch);
    }
}

replayer::outcome replayer::replay_window() {
    // so that a slow one goes evenly, and waits nowhere for long
    const int64 limit = task_.rate > 0 ? std::clamp(task_.rate / 5, 1, events_in_chunk) : events_in_chunk;
    expectation_.rewind();
    for (bool more = true; more;) {
        begin_chunk();
        more = expectation_.some(
            limit,
            [this](std::string_view topic, const expected_entry &entry) {
                append_placed(entry.at);
                meet(topic, entry, [this, &entry] { append(expectation_.event(), entry.at, expectation_.filter()); });
            },
            [this] { save_copies(); });
        if (!more) {
            expectation_.begin_transaction();
            append_placed({PG_INT64_MAX, PG_INT64_MAX});
            save_copies();
            expectation_.commit_transaction();
        }
        if (cancelled_)
            return outcome::over;
        outcome result = copies() ? outcome::good : send_chunk();
        if (result == outcome::good)
            result = pace();
        if (result != outcome::good)
            return result;
        MemoryContextReset(scratch_);
    }
    return outcome::good;
}

replayer::outcome replayer::replay() {
    if (task_.attempts > max_attempts)
        return end("failed", psprintf("its worker has ended %d times without progress: see the server's log", max_attempts));
    if (task_.total < 0 && count() == outcome::over)
        return outcome::over;
    if (!copies())
        if (outcome result = connect(); result != outcome::good)
            return result;
    done_before_ = task_.done;
    began_at_ = steady_now();
    expectation_.begin_transaction();
    // what is up to its end was confirmed when it was asked for, whatever the cursor says since
    expectation_.load(sink_id_, sink_.before_start(), task_.until, 0, std::max(task_.since.ms, task_.at.ms), task_.until.ms);
    const bool any_placed = state::last_placed(sink_id_) > 0;
    if (!expectation_.any() && expectation_.was_dropped_upto(task_.until.ms) && sink_.before_start() < task_.until)
        replay::note_dropped(task_, task_.until.ms);
    expectation_.commit_transaction();
    int64 dropped = 0;
    position after = expectation_.floor();
    for (bool more = expectation_.any(); more; after = expectation_.upto()) {
        more = expectation_.next_window();
        // also where nothing is left
        if (expectation_.unchecked() > dropped) {
            dropped = expectation_.unchecked();
            if (task_.at.ms > 0)
                return end("failed", "events that it had not read yet were dropped by retention");
            expectation_.begin_transaction();
            replay::note_dropped(task_, expectation_.floor().ms);
            expectation_.commit_transaction();
        }
        if (!more)
            break;
        expectation_.begin_transaction();
        placed_count_ = at_placed_ = 0;
        if (any_placed)
            load_placed(after);
        expectation_.commit_transaction();
        if (outcome result = replay_window(); result != outcome::good)
            return result;
    }
    expectation_.release();
    return end("done", nullptr);
}

bool replayer::run() {
    scratch_ = expectation_.scratch = AllocSetContextCreate(TopMemoryContext, "outbox replay", ALLOCSET_DEFAULT_SIZES);
    window_ = AllocSetContextCreate(TopMemoryContext, "outbox replay window", ALLOCSET_DEFAULT_SIZES);
    MemoryContextSwitchTo(scratch_);
    static std::string *const commands = cpp_call([] { return new std::string; }), *const unused = cpp_call([] { return new std::string; });
    commands_ = commands;
    unused_ = unused;
    HASHCTL control = {};
    control.keysize = sizeof(target_stream::topic);
    control.entrysize = sizeof(target_stream);
    streams_ = hash_create("outbox replayed streams", 64, &control, HASH_ELEM | HASH_BLOBS);
    bool again = load() && replay() == outcome::over;
    link_.close();
    return again;
}

extern "C" {

PGDLLEXPORT void outbox_replayer_main(Datum) {
    worker_identity identity;
    memcpy(static_cast<void *>(&identity), MyBgworkerEntry->bgw_extra, sizeof identity);
    pqsignal(SIGTERM, die);
    pqsignal(SIGINT, SIG_IGN);
    BackgroundWorkerUnblockSignals();
    if (!shared::attach_replayer(identity.database, identity.sink_id))
        proc_exit(0);
    BackgroundWorkerInitializeConnectionByOid(identity.database, InvalidOid, 0);
    if (!act_as_owner())
        proc_exit(0);
    // what one leaves behind is little, and goes with the process
    while ((new (MemoryContextAllocZero(TopMemoryContext, sizeof(replayer))) replayer(identity.sink_id))->run()) {
    }
    proc_exit(0);
}
}

} // namespace outbox

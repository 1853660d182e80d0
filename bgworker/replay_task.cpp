#include "bgworker/replay_task.hpp"

#include "bgworker/state.hpp"
#include "common/pattern.hpp"
#include "extension/storage.hpp"

namespace outbox::replay {

static std::pair<Oid, Datum> of(int value) { return {INT4OID, Int32GetDatum(value)}; }
static std::pair<Oid, Datum> of(int64 value) { return {INT8OID, Int64GetDatum(value)}; }
static std::pair<Oid, Datum> of(const char *value) {
    return value ? std::pair<Oid, Datum>{TEXTOID, CStringGetTextDatum(value)} : std::pair<Oid, Datum>{InvalidOid, 0};
}

bool task::takes(std::string_view topic) const {
    if (topic_count < 0)
        return true;
    for (int i = 0; i < topic_count; ++i)
        if (matches(topics[i], topic))
            return true;
    return false;
}

// Of the row that a statement has given.
static Datum column(uint64 row, int number, bool &null) {
    return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, &null);
}
static int64 number(uint64 row, int column_number, int64 otherwise = 0) {
    bool null;
    Datum value = column(row, column_number, null);
    return null ? otherwise : DatumGetInt64(value);
}

static std::string_view copy(MemoryContext context, std::string_view value) {
    auto *kept = static_cast<char *>(MemoryContextAlloc(context, value.size() + 1));
    memcpy(kept, value.data(), value.size());
    return {kept, value.size()};
}

static void read(task &taken, MemoryContext context) {
    bool null;
    taken = {};
    taken.id = number(0, 1);
    strlcpy(taken.uuid, TextDatumGetCString(column(0, 2, null)), sizeof taken.uuid);
    Datum into = column(0, 3, null);
    strlcpy(taken.into, null ? "" : TextDatumGetCString(into), sizeof taken.into);
    taken.since = {number(0, 4), number(0, 5)};
    taken.until = {number(0, 6), number(0, 7)};
    taken.at = {number(0, 8), number(0, 9)};
    taken.done = number(0, 10);
    taken.total = number(0, 11, -1);
    taken.rate = static_cast<int>(number(0, 12));
    taken.attempts = static_cast<int>(number(0, 13));
    Datum topics = column(0, 14, null);
    taken.topic_count = -1;
    if (null)
        return;
    Datum *values;
    bool *nulls;
    deconstruct_array(DatumGetArrayTypeP(topics), TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &taken.topic_count);
    taken.topics = static_cast<std::string_view *>(
        MemoryContextAlloc(context, sizeof(std::string_view) * static_cast<Size>(taken.topic_count + 1)));
    for (int i = 0; i < taken.topic_count; ++i)
        taken.topics[i] = nulls[i] ? std::string_view() : copy(context, view_of(DatumGetTextPP(values[i])));
}

bool take(int sink_id, MemoryContext context, task &taken) {
    Oid types[] = {INT4OID, INT4OID};
    Datum values[] = {Int32GetDatum(sink_id), Int32GetDatum(storage::anchor())};
    SPI_connect();
    PushActiveSnapshot(GetTransactionSnapshot());
    int result = SPI_execute_with_args(
        "UPDATE outbox.replay_task SET state = 'running', attempts = attempts + 1, "
        "started_at = COALESCE(started_at, clock_timestamp()) WHERE id = (SELECT id FROM outbox.replay_task "
        "WHERE sink_id = $1 AND anchor = $2 AND state IN ('running', 'waiting') ORDER BY state, id LIMIT 1) "
        "AND state IN ('running', 'waiting') RETURNING id, uuid::text, into_stream, since_ms, since_n, until_ms, until_n, ms, n, "
        "done, total, rate::bigint, attempts::bigint, topics",
        2, types, values, nullptr, false, 0);
    PopActiveSnapshot();
    if (result < 0)
        elog(ERROR, "could not read the replays: %s", SPI_result_code_string(result));
    bool found = SPI_processed == 1;
    if (found)
        read(taken, context);
    SPI_finish();
    return found;
}

bool any(int sink_id) {
    return state::execute("SELECT FROM outbox.replay_task WHERE sink_id = $1 AND anchor = $2 AND state IN ('running', 'waiting') LIMIT 1",
                          {of(sink_id), of(storage::anchor())}) > 0;
}

bool lock(const task &own) {
    return state::execute("SELECT FROM outbox.replay_task WHERE id = $1 AND state = 'running' FOR UPDATE", {of(own.id)}) > 0;
}

bool save(const task &own) {
    return state::execute("UPDATE outbox.replay_task SET ms = $2, n = $3, done = $4, total = NULLIF($5, -1), attempts = $6 "
                          "WHERE id = $1 AND state = 'running'",
                          {of(own.id), of(own.at.ms), of(std::max<int64>(own.at.n, 0)), of(own.done), of(own.total), of(own.attempts)}) > 0;
}

bool end(const task &own, const char *state, const char *error) {
    return save(own) && state::execute("UPDATE outbox.replay_task SET state = $2, last_error = $3, ended_at = clock_timestamp() "
                                       "WHERE id = $1",
                                       {of(own.id), of(state), of(error)}) > 0;
}

void note_trouble(const task &own, const char *error) {
    state::execute("UPDATE outbox.replay_task SET last_error = $2, attempts = 0 WHERE id = $1", {of(own.id), of(error)});
}

void note_dropped(const task &own, int64 ms) {
    state::execute("UPDATE outbox.replay_task SET dropped_ms = $2 WHERE id = $1", {of(own.id), of(ms)});
}

need *needs(int &count) {
    MemoryContext caller = CurrentMemoryContext;
    Oid types[] = {INT4OID};
    Datum values[] = {Int32GetDatum(storage::anchor())};
    SPI_connect();
    PushActiveSnapshot(GetLatestSnapshot());
    // events that were moved are in an earlier batch than their position says
    int result = SPI_execute_with_args(
        "SELECT t.id, t.sink_id::bigint, LEAST(p.ms, (SELECT min(m.ms) FROM outbox.move m WHERE m.sink_id = t.sink_id AND m.to_ms >= p.ms)) "
        "FROM outbox.replay_task t CROSS JOIN LATERAL (SELECT GREATEST(t.ms, t.since_ms) AS ms) p "
        "WHERE t.anchor = $1 AND t.state IN ('running', 'waiting')",
        1, types, values, nullptr, false, 0);
    PopActiveSnapshot();
    if (result < 0)
        elog(ERROR, "could not read the replays: %s", SPI_result_code_string(result));
    count = static_cast<int>(SPI_processed);
    auto *found = static_cast<need *>(MemoryContextAlloc(caller, sizeof(need) * static_cast<Size>(count + 1)));
    for (int i = 0; i < count; ++i) {
        auto row = static_cast<uint64>(i);
        found[i] = {number(row, 1), static_cast<int>(number(row, 2)), number(row, 3)};
    }
    SPI_finish();
    return found;
}

} // namespace outbox::replay

#include "bgworker/state.hpp"

#include "extension/delayed.hpp"
#include "extension/storage.hpp"

namespace outbox::state {

using arguments = std::initializer_list<std::pair<Oid, Datum>>;

constexpr int max_arguments = 16;
constexpr int incarnations_kept = 1000;

static std::pair<Oid, Datum> of(int value) { return {INT4OID, Int32GetDatum(value)}; }
static std::pair<Oid, Datum> of(int64 value) { return {INT8OID, Int64GetDatum(value)}; }
static std::pair<Oid, Datum> of(std::string_view value) {
    return {TEXTOID, PointerGetDatum(cstring_to_text_with_len(value.data(), static_cast<int>(value.size())))};
}
static std::pair<Oid, Datum> of(const pg_uuid_t *value) { return {UUIDOID, UUIDPGetDatum(value)}; }
static std::pair<Oid, Datum> time_or_null(TimestampTz value) {
    return {TIMESTAMPTZOID, TimestampTzGetDatum(value)};
}

// Runs a statement with the SPI connection left open, so that SPI_tuptable can be read; finish() after it. An argument of type
// InvalidOid is a null of type text, a time of 0 a null time.
static uint64 run(const char *statement, arguments given) {
    Oid types[max_arguments];
    Datum values[max_arguments];
    char nulls[max_arguments];
    int count = 0;
    for (const auto &[type, value] : given) {
        bool null = type == InvalidOid || (type == TIMESTAMPTZOID && DatumGetTimestampTz(value) == 0);
        types[count] = type == InvalidOid ? TEXTOID : type;
        values[count] = value;
        nulls[count++] = null ? 'n' : ' ';
    }
    SPI_connect();
    PushActiveSnapshot(GetTransactionSnapshot());
    int result = SPI_execute_with_args(statement, count, types, values, nulls, false, 0);
    PopActiveSnapshot();
    if (result < 0)
        elog(ERROR, "could not execute \"%s\": %s", statement, SPI_result_code_string(result));
    return SPI_processed;
}

static void finish() { SPI_finish(); }

uint64 execute(const char *statement, arguments given) {
    uint64 rows = run(statement, given);
    finish();
    return rows;
}

static Datum column(uint64 row, int number, bool &null) {
    return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, &null);
}
static Datum column(uint64 row, int number) {
    bool null;
    return column(row, number, null);
}

bool load_sink(int sink_id, sink_row &row) {
    bool found = run("SELECT name, uuid::text, anchor, paused, take_over, url, stream, start_ms, start_n, used, trimming, "
                     "COALESCE(max_length, 0), COALESCE(ceil(extract(epoch FROM max_age) * 1000)::bigint, 0), confirm "
                     "FROM outbox.sink_definition WHERE id = $1",
                     {of(sink_id)}) == 1;
    if (found) {
        strlcpy(row.name, TextDatumGetCString(column(0, 1)), sizeof row.name);
        strlcpy(row.uuid, TextDatumGetCString(column(0, 2)), sizeof row.uuid);
        row.anchor = DatumGetInt32(column(0, 3));
        row.paused = DatumGetBool(column(0, 4));
        row.take_over = DatumGetBool(column(0, 5));
        bool null;
        Datum url = column(0, 6, null);
        strlcpy(row.url, null ? "" : TextDatumGetCString(url), sizeof row.url);
        strlcpy(row.stream, TextDatumGetCString(column(0, 7)), sizeof row.stream);
        row.start = {DatumGetInt64(column(0, 8)), DatumGetInt64(column(0, 9))};
        row.used = DatumGetBool(column(0, 10));
        const char *trimming = TextDatumGetCString(column(0, 11));
        row.trimming = strcmp(trimming, "consumed") == 0 ? sink_row::consumed : strcmp(trimming, "limits") == 0 ? sink_row::limits : sink_row::off;
        row.max_length = DatumGetInt64(column(0, 12));
        row.max_age = DatumGetInt64(column(0, 13));
        row.confirm = read_confirm_level(TextDatumGetCString(column(0, 14)));
    }
    finish();
    return found;
}

void keep_default_sink() {
    execute("SELECT outbox.keep_default_sink()");
}

const stored_snapshot *last_snapshot_in(int sink_id, int partition) {
    MemoryContext caller = CurrentMemoryContext;
    void *copy = nullptr;
    if (run(psprintf("SELECT snapshot FROM outbox.tick_%d WHERE sink_id = $1 AND anchor = $2 ORDER BY ms DESC LIMIT 1",
                     partition),
            {of(sink_id), of(storage::anchor())}) == 1) {
        auto *found = PG_DETOAST_DATUM(column(0, 1));
        copy = MemoryContextAlloc(caller, VARSIZE(found));
        memcpy(copy, found, VARSIZE(found));
    }
    finish();
    return static_cast<const stored_snapshot *>(copy);
}

void load_sizes(int64 *bytes) {
    uint64 rows = run("SELECT pg_total_relation_size(('outbox.event_' || n)::regclass) + "
                      "pg_total_relation_size(('outbox.tick_' || n)::regclass) FROM generate_series(0, $1 - 1) n ORDER BY n",
                      {of(storage::partitions)});
    for (uint64 i = 0; i < rows; ++i)
        bytes[i] = DatumGetInt64(column(i, 1));
    finish();
}

TimestampTz generation_start(int64 generation) {
    TimestampTz start = 0;
    if (run("SELECT started_at FROM outbox.ring WHERE generation = $1", {of(generation)}) == 1)
        start = DatumGetTimestampTz(column(0, 1));
    finish();
    return start;
}

void keep_ring() {
    if (execute("INSERT INTO outbox.ring (generation, started_at) SELECT 0, now() "
                "WHERE NOT EXISTS (SELECT FROM outbox.ring) ON CONFLICT DO NOTHING") > 0)
        CacheInvalidateRelcacheByRelid(storage::require().ring);
}

bool has_native_events() {
    if (OidIsValid(delayed_partition(0)) &&
        execute("SELECT FROM outbox.delayed WHERE anchor = $1 LIMIT 1", {of(storage::anchor())}) > 0)
        return true;
    return execute("SELECT FROM outbox.stored_event WHERE anchor = $1 LIMIT 1", {of(storage::anchor())}) > 0;
}

void clear_take_over(int sink_id) {
    execute("UPDATE outbox.sink_definition SET take_over = false WHERE id = $1", {of(sink_id)});
}

void set_used(int sink_id) {
    execute("UPDATE outbox.sink_definition SET used = true WHERE id = $1", {of(sink_id)});
}

sink_progress *load_progress(int &count) {
    MemoryContext caller = CurrentMemoryContext;
    uint64 rows = run("SELECT d.id, d.name, c.ms, c.n, d.start_ms, s.held_ms, s.topic, s.failed_at, c.recorded_at "
                      "FROM outbox.sink_definition d LEFT JOIN outbox.checkpoint c ON c.sink_id = d.id "
                      "LEFT JOIN LATERAL (SELECT held_ms, topic, failed_at FROM outbox.stream WHERE sink_id = d.id "
                      "AND held_ms IS NOT NULL ORDER BY held_ms LIMIT 1) s ON true ORDER BY d.id",
                      {});
    auto *progress = static_cast<sink_progress *>(MemoryContextAllocZero(caller, sizeof(sink_progress) * (rows + 1)));
    for (uint64 i = 0; i < rows; ++i) {
        sink_progress &sink = progress[i];
        bool null;
        sink.id = DatumGetInt32(column(i, 1));
        strlcpy(sink.name, TextDatumGetCString(column(i, 2)), sizeof sink.name);
        Datum ms = column(i, 3, null);
        sink.confirmed = null ? position{} : position{DatumGetInt64(ms), DatumGetInt64(column(i, 4))};
        sink.start_ms = DatumGetInt64(column(i, 5));
        Datum held = column(i, 6, null);
        sink.held_ms = null ? PG_INT64_MAX : DatumGetInt64(held);
        if (!null)
            strlcpy(sink.held_topic, TextDatumGetCString(column(i, 7)), sizeof sink.held_topic);
        Datum since = column(i, 8, null);
        sink.held_since = null ? 0 : DatumGetTimestampTz(since);
        Datum recorded_at = column(i, 9, null);
        sink.confirmed_at = null ? 0 : DatumGetTimestampTz(recorded_at);
    }
    finish();
    count = static_cast<int>(rows);
    return progress;
}

void add_incarnation(int sink_id, const char *incarnation) {
    execute("INSERT INTO outbox.incarnation (sink_id, incarnation) VALUES ($1, $2)",
            {of(sink_id), of(std::string_view(incarnation))});
    execute("DELETE FROM outbox.incarnation WHERE sink_id = $1 AND incarnation IN ("
            "SELECT incarnation FROM outbox.incarnation WHERE sink_id = $1 "
            "ORDER BY started_at DESC OFFSET $2)",
            {of(sink_id), of(incarnations_kept)});
}

bool knows_incarnation(int sink_id, std::string_view incarnation) {
    return execute("SELECT FROM outbox.incarnation WHERE sink_id = $1 AND incarnation = $2", {of(sink_id), of(incarnation)}) > 0;
}

position load_checkpoint(int sink_id) {
    position found;
    if (run("SELECT ms, n FROM outbox.checkpoint WHERE sink_id = $1", {of(sink_id)}) == 1)
        found = {DatumGetInt64(column(0, 1)), DatumGetInt64(column(0, 2))};
    finish();
    return found;
}

void save_checkpoint(int sink_id, position cursor) {
    execute("INSERT INTO outbox.checkpoint (sink_id, ms, n, recorded_at) "
            "VALUES ($1, $2, $3, clock_timestamp()) ON CONFLICT (sink_id) DO UPDATE "
            "SET ms = $2, n = $3, recorded_at = clock_timestamp()",
            {of(sink_id), of(cursor.ms), of(cursor.n)});
}

int64 highest_ms(int sink_id) {
    tick last;
    int64 highest = last_tick_before(sink_id, no_tick, last) ? last.ms : 0;
    if (run("SELECT max(to_ms) FROM outbox.move WHERE sink_id = $1", {of(sink_id)}) == 1) {
        bool null;
        Datum moved = column(0, 1, null);
        if (!null && DatumGetInt64(moved) > highest)
            highest = DatumGetInt64(moved);
    }
    finish();
    return highest;
}

void load_streams(int sink_id, stream_callback add, void *to) {
    uint64 rows = run("SELECT topic, ms, n, appended, held_ms, held_n, tried_ms, tried_n, attempts, retry_at, "
                      "failed_at, last_error, released FROM outbox.stream WHERE sink_id = $1",
                      {of(sink_id)});
    for (uint64 i = 0; i < rows; ++i) {
        stream_state stream = {};
        bool null;
        strlcpy(stream.topic, TextDatumGetCString(column(i, 1)), sizeof stream.topic);
        stream.tail = {DatumGetInt64(column(i, 2)), DatumGetInt64(column(i, 3))};
        stream.appended = DatumGetInt64(column(i, 4));
        stream.released = DatumGetInt64(column(i, 13));
        Datum held = column(i, 5, null);
        stream.held = stream.in_doubt = !null;
        if (stream.held) {
            stream.held_from = {DatumGetInt64(held), DatumGetInt64(column(i, 6))};
            stream.tried = {DatumGetInt64(column(i, 7)), DatumGetInt64(column(i, 8))};
            stream.attempts = DatumGetInt32(column(i, 9));
            stream.retry_at = DatumGetTimestampTz(column(i, 10));
            stream.failed_at = DatumGetTimestampTz(column(i, 11));
            Datum error = column(i, 12, null);
            if (!null)
                strlcpy(stream.error, TextDatumGetCString(error), sizeof stream.error);
        }
        add(to, stream);
    }
    finish();
}

void save_stream(int sink_id, const stream_state &stream) {
    if (!stream.held) {
        execute("INSERT INTO outbox.stream (sink_id, topic, ms, n, appended, released) VALUES ($1, $2, $3, $4, $5, $6) "
                "ON CONFLICT (sink_id, topic) DO UPDATE SET ms = $3, n = $4, appended = $5, released = $6, held_ms = NULL, "
                "held_n = NULL, tried_ms = NULL, tried_n = NULL, attempts = 0, retry_at = NULL, failed_at = NULL, "
                "last_error = NULL",
                {of(sink_id), of(stream.name()), of(stream.tail.ms), of(stream.tail.n), of(stream.appended),
                 of(stream.released)});
        return;
    }
    execute("INSERT INTO outbox.stream (sink_id, topic, ms, n, appended, held_ms, held_n, tried_ms, tried_n, "
            "attempts, retry_at, failed_at, last_error, released) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) "
            "ON CONFLICT (sink_id, topic) DO UPDATE SET ms = $3, n = $4, appended = $5, held_ms = $6, held_n = $7, "
            "tried_ms = $8, tried_n = $9, attempts = $10, retry_at = $11, failed_at = $12, last_error = $13, "
            "released = $14",
            {of(sink_id), of(stream.name()), of(stream.tail.ms), of(stream.tail.n), of(stream.appended),
             of(stream.held_from.ms), of(stream.held_from.n), of(stream.tried.ms), of(stream.tried.n),
             of(stream.attempts), time_or_null(stream.retry_at), time_or_null(stream.failed_at),
             of(std::string_view(stream.error)), of(stream.released)});
}

void load_settled(int sink_id, key_callback add, void *to) {
    uint64 rows = run("SELECT event_id, seq FROM outbox.placed WHERE sink_id = $1 UNION "
                      "SELECT event_id, seq FROM outbox.dead_letter WHERE sink_id = $1 UNION "
                      "SELECT event_id, seq FROM outbox.settled_letter WHERE sink_id = $1",
                      {of(sink_id)});
    for (uint64 i = 0; i < rows; ++i)
        add(to, {*DatumGetUUIDP(column(i, 1)), DatumGetInt64(column(i, 2))});
    finish();
}

bool has_moves(int sink_id) {
    return execute("SELECT FROM outbox.move WHERE sink_id = $1 LIMIT 1", {of(sink_id)}) > 0;
}

move *load_moves(int sink_id, int64 ms, int &count) {
    MemoryContext caller = CurrentMemoryContext;
    uint64 rows = run("SELECT topic, n, upto_n, to_ms FROM outbox.move WHERE sink_id = $1 AND ms = $2 ORDER BY to_ms",
                      {of(sink_id), of(ms)});
    auto *moves = static_cast<move *>(MemoryContextAllocZero(caller, sizeof(move) * (rows + 1)));
    for (uint64 i = 0; i < rows; ++i) {
        strlcpy(moves[i].topic, TextDatumGetCString(column(i, 1)), sizeof moves[i].topic);
        moves[i].n = DatumGetInt64(column(i, 2));
        moves[i].upto_n = DatumGetInt64(column(i, 3));
        moves[i].to_ms = DatumGetInt64(column(i, 4));
    }
    finish();
    count = static_cast<int>(rows);
    return moves;
}

void add_move(int sink_id, int64 ms, const move &added) {
    execute("INSERT INTO outbox.move (sink_id, ms, topic, n, upto_n, to_ms) VALUES ($1, $2, $3, $4, $5, $6)",
            {of(sink_id), of(ms), of(std::string_view(added.topic)), of(added.n), of(added.upto_n), of(added.to_ms)});
}

void add_placed(int sink_id, const event_key &key, std::string_view topic, position where) {
    execute("INSERT INTO outbox.placed (sink_id, event_id, topic, ms, n, seq) VALUES ($1, $2, $3, $4, $5, $6) "
            "ON CONFLICT DO NOTHING",
            {of(sink_id), of(&key.id), of(topic), of(where.ms), of(where.n), of(key.seq)});
}

void take_placed(int sink_id, std::string_view topic, position above, key_callback add, void *to) {
    uint64 rows = run("DELETE FROM outbox.placed WHERE sink_id = $1 AND topic = $2 AND (ms, n) > ($3, $4) RETURNING event_id, seq",
                      {of(sink_id), of(topic), of(above.ms), of(above.n)});
    for (uint64 i = 0; i < rows; ++i)
        add(to, {*DatumGetUUIDP(column(i, 1)), DatumGetInt64(column(i, 2))});
    finish();
}

void load_letters(int sink_id, key_callback add, void *to) {
    uint64 rows = run("SELECT event_id, seq FROM outbox.dead_letter WHERE sink_id = $1 ORDER BY seq DESC", {of(sink_id)});
    for (uint64 i = 0; i < rows; ++i)
        add(to, {*DatumGetUUIDP(column(i, 1)), DatumGetInt64(column(i, 2))});
    finish();
}

void place_letter(int sink_id, const event_key &key, std::string_view topic, position where) {
    execute("DELETE FROM outbox.dead_letter WHERE sink_id = $1 AND event_id = $2 AND seq = $3",
            {of(sink_id), of(&key.id), of(key.seq)});
    add_placed(sink_id, key, topic, where);
}

void add_dead_letter(int sink_id, const event_row &event, position where, const stream_state &stream) {
    char text[position_text_size];
    std::size_t length = print(where, text);
    auto optional = [](bool present, std::string_view value) {
        return present ? of(value) : std::pair<Oid, Datum>{InvalidOid, 0};
    };
    execute("INSERT INTO outbox.dead_letter (sink_id, event_id, topic, event_type, aggregate_type, aggregate_id, "
            "version, occurred_at, headers, payload, position, attempts, error, failed_at, seq) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING",
            {of(sink_id), of(event.event_id), of(event.topic), of(event.event_type),
             optional(event.has_aggregate_type, event.aggregate_type),
             optional(event.has_aggregate_id, event.aggregate_id), of(event.version),
             {TIMESTAMPTZOID, TimestampTzGetDatum(event.occurred_at)}, optional(event.has_headers, event.headers),
             of(event.payload), of(std::string_view(text, length)), of(stream.attempts),
             of(std::string_view(stream.error)), time_or_null(stream.failed_at), of(event.seq)});
}

void load_unpublished(int sink_id, const stored_snapshot *published, candidate_callback add, void *to) {
    std::pair<Oid, Datum> snapshot = {PG_SNAPSHOTOID, PointerGetDatum(published)};
    uint64 rows = published
                      ? run("SELECT event_id, coalesce(topic, split_part(event_type, '.', 1)), seq, event_type FROM outbox.stored_event "
                            "WHERE anchor = $2 AND xid >= pg_snapshot_xmin($1) AND NOT pg_visible_in_snapshot(xid, $1) "
                            "AND (sink_id IS NULL OR sink_id = $3)",
                            {snapshot, of(storage::anchor()), of(sink_id)})
                      : run("SELECT event_id, coalesce(topic, split_part(event_type, '.', 1)), seq, event_type FROM outbox.stored_event "
                            "WHERE sink_id IS NULL OR sink_id = $1",
                            {of(sink_id)});
    for (uint64 i = 0; i < rows; ++i) {
        text *topic = DatumGetTextPP(column(i, 2)), *event_type = DatumGetTextPP(column(i, 4));
        add(to, {*DatumGetUUIDP(column(i, 1)), DatumGetInt64(column(i, 3))}, view_of(event_type), view_of(topic));
    }
    finish();
}

void load_foreign_anchors(anchor_callback add, void *to) {
    uint64 rows = run("SELECT anchor, (max(xid::text::numeric) + 1)::text::xid8 FROM outbox.stored_event "
                      "WHERE anchor <> $1 GROUP BY anchor ORDER BY max(seq)",
                      {of(storage::anchor())});
    for (uint64 i = 0; i < rows; ++i)
        add(to, DatumGetInt32(column(i, 1)), DatumGetFullTransactionId(column(i, 2)));
    finish();
}

bool find_sink(const char *name, int &sink_id, sink_row &row) {
    row = {};
    bool found = run("SELECT id FROM outbox.sink WHERE name = $1", {of(std::string_view(name))}) == 1;
    if (found)
        sink_id = DatumGetInt32(column(0, 1));
    finish();
    if (found && !load_sink(sink_id, row))
        strlcpy(row.name, name, sizeof row.name);
    return found;
}

position confirmed(int sink_id) {
    position found;
    if (run("SELECT ms, n FROM outbox.sink_cursor WHERE sink_id = $1", {of(sink_id)}) == 1)
        found = {DatumGetInt64(column(0, 1)), DatumGetInt64(column(0, 2))};
    finish();
    return found;
}

// A number, 0 where it is null.
static int64 number(const char *statement, arguments given) {
    int64 result = 0;
    if (run(statement, given) == 1) {
        bool null;
        Datum value = column(0, 1, null);
        result = null ? 0 : DatumGetInt64(value);
    }
    finish();
    return result;
}

int64 count_ticks(int sink_id, int64 from_ms, int64 upto_ms) {
    return number("SELECT count(*) FROM outbox.tick WHERE sink_id = $1 AND ms BETWEEN $2 AND $3",
                  {of(sink_id), of(from_ms), of(upto_ms)});
}

int64 last_tick_in(int sink_id, int partition) {
    return number(psprintf("SELECT max(ms) FROM outbox.tick_%d WHERE sink_id = $1", partition), {of(sink_id)});
}

int64 first_tick_of(int sink_id, int32 anchor) {
    return number("SELECT min(ms) FROM outbox.tick WHERE sink_id = $1 AND anchor = $2", {of(sink_id), of(anchor)});
}

void load_topics(int sink_id, topic_callback add, void *to) {
    uint64 rows = run("SELECT topic FROM outbox.stream WHERE sink_id = $1", {of(sink_id)});
    for (uint64 i = 0; i < rows; ++i)
        add(to, view_of(DatumGetTextPP(column(i, 1))));
    finish();
}

void load_moved(int sink_id, int64 last, int64 after, int64 upto, int limit, moved_callback add, void *to) {
    uint64 rows = run("SELECT DISTINCT to_ms, ms FROM outbox.move WHERE sink_id = $1 AND to_ms > $2 AND to_ms <= $3 "
                      "AND ms <= $4 ORDER BY to_ms, ms LIMIT $5",
                      {of(sink_id), of(after), of(upto), of(last), of(limit)});
    for (uint64 i = 0; i < rows; ++i)
        add(to, DatumGetInt64(column(i, 1)), DatumGetInt64(column(i, 2)));
    finish();
}

int64 last_placed(int sink_id) {
    return number("SELECT max(ms) FROM outbox.placed WHERE sink_id = $1", {of(sink_id)});
}

void load_placed(int sink_id, int64 after_ms, int64 upto_ms, placed_callback add, void *to) {
    uint64 rows = run("SELECT topic, ms, n, event_id FROM outbox.placed WHERE sink_id = $1 AND ms > $2 AND ms <= $3 "
                      "ORDER BY ms, n",
                      {of(sink_id), of(after_ms), of(upto_ms)});
    for (uint64 i = 0; i < rows; ++i)
        add(to, view_of(DatumGetTextPP(column(i, 1))), {DatumGetInt64(column(i, 2)), DatumGetInt64(column(i, 3))},
            *DatumGetUUIDP(column(i, 4)));
    finish();
}

void load_places(int sink_id, const pg_uuid_t *ids, int count, place_callback add, void *to) {
    auto *wanted = static_cast<Datum *>(palloc(sizeof(Datum) * static_cast<Size>(count)));
    for (int i = 0; i < count; ++i)
        wanted[i] = UUIDPGetDatum(&ids[i]);
    ArrayType *array = construct_array(wanted, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR);
    // one pass over the events, however many ids there are; the rest is done for those found
    uint64 rows = run("SELECT e.event_id, t.topic, CASE WHEN p.ms IS NOT NULL OR ((l.ms, l.n) >= (k.start_ms, k.start_n) "
                      "AND outbox.passes($1, l.ms, e.event_id, e.event_type, t.topic, e.aggregate_type, e.aggregate_id, e.version, "
                      "e.occurred_at, e.headers, e.payload, e.sink_id)) "
                      "THEN COALESCE(p.ms, m.to_ms, l.ms) || '-' || COALESCE(p.n, l.n) END, d.event_id IS NOT NULL OR g.event_id IS NOT NULL "
                      "FROM outbox.stored_event e "
                      "CROSS JOIN (SELECT start_ms, start_n FROM outbox.sink WHERE id = $1) k "
                      "CROSS JOIN LATERAL (SELECT COALESCE(e.topic, split_part(e.event_type, '.', 1)) AS topic) t "
                      "CROSS JOIN LATERAL outbox.locate($1, e.anchor, e.xid, e.seq, k.start_ms) l "
                      "LEFT JOIN outbox.placed p ON p.sink_id = $1 AND p.event_id = e.event_id AND p.seq = e.seq "
                      "LEFT JOIN LATERAL (SELECT max(to_ms) AS to_ms FROM outbox.move WHERE sink_id = $1 AND ms = l.ms "
                      "AND topic = t.topic AND l.n BETWEEN n AND upto_n) m ON true "
                      "LEFT JOIN outbox.dead_letter d ON d.sink_id = $1 AND d.event_id = e.event_id AND d.seq = e.seq "
                      "LEFT JOIN outbox.settled_letter g ON g.sink_id = $1 AND g.event_id = e.event_id AND g.seq = e.seq "
                      "WHERE e.event_id = ANY ($2) AND (e.sink_id IS NULL OR e.sink_id = $1)",
                      {of(sink_id), {UUIDARRAYOID, PointerGetDatum(array)}});
    for (uint64 i = 0; i < rows; ++i) {
        event_place place = {};
        place.id = *DatumGetUUIDP(column(i, 1));
        strlcpy(place.topic, TextDatumGetCString(column(i, 2)), sizeof place.topic);
        bool null;
        Datum at = column(i, 3, null);
        if (!null)
            strlcpy(place.at, TextDatumGetCString(at), sizeof place.at);
        place.dead = DatumGetBool(column(i, 4));
        add(to, place);
    }
    finish();
}

} // namespace outbox::state

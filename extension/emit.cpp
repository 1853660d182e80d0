// outbox.emit: check the arguments, append one row in the caller's transaction, ask for a wake. No SPI, no socket, no wait.

#include "common/crash_point.hpp"
#include "common/plain_json.hpp"
#include "extension/clock.hpp"
#include "extension/dedupe.hpp"
#include "extension/delayed.hpp"
#include "extension/event_type.hpp"
#include "extension/pg.hpp"
#include "extension/printable.hpp"
#include "extension/record.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"
#include "extension/uuid.hpp"

#include "bgworker/shared.hpp"

namespace outbox {

constexpr int max_aggregate_length = 1000; // bytes
constexpr int max_headers_length = 65536;  // bytes
constexpr int max_dedupe_key_length = 256; // bytes: it is in an index

// The arguments' places in all three overloads.
enum argument { event_type_arg, payload_arg, aggregate_id_arg, aggregate_type_arg, version_arg, headers_arg, topic_arg,
                occurred_at_arg, event_id_arg, deliver_at_arg, dedupe_key_arg };

// 0001-01-01 and the end of 9999, the years that RFC 3339 can write, as PostgreSQL counts.
static const TimestampTz first_instant =
    (INT64CONST(1721426) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY;
static const TimestampTz last_instant =
    (INT64CONST(5373485) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY - 1;

static void refuse_null(const char *name) {
    ereport(ERROR, errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", name));
}

static text *check_event_type(text *value) {
    if (!is_event_type(view_of(value)))
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                errmsg("invalid event type \"%s\"", printable(view_of(value))),
                errdetail("An event type has two or more segments of A-Z, a-z, 0-9, \"_\" and \"-\", "
                          "separated by dots, and at most %zu bytes.",
                          max_event_type_length),
                errhint("For example \"wallet.created\" or \"identity.user.created\"."));
    return value;
}

static void check_topic(std::string_view topic) {
    if (!is_topic(topic))
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                errmsg("invalid topic \"%s\"", printable(topic)),
                errdetail("A topic has one or more segments of A-Z, a-z, 0-9, \"_\" and \"-\", "
                          "separated by dots, and at most %zu bytes.",
                          max_topic_length),
                errhint("Without a topic, an event goes to the first segment of its event type."));
}

static void check_length(std::string_view value, const char *name, int limit) {
    if (value.size() > static_cast<std::size_t>(limit))
        ereport(ERROR, errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("%s is too long", name),
                errdetail("It has %zu bytes, at most %d are allowed.", value.size(), limit));
}

// The worker sends UTF-8. Where the server cannot convert, what is stored must be UTF-8 already.
static void check_encoding(std::string_view value, const char *name) {
    int encoding = GetDatabaseEncoding();
    if (encoding == PG_UTF8)
        return;
    // What has no UTF-8 equivalent must fail here, and not in the worker.
    if (encoding != PG_SQL_ASCII)
        pg_server_to_any(value.data(), static_cast<int>(value.size()), PG_UTF8);
    else if (!pg_verify_mbstr(PG_UTF8, value.data(), static_cast<int>(value.size()), true))
        ereport(ERROR, errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
                errmsg("%s is not valid UTF-8", name),
                errdetail("Events are published as UTF-8, and a database with encoding SQL_ASCII cannot convert."),
                errhint("Pass UTF-8 text."));
}

static void check_payload_size(std::string_view payload) {
    if (payload.size() > static_cast<std::size_t>(settings::max_payload_size))
        ereport(ERROR, errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("payload is too large"),
                errdetail("It has %zu bytes, at most %d are allowed.", payload.size(),
                          settings::max_payload_size),
                errhint("Store large data elsewhere and emit a reference, or raise outbox.max_payload_size."));
}

static text *payload_from_text(Datum argument) {
    text *payload = DatumGetTextPP(argument);
    // Before it is parsed: an oversized text is not worth the time.
    check_payload_size(view_of(payload));
    check_encoding(view_of(payload), "payload");
    // json_in keeps the text as it is and raises the errors that a user of json knows.
    if (!is_plain_json(view_of(payload)))
        DirectFunctionCall1(json_in, CStringGetDatum(text_to_cstring(payload)));
    return payload;
}

static text *payload_from_json(Datum argument) {
    text *payload = DatumGetTextPP(argument);
    check_payload_size(view_of(payload));
    check_encoding(view_of(payload), "payload");
    return payload;
}

static text *payload_from_jsonb(Datum argument) {
    Jsonb *value = DatumGetJsonbP(argument);
    StringInfoData out;
    initStringInfo(&out);
    JsonbToCString(&out, &value->root, VARSIZE(value));
    text *payload = cstring_to_text_with_len(out.data, out.len);
    check_payload_size(view_of(payload));
    check_encoding(view_of(payload), "payload");
    return payload;
}

static void check_flat(Jsonb *headers) {
    bool flat = JB_ROOT_IS_OBJECT(headers);
    JsonbIterator *position = JsonbIteratorInit(&headers->root);
    JsonbValue value;
    JsonbIteratorToken token;
    while (flat && (token = JsonbIteratorNext(&position, &value, true)) != WJB_DONE) {
        // Nested containers are skipped and come as one binary value.
        if (token == WJB_VALUE && value.type == jbvBinary)
            flat = false;
    }
    if (!flat)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                errmsg("headers must be one flat JSON object"),
                errdetail("A header's value is a string, a number, a boolean or null."));
}

// The session's headers as jsonb prints them. Kept: they mostly stay the same from event to event.
static const char *normal_session_headers() {
    static char *source = nullptr, *normal = nullptr;
    const char *session = settings::session_headers();
    if (!session)
        return nullptr;
    if (!source || strcmp(source, session) != 0) {
        Jsonb *value = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(session)));
        char *printed = JsonbToCString(nullptr, &value->root, VARSIZE(value));
        char *new_source = MemoryContextStrdup(TopMemoryContext, session);
        char *new_normal = MemoryContextStrdup(TopMemoryContext, printed);
        if (source) {
            pfree(source);
            pfree(normal);
        }
        source = new_source;
        normal = new_normal;
    }
    return normal;
}

// Those of the call win over those of the session. Null where there are none.
static text *merge_headers(Jsonb *own) {
    const char *session = normal_session_headers();
    text *merged;
    if (!own || (JB_ROOT_IS_OBJECT(own) && JB_ROOT_COUNT(own) == 0)) {
        if (!own && !session)
            return nullptr;
        merged = cstring_to_text(session ? session : "{}");
    } else {
        check_flat(own);
        Datum all = JsonbPGetDatum(own);
        if (session)
            all = DirectFunctionCall2(
                jsonb_concat, DirectFunctionCall1(jsonb_in, CStringGetDatum(session)), all);
        Jsonb *result = DatumGetJsonbP(all);
        merged = cstring_to_text(JsonbToCString(nullptr, &result->root, VARSIZE(result)));
    }
    check_length(view_of(merged), "headers object", max_headers_length);
    check_encoding(view_of(merged), "headers object");
    return merged;
}

static pg_uuid_t *new_event_id() {
    // Drawn by the page: one call to the random source serves 64 ids. A forked backend begins with none.
    static unsigned char pool[64 * 8];
    static std::size_t used = sizeof pool;
    if (used == sizeof pool) {
        if (!pg_strong_random(pool, sizeof pool))
            ereport(ERROR, errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values"));
        used = 0;
    }
    auto *id = static_cast<pg_uuid_t *>(palloc(sizeof(pg_uuid_t)));
    make_uuid7(unix_us(GetCurrentTimestamp()), pool + used, id->data);
    used += 8;
    return id;
}

// A warning once in a session: the event is safe, but nobody will publish it.
static void warn_without_worker() {
    static bool warned = false;
    if (warned)
        return;
    const storage::relations &relations = storage::require();
    if (relations.fit != version::fit::same) {
        ereport(WARNING, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("events are recorded but not published: %s", version::message(relations.version)),
                errhint("%s", version::hint(relations.fit)));
        warned = true;
        return;
    }
    switch (shared::worker_outlook(MyDatabaseId)) {
    case shared::outlook::not_loaded:
        ereport(WARNING, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("events are recorded but not published: outbox is not preloaded"),
                errhint("Add outbox to shared_preload_libraries and restart the server."));
        break;
    case shared::outlook::no_process:
        ereport(WARNING, errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
                errmsg("events are recorded but not published: no background worker is free"),
                errhint("Increase max_worker_processes and restart the server."));
        break;
    case shared::outlook::no_slot:
        ereport(WARNING, errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
                errmsg("events are recorded but not published: all outbox workers are in use"),
                errhint("Increase outbox.max_workers and restart the server."));
        break;
    case shared::outlook::good:
        return;
    }
    warned = true;
}

// The functions of version 1.0 call with fewer arguments, until ALTER EXTENSION UPDATE.
static bool is_delayed(FunctionCallInfo fcinfo, TimestampTz &deliver_at) {
    if (PG_NARGS() <= deliver_at_arg || PG_ARGISNULL(deliver_at_arg))
        return false;
    deliver_at = PG_GETARG_TIMESTAMPTZ(deliver_at_arg);
    return is_later(deliver_at);
}

// Null where there is none.
static text *dedupe_key(FunctionCallInfo fcinfo) {
    if (PG_NARGS() <= dedupe_key_arg || PG_ARGISNULL(dedupe_key_arg))
        return nullptr;
    text *key = PG_GETARG_TEXT_PP(dedupe_key_arg);
    if (view_of(key).empty())
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("dedupe key must not be empty"),
                errhint("Pass null to emit the event in any case."));
    check_length(view_of(key), "dedupe key", max_dedupe_key_length);
    return key;
}

static Datum emit(FunctionCallInfo fcinfo, text *(*read_payload)(Datum)) {
    using namespace storage;

    if (PG_ARGISNULL(event_type_arg))
        refuse_null("event type");
    if (PG_ARGISNULL(payload_arg))
        refuse_null("payload");
    if (PG_ARGISNULL(version_arg))
        refuse_null("version");
    PreventCommandIfReadOnly("outbox.emit()");
    PreventCommandIfParallelMode("outbox.emit()");
    PreventCommandDuringRecovery("outbox.emit()");

    Datum values[event_column::count];
    bool nulls[event_column::count] = {};

    text *event_type = check_event_type(PG_GETARG_TEXT_PP(event_type_arg));
    values[event_column::event_type] = PointerGetDatum(event_type);

    if (PG_ARGISNULL(topic_arg)) {
        check_topic(default_topic(view_of(event_type)));
        nulls[event_column::topic] = true;
    } else {
        text *topic = PG_GETARG_TEXT_PP(topic_arg);
        check_topic(view_of(topic));
        values[event_column::topic] = PointerGetDatum(topic);
    }

    values[event_column::payload] = PointerGetDatum(read_payload(PG_GETARG_DATUM(payload_arg)));

    const struct { argument from; int to; const char *name; } names[] = {
        {aggregate_id_arg, event_column::aggregate_id, "aggregate id"},
        {aggregate_type_arg, event_column::aggregate_type, "aggregate type"}};
    for (const auto &name : names) {
        nulls[name.to] = PG_ARGISNULL(name.from);
        if (nulls[name.to])
            continue;
        text *value = PG_GETARG_TEXT_PP(name.from);
        check_length(view_of(value), name.name, max_aggregate_length);
        check_encoding(view_of(value), name.name);
        values[name.to] = PointerGetDatum(value);
    }

    int32 version = PG_GETARG_INT32(version_arg);
    if (version < 1)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("version must be at least 1"));
    values[event_column::version] = Int32GetDatum(version);

    text *headers =
        merge_headers(PG_ARGISNULL(headers_arg) ? nullptr : PG_GETARG_JSONB_P(headers_arg));
    nulls[event_column::headers] = headers == nullptr;
    values[event_column::headers] = PointerGetDatum(headers);

    TimestampTz occurred_at = PG_ARGISNULL(occurred_at_arg) ? GetCurrentTimestamp()
                                                            : PG_GETARG_TIMESTAMPTZ(occurred_at_arg);
    if (occurred_at < first_instant || occurred_at > last_instant)
        ereport(ERROR, errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
                errmsg("occurred_at is out of range"),
                errdetail("It must be finite, from the year 1 to the year 9999 in UTC."));
    values[event_column::occurred_at] = TimestampTzGetDatum(occurred_at);

    pg_uuid_t *event_id =
        PG_ARGISNULL(event_id_arg) ? new_event_id() : PG_GETARG_UUID_P(event_id_arg);
    values[event_column::event_id] = UUIDPGetDatum(event_id);
    nulls[event_column::sink_id] = nulls[event_column::recorded_at] = true;
    values[event_column::anchor] = Int32GetDatum(anchor());

    TimestampTz deliver_at;
    bool delayed = is_delayed(fcinfo, deliver_at);
    if (text *key = dedupe_key(fcinfo)) {
        auto *first = static_cast<pg_uuid_t *>(palloc(sizeof(pg_uuid_t)));
        if (!claim(key, event_id, *first))
            return UUIDPGetDatum(first);
    }
    if (delayed) {
        append_delayed(values, nulls, deliver_at);
        warn_without_worker();
        return UUIDPGetDatum(event_id);
    }
    record_event(values, nulls);
    OUTBOX_CRASH_POINT("inserted");

    warn_without_worker();
    return UUIDPGetDatum(event_id);
}

extern "C" {
PG_FUNCTION_INFO_V1(outbox_emit_text);
PG_FUNCTION_INFO_V1(outbox_emit_json);
PG_FUNCTION_INFO_V1(outbox_emit_jsonb);

PGDLLEXPORT Datum outbox_emit_text(PG_FUNCTION_ARGS) { return emit(fcinfo, payload_from_text); }
PGDLLEXPORT Datum outbox_emit_json(PG_FUNCTION_ARGS) { return emit(fcinfo, payload_from_json); }
PGDLLEXPORT Datum outbox_emit_jsonb(PG_FUNCTION_ARGS) { return emit(fcinfo, payload_from_jsonb); }
}

} // namespace outbox

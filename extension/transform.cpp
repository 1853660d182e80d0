#include "extension/transform.hpp"

#include "bgworker/batch.hpp"
#include "bgworker/entry.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"
#include "extension/sinks.hpp"
#include "extension/storage.hpp"
#include "extension/version.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

extern "C" {
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "utils/timeout.h"
}

namespace outbox::transform {

constexpr int time_limit = 1000; // ms
constexpr int most_strikes = 5;
constexpr std::size_t max_name_length = 2 * NAMEDATALEN;

// -- the function

struct found_function {
    Oid oid, owner;
    char *name; // as in function::name
};

static found_function find(const char *given) {
    std::string_view text = given;
    for (std::string_view arguments : {"(jsonb)", "(pg_catalog.jsonb)"})
        if (text.ends_with(arguments))
            text.remove_suffix(arguments.size());
    // Without a look at the search path, and at the rights of whoever asks: they are checked where it is attached.
    List *names = textToQualifiedNameList(cstring_to_text_with_len(text.data(), static_cast<int>(text.size())));
    if (list_length(names) != 2)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("transform \"%s\" must be a function with its schema", printable(given)),
                errhint("For example 'app.public_view'."));
    const char *schema_name = strVal(linitial(names)), *name = strVal(lsecond(names));
    found_function found = {};
    found.name = psprintf("%s.%s", quote_identifier(schema_name), quote_identifier(pstrdup(name)));
    Oid schema = get_namespace_oid(schema_name, true), argument = JSONBOID;
    HeapTuple tuple = !OidIsValid(schema) ? nullptr
                                          : SearchSysCache3(PROCNAMEARGSNSP, CStringGetDatum(name),
                                                            PointerGetDatum(buildoidvector(&argument, 1)), ObjectIdGetDatum(schema));
    if (!HeapTupleIsValid(tuple))
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_FUNCTION), errmsg("function %s(jsonb) does not exist", found.name),
                errhint("A transform takes one argument of type jsonb and returns jsonb."));
    auto *form = reinterpret_cast<Form_pg_proc>(GETSTRUCT(tuple));
    found.oid = form->oid;
    found.owner = form->proowner;
    bool fits = form->prokind == PROKIND_FUNCTION && form->prorettype == JSONBOID && !form->proretset;
    bool immutable = form->provolatile == PROVOLATILE_IMMUTABLE;
    ReleaseSysCache(tuple);
    if (!fits)
        ereport(ERROR, errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("function %s(jsonb) does not return jsonb", found.name),
                errhint("A transform takes one argument of type jsonb and returns jsonb."));
    if (!immutable)
        ereport(ERROR, errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("function %s(jsonb) is not IMMUTABLE", found.name),
                errdetail("Events that are sent again or verified must come out as they did the first time."),
                errhint("A transform may depend on nothing but the event. If that is so, declare it IMMUTABLE."));
    return found;
}

// -- a call

static volatile sig_atomic_t timed_out = false;
static volatile sig_atomic_t strikes = 0;
static TimeoutId limit = MAX_TIMEOUTS; // not registered yet

static void end_call() {
    timed_out = true;
    // A function that catches its cancellation again and again costs this process, not the database its vacuum.
    if (++strikes > most_strikes)
        ProcDiePending = true;
    QueryCancelPending = true;
    InterruptPending = true;
    SetLatch(MyLatch);
}

static void begin_limit() {
    if (limit == MAX_TIMEOUTS)
        limit = RegisterTimeout(USER_TIMEOUT, end_call);
    timed_out = false;
    strikes = 0;
    // again and again: it must not be able to catch it for good
    enable_timeout_every(limit, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), time_limit), time_limit);
}

static void end_limit() {
    disable_timeout(limit, false);
    QueryCancelPending = false; // it may have come just too late
}

static void put_text(StringInfo out, const char *name, bool present, std::string_view value) {
    appendStringInfo(out, ", \"%s\": ", name);
    if (present)
        escape_json(out, pnstrdup(value.data(), value.size()));
    else
        appendStringInfoString(out, "null");
}

// The event as one jsonb, its payload and headers in it as such.
static Datum envelope(const event_row &event) {
    StringInfoData out;
    initStringInfo(&out);
    char id[36], time[32];
    print_uuid(event.event_id->data, id);
    std::size_t length = print_rfc3339(unix_us(event.occurred_at), time);
    appendStringInfo(&out, "{\"event_id\": \"%.36s\", \"version\": %d, \"occurred_at\": \"%.*s\"", id, event.version,
                     static_cast<int>(length), time);
    put_text(&out, "event_type", true, event.event_type);
    put_text(&out, "topic", true, event.topic);
    put_text(&out, "aggregate_type", event.has_aggregate_type, event.aggregate_type);
    put_text(&out, "aggregate_id", event.has_aggregate_id, event.aggregate_id);
    auto put_json = [&](const char *name, std::string_view value) {
        appendStringInfo(&out, ", \"%s\": ", name);
        appendBinaryStringInfo(&out, value.data(), static_cast<int>(value.size()));
    };
    put_json("headers", event.has_headers ? event.headers : std::string_view("null"));
    put_json("payload", event.payload);
    appendStringInfoChar(&out, '}');
    return DirectFunctionCall1(jsonb_in, CStringGetDatum(out.data));
}

// Null when the function says so.
static char *call(const function &used, const event_row &event) {
    found_function found = find(used.name);
    if (strcmp(GetUserNameFromId(found.owner, false), used.owner) != 0)
        ereport(ERROR, errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                errmsg("function %s(jsonb) does not belong to role \"%s\" any more", found.name, used.owner),
                errhint("If it is the right one, attach it again with outbox.alter_sink()."));
    Datum argument = envelope(event);
    XactReadOnly = true; // up to the end of the subtransaction, in which it cannot be taken back
    int level = NewGUCNestLevel();
    set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
    Oid user;
    int security;
    GetUserIdAndSecContext(&user, &security);
    SetUserIdAndSecContext(found.owner, security | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
    PushActiveSnapshot(GetTransactionSnapshot());
    FmgrInfo function;
    fmgr_info(found.oid, &function);
    LOCAL_FCINFO(fcinfo, 1);
    InitFunctionCallInfoData(*fcinfo, &function, 1, InvalidOid, nullptr, nullptr);
    fcinfo->args[0] = {argument, false};
    Datum value = FunctionCallInvoke(fcinfo);
    char *text = nullptr;
    if (!fcinfo->isnull) {
        Jsonb *jsonb = DatumGetJsonbP(value);
        text = JsonbToCString(nullptr, &jsonb->root, VARSIZE(jsonb));
    }
    PopActiveSnapshot();
    SetUserIdAndSecContext(user, security);
    AtEOXact_GUC(false, level);
    if (text && strlen(text) > static_cast<std::size_t>(settings::max_payload_size))
        ereport(ERROR, errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("what function %s(jsonb) returns is too large", used.name));
    return text;
}

result apply(const function &used, const event_row &event, bool limited) {
    MemoryContext caller = CurrentMemoryContext;
    MemoryContext own = AllocSetContextCreate(caller, "outbox transform", ALLOCSET_DEFAULT_SIZES);
    MemoryContextSwitchTo(own);
    result done = {outcome::failed, {}, nullptr};
    pg_subtransaction(
        [&] {
            if (limited)
                begin_limit();
            char *text = call(used, event);
            if (limited)
                end_limit();
            done.what = text ? outcome::given : outcome::withheld;
            if (text) {
                char *kept = MemoryContextStrdup(caller, text);
                done.payload = kept;
            }
        },
        [&](ErrorData *error) {
            if (limited)
                end_limit();
            else if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
                ReThrowError(error); // it was meant for the query
            MemoryContextSwitchTo(caller);
            done = {outcome::failed, {},
                    limited && timed_out ? psprintf("transform %s took longer than %d ms", used.name, time_limit)
                                         : psprintf("transform %s: %s", used.name, error->message)};
        });
    MemoryContextSwitchTo(caller);
    MemoryContextDelete(own);
    return done;
}

extern "C" {

// May the caller attach it? Its name as it is kept, and its owner.
PG_FUNCTION_INFO_V1(outbox_check_transform);
PGDLLEXPORT Datum outbox_check_transform(PG_FUNCTION_ARGS) {
    TupleDesc description;
    if (get_call_result_type(fcinfo, nullptr, &description) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "return type must be a row type");
    char *given = text_to_cstring(PG_GETARG_TEXT_PP(0));
    // In an index expression that maintenance evaluates, the caller would be taken for whoever maintains.
    if (InSecurityRestrictedOperation())
        ereport(ERROR, errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                errmsg("cannot give a sink a transform within a security-restricted operation"));
    found_function found = find(given);
    if (strlen(found.name) > max_name_length)
        ereport(ERROR, errcode(ERRCODE_NAME_TOO_LONG), errmsg("the name of the transform is too long"));
    Oid caller = GetOuterUserId();
#if PG_VERSION_NUM >= 160000
    bool may_execute = object_aclcheck(ProcedureRelationId, found.oid, caller, ACL_EXECUTE) == ACLCHECK_OK;
#else
    bool may_execute = pg_proc_aclcheck(found.oid, caller, ACL_EXECUTE) == ACLCHECK_OK;
#endif
    if (!may_execute || !has_privs_of_role(caller, found.owner))
        ereport(ERROR, errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("permission denied for transform %s", found.name),
                errdetail("It runs with the rights of its owner, role \"%s\".", GetUserNameFromId(found.owner, false)),
                errhint("Only a superuser, or a member of that role who may execute the function, can give it to a sink."));
    Datum values[2] = {CStringGetTextDatum(found.name), CStringGetTextDatum(GetUserNameFromId(found.owner, false))};
    bool nulls[2] = {};
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(description), values, nulls)));
}

// Does the sink take the event, if it is in this tick (null: one to come)? As outbox.takes(), and by the transform, too. One that
// fails does not leave it out. What was appended again for this sink alone has passed the filters before.
PG_FUNCTION_INFO_V1(outbox_passes);
PGDLLEXPORT Datum outbox_passes(PG_FUNCTION_ARGS) {
    enum { sink, ms, event_id, event_type, topic, aggregate_type, aggregate_id, version, occurred_at, headers, payload, only_sink };
    struct known_sink {
        int id;
        sinks::filters filters;
        known_sink *next;
    };
    for (int needed : {+sink, +event_id, +event_type, +topic, +version, +occurred_at, +payload})
        if (PG_ARGISNULL(needed))
            PG_RETURN_NULL();
    int sink_id = PG_GETARG_INT32(sink);
    auto *first = static_cast<known_sink *>(fcinfo->flinfo->fn_extra);
    auto *known = first;
    while (known && known->id != sink_id)
        known = known->next;
    if (!known) {
        MemoryContext context = fcinfo->flinfo->fn_mcxt;
        known = new (MemoryContextAllocZero(context, sizeof(known_sink))) known_sink;
        known->id = sink_id;
        known->filters.load(sink_id, context);
        known->next = first;
        fcinfo->flinfo->fn_extra = known;
    }
    const sinks::filter *filter = known->filters.at(PG_ARGISNULL(ms) ? PG_INT64_MAX : PG_GETARG_INT64(ms));
    if (!filter)
        PG_RETURN_BOOL(PG_ARGISNULL(only_sink) || PG_GETARG_INT32(only_sink) == sink_id);
    event_row event = {};
    event.event_type = view_of(PG_GETARG_TEXT_PP(event_type));
    event.topic = view_of(PG_GETARG_TEXT_PP(topic));
    if (PG_ARGISNULL(only_sink) ? !filter->takes(event.event_type, event.topic) : PG_GETARG_INT32(only_sink) != sink_id)
        PG_RETURN_BOOL(false);
    if (!filter->transform_function().name)
        PG_RETURN_BOOL(true);
    auto text_of = [&](int number, bool &present) {
        present = !PG_ARGISNULL(number);
        return present ? view_of(PG_GETARG_TEXT_PP(number)) : std::string_view();
    };
    bool has_payload;
    event.event_id = PG_GETARG_UUID_P(event_id);
    event.version = PG_GETARG_INT32(version);
    event.occurred_at = PG_GETARG_TIMESTAMPTZ(occurred_at);
    event.aggregate_type = text_of(aggregate_type, event.has_aggregate_type);
    event.aggregate_id = text_of(aggregate_id, event.has_aggregate_id);
    event.headers = text_of(headers, event.has_headers);
    event.payload = text_of(payload, has_payload);
    PG_RETURN_BOOL(apply(filter->transform_function(), event, MyBackendType == B_BG_WORKER).what != outcome::withheld);
}
}

} // namespace outbox::transform

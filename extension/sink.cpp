// What create_sink(), alter_sink() and drop_sink() cannot say in SQL.

#include "bgworker/shared.hpp"
#include "common/pattern.hpp"
#include "common/url.hpp"
#include "extension/event_type.hpp"
#include "extension/pg.hpp"
#include "extension/settings.hpp"
#include "extension/sinks.hpp"
#include "extension/storage.hpp"
#include "extension/wake.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

constexpr std::size_t max_url_length = 500; // see state::sink_row
constexpr std::size_t max_stream_length = 120;

static bool is_key_character(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("_-.:{}/@+#", c) != nullptr;
}

static void check_stream(std::string_view stream) {
    auto topic = stream.find("%t");
    bool good = topic != std::string_view::npos && stream.size() <= max_stream_length;
    for (std::size_t i = 0; i < stream.size(); ++i)
        good = good && (is_key_character(stream[i]) || i == topic || i == topic + 1);
    if (!good)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                errmsg("invalid stream template \"%s\"", printable(stream)),
                errdetail("A stream template has %%t once, where the topic goes, and otherwise A-Z, a-z, 0-9 and any of "
                          "\"_-.:{}/@+#\", at most %zu bytes.",
                          max_stream_length),
                errhint("For example \"audit:{%%t}\"."));
    if (stream.starts_with("outbox:{%t}:"))
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                errmsg("invalid stream template \"%s\"", printable(stream)),
                errdetail("What consumers keep beside the stream \"outbox:{%%t}\" has such names."),
                errhint("For example \"audit:{%%t}\"."));
    if (stream.starts_with("outbox:sink:"))
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                errmsg("invalid stream template \"%s\"", printable(stream)),
                errdetail("Keys that begin with \"outbox:sink:\" are outbox's own."));
}

// Can the two name the same stream, for whatever topics? Both are read at once, character by character, as two automata are: a
// state is a place in a template, and the place behind %t may be where a topic goes on.
static bool overlap(std::string_view a, std::string_view b) {
    constexpr std::size_t size = max_stream_length + 1;
    static bool seen[size][2][size][2]; // place, and whether a topic has begun that may go on
    struct state {
        std::size_t a;
        bool in_a;
        std::size_t b;
        bool in_b;
    };
    static state waiting[size * size * 4];
    std::size_t count = 0;
    memset(seen, 0, sizeof seen);
    auto reach = [&](const state &next) {
        bool &known = seen[next.a][next.in_a][next.b][next.in_b];
        if (!known)
            waiting[count++] = next;
        known = true;
    };
    // What may come next: a character of the template, or any of a topic.
    struct step {
        char literal; // 0: any of a topic
        std::size_t to;
        bool in;
    };
    auto steps = [](std::string_view text, std::size_t at, bool in, step *found) {
        int number = 0;
        if (in)
            found[number++] = {0, at, true};
        if (at < text.size() && text.substr(at, 2) == "%t")
            found[number++] = {0, at + 2, true};
        else if (at < text.size())
            found[number++] = {text[at], at + 1, false};
        return number;
    };
    auto in_topic = [](char c) { return c == '.' || is_topic(std::string_view(&c, 1)); };
    reach({0, false, 0, false});
    while (count > 0) {
        state now = waiting[--count];
        if (now.a == a.size() && now.b == b.size())
            return true;
        step of_a[2], of_b[2];
        int number_a = steps(a, now.a, now.in_a, of_a), number_b = steps(b, now.b, now.in_b, of_b);
        for (int i = 0; i < number_a; ++i)
            for (int k = 0; k < number_b; ++k) {
                char x = of_a[i].literal, y = of_b[k].literal;
                if (x && y ? x == y : in_topic(x ? x : y) || (!x && !y))
                    reach({of_a[i].to, of_a[i].in, of_b[k].to, of_b[k].in});
            }
    }
    return false;
}

static text *argument(FunctionCallInfo fcinfo, int number, const char *name) {
    if (PG_ARGISNULL(number))
        ereport(ERROR, errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", name));
    return PG_GETARG_TEXT_PP(number);
}

struct parsed_url {
    char endpoint[600];
    bool has_password, has_files;
    std::size_t length;
};

static parsed_url parse(const char *given) {
    parsed_url result = {};
    char reason[128];
    result.length = strlen(given);
    bool good = cpp_call([&] {
        redis_url url;
        std::string error;
        bool parsed = parse_redis_url(given, url, error);
        result.has_password = !url.password.empty() || !url.sentinel_password.empty();
        result.has_files = !url.files.ca.empty() || !url.files.certificate.empty() || !url.files.key.empty();
        strlcpy(reason, error.c_str(), sizeof reason);
        reason[0] = static_cast<char>(pg_toupper(static_cast<unsigned char>(reason[0])));
        strlcpy(result.endpoint, (url.endpoint() + "/" + std::to_string(url.database)).c_str(), sizeof result.endpoint);
        return parsed;
    });
    // neither message quotes it: there may be a password in it
    if (!good)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid URL of a sink"), errdetail("%s.", reason),
                errhint("Use redis://[user@]host[:port][/db], unix:///path[?db=N], rediss://... or redis+sentinel://..."));
    return result;
}

extern "C" {

PG_FUNCTION_INFO_V1(outbox_check_name);
PGDLLEXPORT Datum outbox_check_name(PG_FUNCTION_ARGS) {
    std::string_view name = view_of(argument(fcinfo, 0, "name"));
    if (name.size() >= NAMEDATALEN || count_pattern_segments(name) == 0 || name.find('*') != std::string_view::npos)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid sink name \"%s\"", printable(name)),
                errdetail("The name of a sink has one or more segments of A-Z, a-z, 0-9, \"_\" and \"-\", separated by dots, and "
                          "at most %d bytes.",
                          NAMEDATALEN - 1));
    PG_RETURN_VOID();
}

// Is this a URL that a sink of its own may have?
PG_FUNCTION_INFO_V1(outbox_check_url);
PGDLLEXPORT Datum outbox_check_url(PG_FUNCTION_ARGS) {
    parsed_url url = parse(text_to_cstring(argument(fcinfo, 0, "url")));
    if (url.has_password)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("the URL of a sink must not have a password"),
                errdetail("It would be shown to everybody who may look at outbox.sink, and be in every dump."),
                errhint("Put the password into the file that outbox.sink_password_file names."));
    if (url.has_files && !superuser_arg(GetOuterUserId()))
        ereport(ERROR, errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                errmsg("only superusers may give the URL of a sink files of the server"),
                errhint("Without sslrootcert the certificate authorities of the server's system are trusted."));
    if (url.length > max_url_length)
        ereport(ERROR, errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("the URL of a sink is too long"),
                errdetail("At most %zu bytes are allowed.", max_url_length));
    PG_RETURN_VOID();
}

// Where a URL leads: host and port or path, and the database. Null: outbox.redis_url.
PG_FUNCTION_INFO_V1(outbox_redis_endpoint);
PGDLLEXPORT Datum outbox_redis_endpoint(PG_FUNCTION_ARGS) {
    parsed_url url = parse(PG_ARGISNULL(0) ? settings::redis_url() : text_to_cstring(PG_GETARG_TEXT_PP(0)));
    PG_RETURN_TEXT_P(cstring_to_text(url.endpoint));
}

PG_FUNCTION_INFO_V1(outbox_check_stream);
PGDLLEXPORT Datum outbox_check_stream(PG_FUNCTION_ARGS) {
    check_stream(view_of(argument(fcinfo, 0, "stream")));
    PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_streams_overlap);
PGDLLEXPORT Datum outbox_streams_overlap(PG_FUNCTION_ARGS) {
    std::string_view one = view_of(PG_GETARG_TEXT_PP(0)), other = view_of(PG_GETARG_TEXT_PP(1));
    check_stream(one);
    check_stream(other);
    PG_RETURN_BOOL(overlap(one, other));
}

PG_FUNCTION_INFO_V1(outbox_check_patterns);
PGDLLEXPORT Datum outbox_check_patterns(PG_FUNCTION_ARGS) {
    bool topics = strcmp(text_to_cstring(argument(fcinfo, 0, "name")), "topics") == 0;
    if (PG_ARGISNULL(1))
        PG_RETURN_VOID();
    const char *name = topics ? "topics" : "event_types";
    Datum *values;
    bool *nulls;
    int count;
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &count);
    if (count == 0)
        ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be empty", name),
                errhint("A sink takes all of them where nothing is said, or with '{*}'."));
    for (int i = 0; i < count; ++i) {
        if (nulls[i])
            ereport(ERROR, errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not have a null in it", name));
        std::string_view pattern = view_of(DatumGetTextPP(values[i]));
        std::size_t segments = count_pattern_segments(pattern);
        bool good = segments > 0 && pattern.size() <= (topics ? max_topic_length : max_event_type_length);
        if (!good || (!topics && segments < 2 && pattern != "*"))
            ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                    errmsg("invalid pattern \"%s\" in %s", printable(pattern), name),
                    errdetail("A pattern is %s in which any segment may be \"*\"; as the last segment that stands for one or "
                              "more.",
                              topics ? "a topic" : "an event type"),
                    errhint(topics ? "For example \"billing\" or \"billing.*\"." : "For example \"billing.*\" or \"*.*.created\"."));
    }
    PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_stop_worker);
PGDLLEXPORT Datum outbox_stop_worker(PG_FUNCTION_ARGS) {
    int sink_id = PG_GETARG_INT32(0);
    restart_at_end();
    if (!shared::stop_worker(MyDatabaseId, sink_id))
        ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE), errmsg("the worker of sink %d does not end", sink_id),
                errhint("Try again."));
    PG_RETURN_VOID();
}

// Does the sink take such an event, if it is in this tick? A null tick: one to come.
PG_FUNCTION_INFO_V1(outbox_takes);
PGDLLEXPORT Datum outbox_takes(PG_FUNCTION_ARGS) {
    if (PG_ARGISNULL(0) || PG_ARGISNULL(2) || PG_ARGISNULL(3))
        PG_RETURN_NULL();
    struct cache {
        int sink_id;
        sinks::filters filters;
    };
    auto *known = static_cast<cache *>(fcinfo->flinfo->fn_extra);
    int sink_id = PG_GETARG_INT32(0);
    if (!known || known->sink_id != sink_id) {
        MemoryContext context = fcinfo->flinfo->fn_mcxt;
        known = new (MemoryContextAllocZero(context, sizeof(cache))) cache;
        known->sink_id = sink_id;
        known->filters.load(sink_id, context);
        fcinfo->flinfo->fn_extra = known;
    }
    const sinks::filter *filter = known->filters.at(PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1));
    PG_RETURN_BOOL(!filter || filter->takes(view_of(PG_GETARG_TEXT_PP(2)), view_of(PG_GETARG_TEXT_PP(3))));
}
}

} // namespace outbox

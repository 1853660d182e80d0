#include "extension/settings.hpp"
#include "common/url.hpp"

#include "extension/guard.hpp"
#include "extension/json.hpp"

#include <climits>

namespace outbox::settings {

bool enabled = true;
static char *masked_redis_url = nullptr;
char *redis_password_file = nullptr;
char *sink_password_file = nullptr;
char *headers = nullptr;
int retention = 7 * 24 * 3600;
int retention_size = 0;
int batch_size = 10000;
int linger = 3;
int poll_interval = 1000;
int retry_min = 100;
int retry_max = 30000;
int max_attempts = 10;
int max_payload_size = 1024 * 1024;
int connect_timeout = 5000;
int response_timeout = 5000;
int lease_timeout = 10000;
int consumer_interval = 5000;
int max_consumer_groups = 2000;
int max_workers = 16;

// The real URL. What the setting itself holds, and so everything that shows it, has the password masked.
static char *real_redis_url = nullptr;

// Memory as the settings' own: guc.c frees it.
static char *keep(const char *text) {
    std::size_t size = strlen(text) + 1;
#if PG_VERSION_NUM >= 160000
    void *copy = guc_malloc(LOG, size);
#else
    void *copy = malloc(size);
#endif
    return static_cast<char *>(copy ? memcpy(copy, text, size) : nullptr);
}

static void let_go(char *text) {
#if PG_VERSION_NUM >= 160000
    guc_free(text);
#else
    free(text);
#endif
}

// The standard message would quote the value, and with it the password.
static bool check_redis_url(char **value, void **extra, GucSource) {
    char reason[128];
    bool good = cpp_call([&] {
        outbox::redis_url url;
        std::string error;
        bool parsed = parse_redis_url(*value ? *value : "", url, error);
        strlcpy(reason, error.c_str(), sizeof reason);
        reason[0] = static_cast<char>(pg_toupper(static_cast<unsigned char>(reason[0])));
        return parsed;
    });
    if (good) {
        char *real = keep(*value);
        char *shown = cpp_call([&] { return keep(mask_passwords(*value).c_str()); });
        if (!real || !shown)
            return false;
        let_go(*value);
        *value = shown;
        *extra = real;
        return true;
    }
    GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
    GUC_check_errmsg("invalid value for parameter \"outbox.redis_url\"");
    GUC_check_errdetail("%s.", reason);
    GUC_check_errhint("Use redis://[user:password@]host[:port][/db], rediss:// for TLS, "
                      "redis+sentinel://host[:port],.../master[/db] or unix:///path[?db=N].");
    return false;
}

static void assign_redis_url(const char *, void *extra) { real_redis_url = static_cast<char *>(extra); }

const char *redis_url() { return real_redis_url; }
const char *shown_redis_url() { return masked_redis_url; }

static bool check_headers(char **value, void **, GucSource) {
    if (!*value || !**value || is_flat_object(*value))
        return true;
    GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
    GUC_check_errmsg("invalid value for parameter \"outbox.headers\"");
    GUC_check_errdetail("Headers are one flat JSON object: no array or object inside.");
    GUC_check_errhint("For example: SET LOCAL outbox.headers = '{\"correlation_id\": \"42\"}'.");
    return false;
}

const char *session_headers() { return headers && *headers ? headers : nullptr; }

// One line a setting; the text is what pg_settings shows.
static void integer(const char *name, const char *text, int *variable, int low, int high, int unit,
                    GucContext context = PGC_SIGHUP) {
    DefineCustomIntVariable(name, text, nullptr, variable, *variable, low, high, context, unit,
                            nullptr, nullptr, nullptr);
}

void define() {
    DefineCustomBoolVariable("outbox.enabled", "Dispatches events; when off they are kept.", nullptr,
                             &enabled, true, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomStringVariable(
        "outbox.redis_url", "Where the sink \"default\" appends its events.",
        "redis://, rediss:// (TLS), redis+sentinel://, rediss+sentinel:// or unix://.", &masked_redis_url,
        "redis://127.0.0.1:6379/0", PGC_SIGHUP, GUC_SUPERUSER_ONLY, check_redis_url, assign_redis_url, nullptr);
    DefineCustomStringVariable("outbox.redis_password_file",
                               "File with the Redis password; only the server's user may read it.",
                               "Takes the place of a password in outbox.redis_url.",
                               &redis_password_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr,
                               nullptr, nullptr);
    DefineCustomStringVariable("outbox.sink_password_file",
                               "File with the passwords of other sinks; only the server's user may read it.",
                               "Lines of host:port:user:password.", &sink_password_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
                               nullptr, nullptr, nullptr);
    DefineCustomStringVariable("outbox.headers", "Headers added to every event that is emitted.",
                               "One flat JSON object, usually set with SET LOCAL.", &headers, "",
                               PGC_USERSET, 0, check_headers, nullptr, nullptr);
    integer("outbox.retention", "How long events are kept after they were emitted.", &retention, 1,
            INT_MAX / 1000, GUC_UNIT_S);
    integer("outbox.retention_size", "Size of stored events beyond which the oldest are dropped before outbox.retention; 0: no bound.",
            &retention_size, 0, INT_MAX, GUC_UNIT_KB);
    integer("outbox.batch_size", "Events after which a batch ends while a sink is behind.",
            &batch_size, 100, 1000000, 0);
    integer("outbox.linger", "Least time between two batches under load, so that small ones are joined.",
            &linger, 0, 100, GUC_UNIT_MS);
    integer("outbox.poll_interval", "Longest time between two looks for new events.",
            &poll_interval, 10, 60000, GUC_UNIT_MS);
    integer("outbox.retry_min", "First delay before a sink or stream is tried again.", &retry_min,
            10, 60000, GUC_UNIT_MS);
    integer("outbox.retry_max", "Longest delay before a sink or stream is tried again.", &retry_max,
            10, 3600000, GUC_UNIT_MS);
    integer("outbox.max_attempts", "Attempts before an event that its stream refuses is a dead letter.",
            &max_attempts, 1, 1000000, 0);
    integer("outbox.max_payload_size", "Largest payload that emit accepts.", &max_payload_size, 1,
            256 * 1024 * 1024, GUC_UNIT_BYTE, PGC_SUSET);
    integer("outbox.connect_timeout", "Longest time to look up and connect to Redis.",
            &connect_timeout, 100, 60000, GUC_UNIT_MS);
    integer("outbox.response_timeout", "Longest time without a byte to or from Redis while it is asked.",
            &response_timeout, 100, 600000, GUC_UNIT_MS);
    integer("outbox.lease_timeout",
            "Time after its last sign of life when another server's worker counts as gone.",
            &lease_timeout, 1000, 600000, GUC_UNIT_MS);
    integer("outbox.consumer_interval", "Time between two looks at the consumer groups of a stream, and two times of trimming it.",
            &consumer_interval, 100, 3600000, GUC_UNIT_MS);
    if (process_shared_preload_libraries_in_progress) {
        integer("outbox.max_consumer_groups", "Most consumer groups of all streams that outbox.stat_consumer shows.",
                &max_consumer_groups, 0, 100000, 0, PGC_POSTMASTER);
        integer("outbox.max_workers", "Most workers in the cluster: one for each database and sink.",
                &max_workers, 1, 1024, 0, PGC_POSTMASTER);
    }
    MarkGUCPrefixReserved("outbox");
}

} // namespace outbox::settings

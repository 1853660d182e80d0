#include "ctl/doctor.hpp"

#include "ctl/table.hpp"

namespace outbox::ctl {

constexpr const char *ask_a_superuser = "Run this as a superuser, or as a member of pg_monitor.";

static void examine_settings(database &db, report &report) {
    json row = db.row(R"(
        SELECT pg_catalog.current_setting('server_version') AS version, pg_catalog.pg_is_in_recovery() AS standby,
               pg_catalog.current_setting('outbox.max_workers', true) AS max_workers,
               pg_catalog.current_setting('outbox.enabled', true) AS enabled,
               pg_catalog.current_setting('fsync') AS fsync, pg_catalog.current_setting('full_page_writes') AS full_page_writes)");
    auto version = "PostgreSQL " + row.at("version").get<std::string>();
    if (db.version() < 150000)
        report.error("version", version + " is too old", "outbox needs PostgreSQL 15 or later.");
    else
        report.ok("version", version);
    // this setting is only made when the library is loaded at server start
    if (row.at("max_workers").is_null())
        report.error("preloaded", "outbox is not preloaded: events are recorded and not published",
                     "Add outbox to shared_preload_libraries and restart the server.");
    else
        report.ok("preloaded", "outbox is in shared_preload_libraries");
    if (row.at("standby").get<bool>())
        report.warning("standby", "the server is a standby: it publishes nothing",
                       "Ask the primary, unless this is the server that you mean.");
    if (row.at("enabled") == "off")
        report.warning("enabled", "outbox.enabled is off: events are kept and not sent", "Set it to on and reload.");
    if (row.at("fsync") == "off")
        report.error("fsync", "fsync is off: a crash of the machine can take back what was published", "Set fsync = on.");
    else if (row.at("full_page_writes") == "off")
        report.warning("fsync", "full_page_writes is off", "Set it to on unless the storage writes pages as a whole.");
    else
        report.ok("fsync", "fsync and full_page_writes are on");
}

// Whoever takes a slot of max_worker_processes has a type of his own here.
static void examine_workers(database &db, report &report) {
    json row = db.row(R"(
        SELECT pg_catalog.current_setting('max_worker_processes')::int AS most,
               pg_catalog.current_setting('outbox.max_workers', true)::int AS most_of_ours,
               count(*) FILTER (WHERE backend_type IS NULL) AS hidden,
               count(*) FILTER (WHERE backend_type NOT IN ('client backend', 'autovacuum launcher', 'autovacuum worker', 'background writer',
                   'checkpointer', 'walwriter', 'walsummarizer', 'startup', 'walreceiver', 'walsender', 'archiver', 'logger',
                   'slotsync worker', 'io worker', 'standalone backend')) AS used,
               count(*) FILTER (WHERE backend_type = 'outbox worker') AS ours
          FROM pg_catalog.pg_stat_activity)");
    if (row.at("hidden").get<std::int64_t>() > 0) {
        report.unknown("workers", "how many background workers run is not for this role to see", ask_a_superuser);
        return;
    }
    auto most = row.at("most").get<std::int64_t>(), used = row.at("used").get<std::int64_t>();
    auto text = std::to_string(used) + " of max_worker_processes (" + std::to_string(most) + ") are in use";
    if (used >= most)
        report.error("workers", text,
                     "Raise max_worker_processes and restart: outbox.verify() cannot run, nor a worker start again.");
    else if (used + 1 >= most)
        report.warning("workers", text + ": one is left",
                       "Raise max_worker_processes and restart: each sink, outbox.verify() and outbox.replay() needs one.");
    else
        report.ok("workers", text);
    if (!row.at("most_of_ours").is_null() && row.at("ours") >= row.at("most_of_ours"))
        report.warning("max_workers", "all outbox.max_workers (" + plain(row.at("most_of_ours")) + ") are in use",
                       "Raise outbox.max_workers and restart before another sink needs one.");
}

static void examine_prepared(database &db, report &report) {
    json row = db.row("SELECT gid, prepared FROM pg_catalog.pg_prepared_xacts WHERE prepared < pg_catalog.now() - interval "
                      "'1 hour' ORDER BY prepared LIMIT 1");
    if (!row.is_null())
        report.warning("prepared",
                       "transaction \"" + row.at("gid").get<std::string>() + "\" is prepared since " +
                           plain(row.at("prepared")),
                       "End it with COMMIT PREPARED or ROLLBACK PREPARED: it holds retention back, and its events wait.");
}

void examine_server(database &db, report &report) {
    examine_settings(db, report);
    examine_workers(db, report);
    examine_prepared(db, report);
}

// True if this role may read what the other commands need.
static bool examine_privileges(database &db, report &report) {
    // without the first there is no asking for the others by name
    bool reads = db.row("SELECT pg_catalog.has_schema_privilege('outbox', 'USAGE') AS reads").at("reads").get<bool>();
    json row;
    if (reads)
        row = db.row(R"(
            SELECT pg_catalog.has_table_privilege('outbox.stat_sink', 'SELECT') AS reads,
                   pg_catalog.has_function_privilege('outbox.verify(text, timestamptz, timestamptz)', 'EXECUTE') AS verifies)");
    if (!reads || !row.at("reads").get<bool>()) {
        report.error("privileges", "role \"" + db.user() + "\" may not read the views of outbox",
                     "Let an administrator run: GRANT outbox_reader TO \"" + db.user() + "\".");
        return false;
    }
    if (!row.at("verifies").get<bool>())
        report.unknown("privileges", "role \"" + db.user() + "\" may read, and not verify",
                       "GRANT outbox_admin TO \"" + db.user() + "\", if it shall.");
    else
        report.ok("privileges", "role \"" + db.user() + "\" may read and verify");
    return true;
}

static void examine_version(database &db, report &report) {
    json row = db.row(R"(
        SELECT e.extversion, a.default_version FROM pg_catalog.pg_extension e
          LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = e.extname WHERE e.extname = 'outbox')");
    auto version = "extension outbox " + plain(row.at("extversion"));
    if (row.at("default_version").is_string() && row.at("default_version") != row.at("extversion"))
        report.warning("extension", version + " is installed here, and the server has " + plain(row.at("default_version")),
                       "ALTER EXTENSION outbox UPDATE.");
    else
        report.ok("extension", version + " in database \"" + db.name() + "\"");
}

static void examine_sink(const json &sink, report &report) {
    std::string name = "sink \"" + sink.at("sink").get<std::string>() + "\"", state = sink.at("state");
    auto text = name + " is " + state + ", " + plain(sink.at("lag_events")) + " events behind";
    std::string why = sink.at("last_error").is_null() ? "" : ": " + sink.at("last_error").get<std::string>();
    if (state == "no worker")
        report.error("sink", name + " has no worker", "See \"No worker\" in doc/operations.md, and the server's log.");
    else if (state == "backing off")
        report.error("sink", text + why, "See that Redis runs and takes writes; events wait in the database.");
    else if (state == "unconfirmed")
        report.error("sink", text + why, "Its confirm level is not reached: see \"Unconfirmed\" in doc/operations.md.");
    else if (state == "fenced")
        report.error("sink", text, "Another server holds this sink: see \"Fenced\" in doc/operations.md.");
    else if (state == "wrong version")
        report.error("sink", text + why, "See \"Upgrading\" in doc/operations.md.");
    else if (state.starts_with("paused") || state == "disabled")
        report.warning("sink", text,
                       state == "disabled" ? "Set outbox.enabled to on and reload."
                                           : "SELECT outbox.resume('" + sink.at("sink").get<std::string>() + "'), if this database is the real one.");
    else if (state == "healing" || state == "connecting")
        report.warning("sink", text, "Wait, and look again.");
    else
        report.ok("sink", text);
    auto count = [&](const char *what) { return sink.at(what).is_number() ? sink.at(what).get<std::int64_t>() : 0; };
    if (auto held = count("held_streams"); held > 0)
        report.warning("held_streams", name + " has " + counted(held, "stream") + " held, which refused an event" + why,
                       "Repair them: what comes after waits. See outbox.event.last_error.");
    if (auto dead = count("dead_letters"); dead > 0)
        report.warning("dead_letters", name + " has " + counted(dead, "dead letter"), "See \"outboxctl dlq ls\".");
    if (!sink.at("retention_held_back_by").is_null())
        report.warning("retention",
                       "old events of " + name + " cannot be dropped: " + plain(sink.at("retention_held_back_by")),
                       "End what holds them back: the disk fills.");
}

static void examine_password(database &db, report &report) {
    for (const json &sink : db.rows("SELECT name, url FROM outbox.sink ORDER BY id"))
        if (auto url = sink.at("url").get<std::string>(); url.find(":***@") != url.npos)
            report.warning("password", "the URL of sink \"" + plain(sink.at("name")) + "\" has the password in it",
                           "Put it into a file of mode 0600 and name that in outbox.redis_password_file.");
}

bool examine_extension(database &db, report &report) {
    db.require_extension();
    examine_version(db, report);
    if (!examine_privileges(db, report))
        return false;
    for (const json &sink : db.rows("SELECT * FROM outbox.stat_sink ORDER BY sink"))
        examine_sink(sink, report);
    examine_password(db, report);
    return true;
}

} // namespace outbox::ctl

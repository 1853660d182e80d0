// The inbox: one transaction for a handler's effects and the event's id, and the tables that this needs.
#include "src/inbox.hpp"

#include <array>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#include "common/crash_point.hpp"
#include "src/entry_id.hpp"

namespace outbox {

// Every name is qualified, operators too: the search_path is the user's.
namespace inbox {

void create_schema(PGconn *connection) {
    using namespace detail;
    require_ready(connection);
    // CREATE SCHEMA IF NOT EXISTS asks for the right to create one even where there is one already.
    auto found = query(connection,
                       "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace s "
                       "ON s.oid OPERATOR(pg_catalog.=) c.relnamespace "
                       "WHERE s.nspname OPERATOR(pg_catalog.=) 'outbox_inbox' AND c.relname OPERATOR(pg_catalog.=) "
                       "ANY ('{event,event_pkey,event_handled_at,position,position_pkey}'::pg_catalog.name[])");
    if (PQntuples(found.get()) == 5)
        return;
    // Several statements in one string are one transaction. The lock is for those who start at the same time: IF NOT EXISTS
    // alone lets two of them collide in the catalogs.
    check(connection, PQexec(connection, R"sql(
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('outbox_inbox', 0));

CREATE SCHEMA IF NOT EXISTS outbox_inbox;
COMMENT ON SCHEMA outbox_inbox IS 'what outbox consumers have handled, committed together with the effects';

CREATE TABLE IF NOT EXISTS outbox_inbox.event (
    handled_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    event_id pg_catalog.uuid NOT NULL,
    group_name pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    CONSTRAINT event_pkey PRIMARY KEY (group_name, event_id)
);
COMMENT ON TABLE outbox_inbox.event IS 'one row for each event that a consumer group has handled';

-- for the purge. A BRIN index would be smaller, but the purge lets new rows into old pages, after which it tells nothing
CREATE INDEX IF NOT EXISTS event_handled_at ON outbox_inbox.event (handled_at);

-- n may be up to 2^64 - 1, which no bigint holds
CREATE TABLE IF NOT EXISTS outbox_inbox.position (
    group_name pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    topic pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    ms pg_catalog.numeric(20, 0) NOT NULL,
    n pg_catalog.numeric(20, 0) NOT NULL,
    CONSTRAINT position_pkey PRIMARY KEY (group_name, topic)
);
COMMENT ON TABLE outbox_inbox.position IS 'how far each group is known to have finished each topic';
)sql"));
}

std::int64_t purge(PGconn *connection, std::chrono::seconds age) {
    using namespace detail;
    require_ready(connection);
    if (PQtransactionStatus(connection) != PQTRANS_IDLE)
        throw std::invalid_argument("purge commits by itself: call it outside a transaction");
    if (age.count() < 0)
        throw std::invalid_argument("the age to purge must be 0 s or more");
    constexpr std::int64_t chunk = 5000;
    const std::string seconds = std::to_string(age.count());
    const std::string limit = std::to_string(chunk);
    // Each chunk goes on where the one before ended, or it would walk over the index entries of all that it has deleted, which
    // stay while anybody has an old snapshot.
    std::string from = "-infinity";
    std::int64_t total = 0;
    for (;;) {
        auto result =
            query(connection,
                  "WITH gone AS ("
                  "DELETE FROM outbox_inbox.event WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
                  "SELECT e.ctid FROM outbox_inbox.event e "
                  "WHERE e.handled_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) "
                  "pg_catalog.make_interval(secs => $1::pg_catalog.float8)) "
                  "AND e.handled_at OPERATOR(pg_catalog.>=) $2::pg_catalog.timestamptz "
                  "ORDER BY e.handled_at LIMIT $3::pg_catalog.int8)) RETURNING handled_at) "
                  "SELECT pg_catalog.count(*), pg_catalog.max(handled_at) FROM gone",
                  seconds.c_str(), from.c_str(), limit.c_str());
        std::int64_t deleted = std::stoll(PQgetvalue(result.get(), 0, 0));
        total += deleted;
        // Fewer also if another process purges the same rows: it goes on.
        if (deleted < chunk)
            return total;
        from = PQgetvalue(result.get(), 0, 1);
    }
}

} // namespace inbox

namespace detail {

void check_conninfo(const std::string &conninfo) {
    struct free_options {
        void operator()(PQconninfoOption *options) const noexcept { PQconninfoFree(options); }
    };
    // libpq's own words would quote from the string
    char *words = nullptr;
    std::unique_ptr<PQconninfoOption, free_options> options(PQconninfoParse(conninfo.c_str(), &words));
    PQfreemem(words);

    bool good = options != nullptr;
    bool uri = conninfo.starts_with("postgresql://") || conninfo.starts_with("postgres://");
    for (auto *option = options.get(); option != nullptr && option->keyword != nullptr; ++option) {
        std::string_view name = option->keyword, value = option->val == nullptr ? "" : option->val;
        // An "@" or "/" in a password ends it too early. Its rest would come back in the words of a failed connect.
        if (name == "port")
            good = good && value.find_first_not_of("0123456789,") == value.npos;
        else if (name == "host" || (name == "dbname" && uri))
            good = good && value.find('@') == value.npos;
    }
    if (!good)
        throw std::invalid_argument("the connection string of the inbox is none that libpq can read; in a URI write \"@\", "
                                    "\":\" and \"/\" of a user or a password as %40, %3A and %2F");
}

inbox_connection::inbox_connection(std::string conninfo) : conninfo_(std::move(conninfo)) { check_conninfo(conninfo_); }

PGconn *inbox_connection::connection() {
    if (connection_ && PQstatus(connection_.get()) == CONNECTION_OK)
        return connection_.get();
    // Later ones win: what is before dbname are defaults. Keepalives notice a host that is gone while we wait for it; where we
    // have sent what it never confirmed, only tcp_user_timeout does.
    constexpr std::array<std::pair<const char *, const char *>, 8> settings = {{
        {"connect_timeout", "5"},
        {"keepalives_idle", "10"},
        {"keepalives_interval", "5"},
        {"keepalives_count", "4"},
        {"tcp_user_timeout", "30000"},
        {"fallback_application_name", "outbox inbox"},
        {"dbname", nullptr},
        {"client_encoding", "UTF8"},
    }};
    std::array<const char *, settings.size() + 1> keywords{}, values{};
    for (std::size_t i = 0; i < settings.size(); ++i) {
        keywords[i] = settings[i].first;
        values[i] = settings[i].second == nullptr ? conninfo_.c_str() : settings[i].second;
    }
    connection_.reset(PQconnectdbParams(keywords.data(), values.data(), 1));
    if (!connection_)
        throw std::bad_alloc();
    if (PQstatus(connection_.get()) != CONNECTION_OK) {
        std::string words = one_line(PQerrorMessage(connection_.get()));
        connection_.reset();
        throw connection_error("could not connect to the database of the inbox: " + words);
    }
    return connection_.get();
}

inbox_connection::result inbox_connection::run(std::string_view group, const event &event,
                                               const std::function<void(transaction &)> &handler) {
    if (!begin(group, event)) {
        rollback();
        return result::duplicate;
    }
    transaction open(connection_.get());
    try {
        handler(open);
    } catch (...) {
        rollback();
        throw;
    }
    OUTBOX_CRASH_POINT("inbox_before_commit");
    commit();
    OUTBOX_CRASH_POINT("inbox_after_commit");
    return result::handled;
}

// Whether the id is new, in a transaction that is open then.
bool inbox_connection::begin(std::string_view group, const event &event) {
    const bool used_before = connection_ && PQstatus(connection_.get()) == CONNECTION_OK;
    try {
        try {
            return claim(group, event);
        } catch (const connection_error &) {
            // A server that was restarted since the last event is no trouble: nothing was asked of it yet.
            if (!used_before)
                throw;
            return claim(group, event);
        }
    } catch (const reply_error &refused) {
        rollback();
        std::string hint;
        if (refused.code() == "42P01" || refused.code() == "3F000")
            hint = "; outbox::inbox::create_schema makes what is missing";
        throw inbox_unavailable(std::string("the inbox refused: ") + refused.what() + hint);
    } catch (const error &broken) {
        connection_.reset();
        throw inbox_unavailable(broken.what());
    }
}

// In one round trip. Where another transaction has the same id and is still open, the INSERT waits for it: if it commits, the
// id is not new. READ COMMITTED, or that would be a serialization failure.
//
// The cursor is a mark on this very transaction, and lives no longer than it does.
bool inbox_connection::claim(std::string_view group, const event &event) {
    PGconn *connection = this->connection();
    const std::string group_text(group), id(event.id());
    const std::array<const char *, 2> values = {group_text.c_str(), id.c_str()};
    auto send = [connection](const char *statement, int count = 0, const char *const *parameters = nullptr) {
        return PQsendQueryParams(connection, statement, count, nullptr, parameters, nullptr, nullptr, 0) == 1;
    };
    // In a pipeline what follows a statement that failed is skipped.
    bool sent = PQenterPipelineMode(connection) == 1 && send("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE") &&
                send("INSERT INTO outbox_inbox.event (group_name, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                     static_cast<int>(values.size()), values.data()) &&
                send("DECLARE outbox_inbox CURSOR FOR SELECT") && PQpipelineSync(connection) == 1;
    std::array<pg_result, 3> results;
    for (pg_result &one : results) {
        if (!sent || PQstatus(connection) != CONNECTION_OK)
            break;
        one.reset(PQgetResult(connection));
        pg_result end(PQgetResult(connection)); // null, after each statement's result
    }
    pg_result sync(sent && PQstatus(connection) == CONNECTION_OK ? PQgetResult(connection) : nullptr);
    if (PQresultStatus(sync.get()) != PGRES_PIPELINE_SYNC || PQexitPipelineMode(connection) != 1) {
        std::string words = one_line(PQerrorMessage(connection));
        connection_.reset();
        throw connection_error("the connection to PostgreSQL broke: " + words);
    }
    for (pg_result &one : results)
        one = check(connection, one.release());
    return std::string_view(PQcmdTuples(results[1].get())) == "1";
}

void inbox_connection::commit() {
    PGconn *connection = connection_.get();
    if (PQstatus(connection) != CONNECTION_OK) {
        connection_.reset();
        throw connection_error("the connection to PostgreSQL broke in the handler");
    }
    switch (PQtransactionStatus(connection)) {
    case PQTRANS_INTRANS:
        if (PQpipelineStatus(connection) == PQ_PIPELINE_OFF)
            break;
        [[fallthrough]];
    case PQTRANS_ACTIVE:
    case PQTRANS_UNKNOWN:
        rollback();
        throw error("the handler left a statement unfinished on the connection of its transaction");
    case PQTRANS_INERROR:
        rollback();
        throw error("a statement of the handler failed, and the handler went on: its transaction cannot be committed");
    case PQTRANS_IDLE:
        throw error("the handler ended the transaction: what it did then is not protected by the inbox");
    }
    // An acknowledged event does not come again, so a crash of the server, or a failover to a synchronous standby, must not
    // take this commit back, whatever the database's default or the handler says. CLOSE fails in another transaction than
    // ours, and what follows a failure is not run.
    pg_result answer(PQexec(connection, R"sql(
SELECT pg_catalog.set_config('synchronous_commit', 'on', true)
 WHERE pg_catalog.current_setting('synchronous_commit')
       OPERATOR(pg_catalog.<>) ALL ('{on,remote_apply}'::pg_catalog.text[]);
CLOSE outbox_inbox;
COMMIT)sql"));
    try {
        answer = check(connection, answer.release());
    } catch (const reply_error &failure) {
        rollback();
        if (failure.code() == "34000")
            throw error("the handler ended the transaction and began another: what it did is not protected by the inbox");
        throw;
    }
    // To the server it is no failure to be asked to commit what cannot be: it says ROLLBACK.
    if (PQcmdStatus(answer.get()) != std::string_view("COMMIT"))
        throw error("the transaction was rolled back instead of committed");
}

// Leaves a connection without a transaction, or none.
void inbox_connection::rollback() noexcept {
    PGconn *connection = connection_.get();
    auto status = PQtransactionStatus(connection);
    if (PQpipelineStatus(connection) == PQ_PIPELINE_OFF) {
        if (status == PQTRANS_IDLE)
            return;
        if ((status == PQTRANS_INTRANS || status == PQTRANS_INERROR) &&
            PQresultStatus(pg_result(PQexec(connection, "ROLLBACK")).get()) == PGRES_COMMAND_OK)
            return;
    }
    connection_.reset();
}

std::optional<std::string> load_position(PGconn *connection, std::string_view group, std::string_view topic) {
    require_ready(connection);
    auto result = query(connection,
                        "SELECT ms, n FROM outbox_inbox.position "
                        "WHERE group_name OPERATOR(pg_catalog.=) $1 AND topic OPERATOR(pg_catalog.=) $2",
                        std::string(group).c_str(), std::string(topic).c_str());
    if (PQntuples(result.get()) == 0)
        return std::nullopt;
    return std::string(PQgetvalue(result.get(), 0, 0)) + "-" + PQgetvalue(result.get(), 0, 1);
}

void save_position(PGconn *connection, std::string_view group, std::string_view topic, std::string_view position) {
    require_ready(connection);
    entry_id id;
    if (!parse(position, id))
        throw std::invalid_argument("a position is <ms>-<n>");
    query(connection,
          "INSERT INTO outbox_inbox.position AS p (group_name, topic, ms, n) VALUES ($1, $2, $3, $4) "
          "ON CONFLICT (group_name, topic) DO UPDATE SET ms = EXCLUDED.ms, n = EXCLUDED.n "
          "WHERE ROW(EXCLUDED.ms, EXCLUDED.n) OPERATOR(pg_catalog.>) ROW(p.ms, p.n)",
          std::string(group).c_str(), std::string(topic).c_str(), std::to_string(id.ms).c_str(),
          std::to_string(id.n).c_str());
}

} // namespace detail
} // namespace outbox

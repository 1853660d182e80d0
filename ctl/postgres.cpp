#include "ctl/postgres.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "ctl/failure.hpp"

namespace outbox::ctl {

// Of pg_type.dat, which clients are not given.
enum type_oid : Oid {
    boolean = 16,
    int8 = 20,
    int2 = 21,
    int4 = 23,
    oid = 26,
    float4 = 700,
    float8 = 701,
    timestamptz = 1184
};

static void keep_notice(void *notices, const PGresult *result) {
    if (const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY))
        static_cast<std::vector<std::string> *>(notices)->emplace_back(message);
}

database::database(const std::string &dbname) {
    const char *keywords[] = {"fallback_application_name", "client_encoding", "dbname", "connect_timeout", nullptr};
    const char *values[] = {"outboxctl", "UTF8", dbname.c_str(), nullptr, nullptr};
    if (std::getenv("PGCONNECT_TIMEOUT") == nullptr && dbname.find("connect_timeout") == std::string::npos)
        values[3] = "10"; // without one libpq waits as long as the network does
    connection_.reset(PQconnectdbParams(keywords, values, 1));
    if (!connection_ || PQstatus(connection_.get()) != CONNECTION_OK) {
        bool needs_password = connection_ && PQconnectionNeedsPassword(connection_.get()) != 0;
        throw failure(exit_code::unavailable,
                      "could not connect to PostgreSQL: " +
                          detail::one_line(connection_ ? PQerrorMessage(connection_.get()) : "out of memory"),
                      needs_password ? "Give the password in ~/.pgpass or PGPASSWORD."
                                     : "Say where it is as for psql: PGHOST, PGPORT, PGUSER, PGDATABASE, or -d.");
    }
    PQsetNoticeReceiver(connection_.get(), keep_notice, &notices_);
    // Whoever operates may be a superuser: nothing in a schema of somebody else is to be found by name.
    rows("SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)");
    rows("SELECT pg_catalog.set_config(name, value, false) FROM (VALUES ('datestyle', 'ISO'), ('timezone', 'UTC'), "
         "('intervalstyle', 'postgres')) AS wanted (name, value)");
}

// "2026-11-21 08:55:15.97+00" as RFC 3339 with all its microseconds, as in the entries; infinity stays.
static std::string rfc3339(std::string_view text) {
    if (text.size() < 22 || text[10] != ' ' || !text.ends_with("+00"))
        return std::string(text);
    std::string result(text.substr(0, text.size() - 3));
    result[10] = 'T';
    if (result.size() == 19)
        result += '.';
    result.append(26 - std::min<std::size_t>(result.size(), 26), '0');
    return result + "Z";
}

static json value(const PGresult *result, int row, int column) {
    if (PQgetisnull(result, row, column) != 0)
        return nullptr;
    std::string_view text(PQgetvalue(result, row, column), static_cast<std::size_t>(PQgetlength(result, row, column)));
    std::int64_t integer = 0;
    double number = 0;
    switch (PQftype(result, column)) {
    case boolean: return text == "t";
    case int2:
    case int4:
    case int8:
    case oid: std::from_chars(text.data(), text.data() + text.size(), integer); return integer;
    case float4:
    case float8:
        // NaN and infinity are no numbers in JSON
        if (std::from_chars(text.data(), text.data() + text.size(), number).ec == std::errc() && number - number == 0)
            return number;
        return std::string(text);
    case timestamptz: return rfc3339(text);
    default: return std::string(text);
    }
}

json database::result(PGresult *got) {
    detail::pg_result owned(got);
    auto status = PQresultStatus(got);
    if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
        fail(got);
    json rows = json::array();
    for (int row = 0; row < PQntuples(got); ++row) {
        json object = json::object();
        for (int column = 0; column < PQnfields(got); ++column)
            object[PQfname(got, column)] = value(got, row, column);
        rows.push_back(std::move(object));
    }
    return rows;
}

json database::rows(const char *statement, const std::vector<std::optional<std::string>> &parameters) {
    std::vector<const char *> values;
    for (const auto &parameter : parameters)
        values.push_back(parameter ? parameter->c_str() : nullptr);
    return result(PQexecParams(connection_.get(), statement, static_cast<int>(values.size()), nullptr, values.data(),
                               nullptr, nullptr, 0));
}

json database::row(const char *statement, const std::vector<std::optional<std::string>> &parameters) {
    json found = rows(statement, parameters);
    return found.empty() ? json(nullptr) : found.front();
}

void database::require_extension() {
    if (row("SELECT FROM pg_catalog.pg_extension WHERE extname = 'outbox'").is_null())
        throw failure(exit_code::unavailable, "database \"" + name() + "\" does not have the extension outbox",
                      "Connect to the database of the service (-d), or run CREATE EXTENSION outbox there.");
}

void database::fail(const PGresult *result) {
    auto field = [&](int which) {
        const char *text = PQresultErrorField(result, which);
        return std::string(text != nullptr ? text : "");
    };
    if (PQstatus(connection_.get()) != CONNECTION_OK)
        throw failure(exit_code::unavailable,
                      "the connection to PostgreSQL broke: " + detail::one_line(PQerrorMessage(connection_.get())));
    std::string code = field(PG_DIAG_SQLSTATE), message = field(PG_DIAG_MESSAGE_PRIMARY), hint = field(PG_DIAG_MESSAGE_HINT);
    if (message.empty())
        message = detail::one_line(PQerrorMessage(connection_.get()));
    if (code == "42501") { // insufficient_privilege
        bool acts = message.find("function") != std::string::npos;
        hint = std::string("Let an administrator run: GRANT ") + (acts ? "outbox_admin" : "outbox_reader") + " TO \"" +
               user() + "\".";
    } else if (code == "3F000" || code == "42P01" || code == "42883" || code == "42703") {
        // undefined schema, table, function or column: an extension that is missing explains all, or it is another version
        require_extension();
        hint = "The extension and outboxctl may be of different versions: see \"outboxctl doctor\".";
    }
    throw failure(exit_code::unavailable, message, hint);
}

} // namespace outbox::ctl

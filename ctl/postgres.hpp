// A connection to the database with the extension, by libpq's own conventions, and rows as JSON.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <libpq-fe.h>
#include <nlohmann/json.hpp>

#include "src/postgres.hpp"

namespace outbox::ctl {

using json = nlohmann::ordered_json; // columns and keys in the order in which they are shown

class database {
  public:
    // A name or a connection string; empty: what the environment says.
    // Throws failure with what to do.
    explicit database(const std::string &dbname);

    // The rows of a statement as an array of objects: numbers and booleans as such, times as RFC 3339 in UTC, everything
    // else as text. Throws failure: of what is not there, or may not be read, with what to do.
    json rows(const char *statement, const std::vector<std::optional<std::string>> &parameters = {});

    // The first row; null if there is none.
    json row(const char *statement, const std::vector<std::optional<std::string>> &parameters = {});

    // Throws failure if the extension is not in this database.
    void require_extension();

    // What the last statements had to say besides.
    std::vector<std::string> take_notices() { return std::move(notices_); }

    // For statements that one waits for.
    PGconn *connection() noexcept { return connection_.get(); }
    json result(PGresult *result); // owns it; rows, or throws as rows() does

    std::string name() const { return PQdb(connection_.get()); }
    std::string user() const { return PQuser(connection_.get()); }
    int version() const { return PQserverVersion(connection_.get()); }

  private:
    [[noreturn]] void fail(const PGresult *result);

    detail::pg_connection connection_;
    std::vector<std::string> notices_;
};

} // namespace outbox::ctl

// PostgreSQL's C handles, owned, and what libpq says as the library's exceptions.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

#include <libpq-fe.h>

#include <outbox/error.hpp>

namespace outbox::detail {

struct pg_deleter {
    void operator()(PGconn *connection) const noexcept { PQfinish(connection); }
    void operator()(PGresult *result) const noexcept { PQclear(result); }
};
using pg_connection = std::unique_ptr<PGconn, pg_deleter>;
using pg_result = std::unique_ptr<PGresult, pg_deleter>;

// Libpq's words, which come in lines, on one line.
inline std::string one_line(const char *words) {
    std::string line;
    for (const char *c = words; c != nullptr && *c != '\0'; ++c) {
        if (*c != '\n' && *c != '\t')
            line += *c;
        else if (!line.empty() && line.back() != ' ')
            line += ' ';
    }
    line.erase(line.find_last_not_of(' ') + 1);
    return line;
}

// Throws what a statement's failure means. The connection counts before the result: a server that is told to end says so
// with an SQLSTATE, and then is gone.
[[noreturn]] inline void throw_failure(PGconn *connection, const PGresult *result) {
    if (PQstatus(connection) != CONNECTION_OK)
        throw connection_error("the connection to PostgreSQL broke: " +
                               one_line(PQerrorMessage(connection)));
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    if (code == nullptr || message == nullptr)
        throw error("PostgreSQL: " + one_line(PQerrorMessage(connection)));
    throw reply_error(message, code);
}

// The result, unless it is a failure.
inline pg_result check(PGconn *connection, PGresult *result) {
    pg_result owned(result);
    auto status = PQresultStatus(result);
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
        throw_failure(connection, result);
    return owned;
}

// Runs a statement with parameters in text format; null is NULL.
template <typename... Texts>
pg_result query(PGconn *connection, const char *statement, const Texts *...parameters) {
    const std::array<const char *, sizeof...(parameters)> values{parameters...};
    return check(connection, PQexecParams(connection, statement, static_cast<int>(values.size()), nullptr,
                                          values.data(), nullptr, nullptr, 0));
}

// Throws unless a statement can be run on a connection that the caller gave.
inline void require_ready(PGconn *connection) {
    if (connection == nullptr)
        throw std::invalid_argument("the connection is null");
    if (PQstatus(connection) != CONNECTION_OK)
        throw connection_error("the connection to PostgreSQL is not open");
    if (PQpipelineStatus(connection) != PQ_PIPELINE_OFF)
        throw std::invalid_argument("the connection is in pipeline mode: leave it first");
    if (PQtransactionStatus(connection) == PQTRANS_ACTIVE)
        throw std::invalid_argument("the connection is busy with another statement: read its results first");
}

} // namespace outbox::detail

// outbox::emit: an event's parts become the arguments of outbox.emit(), all of them parameters in binary format, in which a
// text is its bytes: nothing is quoted, and the server refuses what is no UTF-8.
#include <outbox/emit.hpp>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string_view>

#include "src/postgres.hpp"
#include "src/text.hpp"

namespace outbox {

static thread_local const event *handled_event = nullptr;

handling::handling(const event &event) noexcept : before_(handled_event) { handled_event = &event; }

handling::~handling() { handled_event = before_; }

namespace {

using namespace detail;

std::string dump(const nlohmann::json &value, const char *what, const new_event &event) {
    try {
        return value.dump();
    } catch (const nlohmann::json::type_error &) {
        throw std::invalid_argument(std::string("the ") + what + " of the event \"" + printable(event.type) +
                                    "\" cannot be written as JSON: not all texts in it are UTF-8");
    }
}

// The event's headers, and what they do not say themselves from the event that is being handled; empty if that is nothing.
std::string headers_of(const new_event &event) {
    const bool none = event.headers.is_null() || (event.headers.is_object() && event.headers.empty());
    // what is no object is for the server to refuse
    if (handled_event == nullptr || !(none || event.headers.is_object()))
        return none ? std::string() : dump(event.headers, "header", event);
    auto headers = none ? nlohmann::json::object() : event.headers;
    headers.emplace("causation_id", handled_event->id());
    if (!headers.contains("correlation_id"))
        headers.emplace("correlation_id", handled_event->correlation_id());
    // The state belongs to the parent: with another parent it would be another trace's.
    if (!headers.contains("traceparent")) {
        for (const char *name : {"traceparent", "tracestate"}) {
            if (auto value = handled_event->header(name))
                headers.emplace(name, *value);
        }
    }
    return dump(headers, "header", event);
}

constexpr std::size_t argument_count = 11;

// The arguments of outbox.emit() in its order; those without data are NULL, and left to the database.
class arguments {
  public:
    explicit arguments(const new_event &event)
        : payload_(dump(event.payload, "payload", event)), headers_(headers_of(event)),
          version_(std::to_string(event.version)) {
        texts_ = {event.type, payload_, given(event.aggregate_id), given(event.aggregate_type), version_,
                  given(headers_), given(event.topic), given(event.occurred_at), given(event.id),
                  given(event.deliver_at), given(event.dedupe_key)};
    }
    arguments(const arguments &) = delete;

    const std::array<std::string_view, argument_count> &texts() const noexcept { return texts_; }

  private:
    static std::string_view given(const std::string &text) noexcept {
        return text.empty() ? std::string_view() : std::string_view(text);
    }

    std::string payload_, headers_, version_;
    std::array<std::string_view, argument_count> texts_;
};

// A text[] as array_recv wants it.
class text_array {
  public:
    explicit text_array(std::size_t size) {
        for (std::size_t number : {std::size_t{1} /* dimensions */, std::size_t{1} /* may hold nulls */,
                                   std::size_t{text_type}, size, std::size_t{1} /* first index */})
            append(static_cast<std::uint32_t>(number));
    }

    void push_back(std::string_view text) {
        append(text.data() == nullptr ? UINT32_MAX : static_cast<std::uint32_t>(text.size()));
        bytes_ += text;
    }

    const std::string &bytes() const noexcept { return bytes_; }

    static constexpr Oid text_type = 25, type = 1009; // as in pg_type.dat, for ever

  private:
    void append(std::uint32_t number) {
        for (int shift = 24; shift >= 0; shift -= 8)
            bytes_ += static_cast<char>(number >> shift & 0xff);
    }

    std::string bytes_;
};

// Runs the statement with its parameters, all of a type, in binary format, and returns its rows, of one column.
std::vector<std::string> run(PGconn *connection, const char *statement, Oid type,
                             const std::array<std::string_view, argument_count> &parameters) {
    // a message that is longer makes the server hang up instead of saying so
    constexpr std::size_t longest_message = 1'000'000'000;
    std::array<Oid, argument_count> types;
    std::array<const char *, argument_count> values;
    std::array<int, argument_count> lengths, formats;
    std::size_t total = 0;
    for (std::size_t i = 0; i < argument_count; ++i) {
        total += parameters[i].size();
        if (total > longest_message)
            throw std::invalid_argument("the events are too large for one statement: emit fewer at a time");
        types[i] = type;
        values[i] = parameters[i].data();
        lengths[i] = static_cast<int>(parameters[i].size());
        formats[i] = 1;
    }
    auto result = check(connection, PQexecParams(connection, statement, argument_count, types.data(), values.data(),
                                                 lengths.data(), formats.data(), 0));
    std::vector<std::string> rows;
    rows.reserve(static_cast<std::size_t>(PQntuples(result.get())));
    for (int row = 0; row < PQntuples(result.get()); ++row)
        rows.emplace_back(PQgetvalue(result.get(), row, 0));
    return rows;
}

void require_utf8(PGconn *connection) {
    std::string_view client = pg_encoding_to_char(PQclientEncoding(connection));
    if (client == "UTF8")
        return;
    // Bytes pass as they are, and the server, or outbox.emit(), looks at them.
    const char *known = PQparameterStatus(connection, "server_encoding");
    std::string_view server = known == nullptr ? "" : known;
    if (client == "SQL_ASCII" && (server == "UTF8" || server == "SQL_ASCII"))
        return;
    // The server would convert what it takes for another encoding, and say nothing.
    throw std::invalid_argument("events are UTF-8, and the client_encoding of the connection is " + std::string(client) +
                                ": set it to UTF8");
}

} // namespace

std::string emit(PGconn *connection, const new_event &event) {
    require_ready(connection);
    require_utf8(connection);
    arguments arguments(event);
    return run(connection,
               "SELECT outbox.emit($1, $2, $3, $4, $5::pg_catalog.int4, $6::pg_catalog.jsonb, $7, "
               "$8::pg_catalog.timestamptz, $9::pg_catalog.uuid, $10::pg_catalog.timestamptz, $11)",
               text_array::text_type, arguments.texts())
        .at(0);
}

std::vector<std::string> emit(PGconn *connection, std::span<const new_event> events) {
    require_ready(connection);
    require_utf8(connection);
    if (events.empty())
        return {};
    std::vector<text_array> columns(argument_count, text_array(events.size()));
    for (const new_event &event : events) {
        arguments arguments(event);
        for (std::size_t i = 0; i < argument_count; ++i)
            columns[i].push_back(arguments.texts()[i]);
    }
    std::array<std::string_view, argument_count> parameters;
    for (std::size_t i = 0; i < argument_count; ++i)
        parameters[i] = columns[i].bytes();
    // outbox.emit() draws its place in the order when it is called: the sort must be below the calls.
    return run(connection,
               "SELECT outbox.emit(e.event_type, e.payload, e.aggregate_id, e.aggregate_type, "
               "e.version::pg_catalog.int4, e.headers::pg_catalog.jsonb, e.topic, "
               "e.occurred_at::pg_catalog.timestamptz, e.event_id::pg_catalog.uuid, "
               "e.deliver_at::pg_catalog.timestamptz, e.dedupe_key) "
               "FROM (SELECT * FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), "
               "pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7), "
               "pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11)) "
               "WITH ORDINALITY AS _(event_type, payload, aggregate_id, aggregate_type, version, headers, topic, "
               "occurred_at, event_id, deliver_at, dedupe_key, place) ORDER BY place) AS e",
               text_array::type, parameters);
}

bool cancel(PGconn *connection, const std::string &id) {
    require_ready(connection);
    const char *const value = id.c_str();
    auto result = check(connection, PQexecParams(connection, "SELECT outbox.cancel($1::pg_catalog.uuid)", 1, nullptr, &value, nullptr,
                                                 nullptr, 0));
    return *PQgetvalue(result.get(), 0, 0) == 't';
}

} // namespace outbox

#include "bgworker/fields.hpp"

#include "extension/clock.hpp"

namespace outbox {

static std::string_view utf8(std::string_view stored) {
    int encoding = GetDatabaseEncoding();
    if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII || stored.empty())
        return stored;
    char *converted = pg_server_to_any(stored.data(), static_cast<int>(stored.size()), PG_UTF8);
    return converted == stored.data() ? stored : std::string_view(converted);
}

entry_fields fields_of(const event_row &event, const stream_naming &naming, position at, bool must_exist) {
    entry_fields fields;
    fields.naming = naming;
    fields.topic = event.topic;
    fields.at = at;
    fields.must_exist = must_exist;
    fields.event_id = event.event_id->data;
    fields.event_type = event.event_type;
    fields.aggregate_type = utf8(event.aggregate_type);
    fields.aggregate_id = utf8(event.aggregate_id);
    fields.version = event.version;
    fields.occurred_at_us = unix_us(event.occurred_at);
    fields.headers = utf8(event.headers);
    fields.payload = utf8(event.payload);
    return fields;
}

} // namespace outbox

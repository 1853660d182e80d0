// The stream contract: an event as a stream entry, and the little that is read back. Pure C++, no PostgreSQL header.
#pragma once

#include "bgworker/naming.hpp"
#include "bgworker/position.hpp"

#include <cstdint>
#include <hiredis/hiredis.h>
#include <string>
#include <string_view>

namespace outbox {

struct entry_fields {
    stream_naming naming;
    std::string_view topic;
    position at;
    bool must_exist; // the stream is known to be there: if it is not, that must be noticed
    const unsigned char *event_id; // 16 bytes
    std::string_view event_type, aggregate_type, aggregate_id;
    std::int32_t version;
    std::int64_t occurred_at_us; // since 1970, UTC
    std::string_view headers, payload;
};

// XADD <stream> [NOMKSTREAM] <at> and the eight fields, in their order; to `answers`, what Redis says when it has done it.
void append_entry(std::string &commands, std::string &answers, const entry_fields &fields);

void append_xrange(std::string &commands, std::string_view topic, std::string_view from, std::string_view to, int count,
                   const stream_naming &naming);
void append_xinfo(std::string &commands, std::string_view topic, const stream_naming &naming);

// "2026-11-21T08:00:00.000000Z" into 28 bytes; returns the length.
std::size_t print_rfc3339(std::int64_t unix_us, char *text) noexcept;
void print_uuid(const unsigned char *uuid, char *text) noexcept; // 36 bytes, no terminator
bool parse_uuid(std::string_view text, unsigned char *uuid) noexcept;

// An element of XRANGE's reply.
bool read_event_id(const redisReply &entry, unsigned char *uuid) noexcept;
bool read_entry_id(const redisReply &entry, position &id) noexcept;

// XINFO STREAM.
struct stream_info {
    bool exists = false;
    bool is_stream = true; // false: another type holds the key, or we may not look
    position last;         // last-generated-id; a trimmed stream keeps it
    position first;        // first entry; ms 0 when there is none
    position deleted;      // max-deleted-entry-id
    bool knows_deleted = false;    // Redis 7 and later
    std::int64_t entries_added = -1; // the same
    std::int64_t length = 0;

    // Nothing was ever taken out of it.
    // A server that has loaded what one before 7.0 has written counts only what was there then: of an empty stream that is nothing.
    bool is_whole() const noexcept { return entries_added >= 0 && entries_added == length && (length > 0 || last.ms <= 0); }
};
stream_info read_stream_info(const redisReply &reply) noexcept;

} // namespace outbox

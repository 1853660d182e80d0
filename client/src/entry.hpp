// From the fields of a stream entry to an event. Pure, fuzzed; allocates nothing unless the entry is malformed.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include <hiredis/hiredis.h>

#include <outbox/event.hpp>

namespace outbox::detail {

// A field that the group's redrive stream has before the eight of the contract: the position that the event had at first.
inline constexpr std::string_view position_field = "outbox_position";

struct decoded {
    event::fields fields;
    std::string_view first_position; // of position_field; empty where there is none
    std::string reason;              // why it is no event; empty when it is one
};

// `fields` is the array of names and values of an entry. Unknown fields are ignored and the first of two alike counts. All
// eight of the contract must be there; the id must be a UUID, the type an event type, the version a number from 1 on, and
// the payload must not be empty. Whether headers and payload are JSON is not looked at (see check_json): that is work for
// the handler's thread. Even of a malformed entry the fields that were found are filled in.
decoded decode(const redisReply &fields);

// Empty if the payload is JSON, and the headers are a JSON object or empty; else the reason, which quotes nothing of either.
// JSON that nests deeper than 1,000 levels is refused: what is parsed is copied and printed recursively, and a stack ends.
// Parses, but builds nothing. Never throws but for want of memory.
std::string check_json(const event::fields &fields);
std::string check_payload(std::string_view payload);
std::string check_headers(std::string_view headers);

// RFC 3339 in UTC ("2026-11-21T08:55:15.964060Z"; none, or a fraction of 1 to 9 digits, cut to 6); false if it is not.
bool parse_time(std::string_view text, std::chrono::sys_time<std::chrono::microseconds> &time) noexcept;

// What names an aggregate, unmistakably: "<length of type>:<type><id>"; empty if there is no aggregate_id.
std::string aggregate_key(const event::fields &fields);

// The same as a number, without allocating; 0 if there is no aggregate_id, and never else. Two aggregates may share one: then
// they wait for each other.
std::uint64_t aggregate_hash(std::string_view type, std::string_view id) noexcept;

// That of an aggregate within a topic: two topics are two orders.
std::uint64_t aggregate_in(std::string_view topic, const event::fields &fields) noexcept;

} // namespace outbox::detail

// The grammar of event types and topics. Pure: what passes here can be put into a key, a log line or the protocol as it is.
#pragma once

#include <cstddef>
#include <string_view>

namespace outbox {

constexpr std::size_t max_event_type_length = 200;
constexpr std::size_t max_topic_length = 100;

// Two or more segments of [A-Za-z0-9_-], separated by dots, at most 200 bytes.
bool is_event_type(std::string_view text) noexcept;

// One or more such segments, at most 100 bytes.
bool is_topic(std::string_view text) noexcept;

// The topic an event goes to when none is given: the first segment of its type.
std::string_view default_topic(std::string_view event_type) noexcept;

} // namespace outbox

// Patterns of event types and topics, as handlers and sinks have them. Pure.
#pragma once

#include <cstddef>
#include <string_view>

namespace outbox {

// Segments separated by dots, each one "*" or of [A-Za-z0-9_-]. The number of them; 0 where the text is none of ours.
std::size_t count_pattern_segments(std::string_view text) noexcept;

// "*" is one segment; as the last segment of the pattern, one or more. Time is linear in the two lengths.
bool matches(std::string_view pattern, std::string_view text) noexcept;

} // namespace outbox

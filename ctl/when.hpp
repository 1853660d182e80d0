// Points in time as people type them. Pure.
#pragma once

#include <cstdint>
#include <string_view>

#include "src/entry_id.hpp"

namespace outbox::ctl {

// The first position at or behind that time: a position ("1795273184059-0"), how long ago ("90s", "10m", "2h", "3d"), "0"
// for the beginning, or RFC 3339 ("2026-11-21T08:55:15Z", "2026-11-21 08:55", "2026-11-21"; UTC unless it says otherwise).
// False if it is none of these, or before 1970.
bool parse_when(std::string_view text, std::int64_t now_ms, detail::entry_id &position);

} // namespace outbox::ctl

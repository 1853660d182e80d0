// A quick look at JSON text. Pure: any encoding in which every byte below 128 is itself.
#pragma once

#include <string_view>

namespace outbox {

// True only for valid JSON (RFC 8259). False also for valid text that is nested too deeply for it: PostgreSQL's parser, which
// also knows how to complain, has the last word.
bool is_plain_json(std::string_view text) noexcept;

} // namespace outbox

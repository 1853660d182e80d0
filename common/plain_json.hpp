// A first look at JSON, in a tenth of the time of a parser, for what nearly every text is: the server looks at each payload that is
// emitted, and the client at each that it reads. Pure C++, no PostgreSQL header.
#pragma once

#include <string_view>

namespace outbox {

// Whether the text is JSON for certain (a JSON object if `only_object`). False is no verdict: what is rare is left to a
// parser, such as surrogate pairs, numbers that may not fit, more than 64 levels, and everything that is not JSON.
bool is_plain_json(std::string_view text, bool only_object = false) noexcept;

} // namespace outbox

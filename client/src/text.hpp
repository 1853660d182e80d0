// Small things about text.
#pragma once

#include <string>
#include <string_view>

#include "common/printable.hpp"

namespace outbox::detail {

// For messages: nothing in it can forge a line of a log.
inline std::string printable(std::string_view text, std::size_t limit = 200) {
    std::string result;
    append_printable(text, limit, [&result](std::string_view piece) { result += piece; });
    return result;
}

} // namespace outbox::detail

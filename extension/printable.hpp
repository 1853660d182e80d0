// Text from outside, quoted in a message of the server.
#pragma once

#include "common/printable.hpp"
#include "extension/pg.hpp"

namespace outbox {

// As append_printable(), in the current memory context.
inline const char *printable(std::string_view value, std::size_t limit = 60) {
    StringInfoData result;
    initStringInfo(&result);
    append_printable(value, limit, [&result](std::string_view piece) {
        appendBinaryStringInfo(&result, piece.data(), static_cast<int>(piece.size()));
    });
    return result.data;
}

} // namespace outbox

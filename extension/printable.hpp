// Text from outside, as it may be quoted in a message: it may hold anything, also what forges a log line.
#pragma once

#include "extension/pg.hpp"

namespace outbox {

// Bytes that are not printable ASCII as \\xNN, and no more than `limit` of them; in the current memory context.
inline const char *printable(std::string_view value, std::size_t limit = 60) {
    StringInfoData result;
    initStringInfo(&result);
    for (char c : value.substr(0, limit)) {
        auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f)
            appendStringInfoChar(&result, c);
        else
            appendStringInfo(&result, "\\x%02x", byte);
    }
    if (value.size() > limit)
        appendStringInfoString(&result, "...");
    return result.data;
}

} // namespace outbox

// What a sink calls its streams. Pure.
#pragma once

#include <string_view>

namespace outbox {

// The topic, with this before and behind it.
struct stream_naming {
    std::string_view before = "outbox:{", behind = "}";
};

} // namespace outbox

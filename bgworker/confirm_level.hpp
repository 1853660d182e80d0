// How safe an entry must be before it counts as published: in Redis' memory, on so many replicas, or on Redis' own disk. Pure.
#pragma once

#include <charconv>
#include <string_view>

namespace outbox {

struct confirm_level {
    int replicas = 0;   // that must have it
    bool fsync = false; // Redis' append-only file must have it, on the disk

    bool is_memory() const { return replicas == 0 && !fsync; }
};

// As outbox.check_confirm() takes it; what it would refuse is the strictest that there is, so that nothing is promised too early.
inline confirm_level read_confirm_level(std::string_view text) noexcept {
    constexpr std::string_view prefix = "replicas(";
    if (text == "memory")
        return {};
    confirm_level level;
    if (text.starts_with(prefix) && text.ends_with(")")) {
        text = text.substr(prefix.size(), text.size() - prefix.size() - 1);
        std::from_chars(text.data(), text.data() + text.size(), level.replicas);
    }
    level.fsync = level.replicas <= 0;
    return level;
}

} // namespace outbox

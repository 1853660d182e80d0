// Where the library's words go.
#pragma once

#include <functional>
#include <string_view>

namespace outbox {

enum class log_level { debug, info, warning, error };

constexpr std::string_view to_string(log_level level) noexcept {
    switch (level) {
    case log_level::debug: return "debug";
    case log_level::info: return "info";
    case log_level::warning: return "warning";
    default: return "error";
    }
}

/// Called with one line, without a line break and with nothing unprintable in it; never with a password, never with a
/// payload. May be called by any thread of the consumer, also by two at once; must not throw, and should not wait.
using log_function = std::function<void(log_level, std::string_view message)>;

/// Warnings and errors to standard error, each as "outbox: warning: …".
void log_to_stderr(log_level level, std::string_view message);

} // namespace outbox

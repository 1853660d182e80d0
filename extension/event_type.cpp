#include "extension/event_type.hpp"

namespace outbox {

// The number of segments, or 0 where the text is none of ours.
static std::size_t count_segments(std::string_view text) noexcept {
    std::size_t segments = 1;
    bool empty = true;
    for (char c : text) {
        if (c == '.') {
            if (empty)
                return 0;
            empty = true;
            ++segments;
        } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                   c == '_' || c == '-') {
            empty = false;
        } else {
            return 0;
        }
    }
    return empty ? 0 : segments;
}

bool is_event_type(std::string_view text) noexcept {
    return text.size() <= max_event_type_length && count_segments(text) >= 2;
}

bool is_topic(std::string_view text) noexcept {
    return text.size() <= max_topic_length && count_segments(text) >= 1;
}

std::string_view default_topic(std::string_view event_type) noexcept {
    return event_type.substr(0, event_type.find('.'));
}

} // namespace outbox

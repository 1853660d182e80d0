#include "bgworker/marker.hpp"

#include <algorithm>
#include <cstring>

namespace outbox {

namespace {

struct writer {
    char *at;

    void text(std::string_view bytes) {
        memcpy(at, bytes.data(), bytes.size());
        at += bytes.size();
    }
    template <typename Number> void number(char before, Number value) {
        *at++ = before;
        at = std::to_chars(at, at + 21, value).ptr;
    }
};

struct reader {
    std::string_view rest;

    std::string_view field(char end) {
        auto found = rest.substr(0, rest.find(end));
        rest.remove_prefix(std::min(found.size() + 1, rest.size()));
        return found;
    }
    template <typename Number> bool number(char end, Number &value) {
        auto digits = field(end);
        auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
        return !digits.empty() && parsed.ec == std::errc() && parsed.ptr == digits.data() + digits.size();
    }
};

bool read_tick(reader from, carried_tick &tick) {
    if (!from.number(',', tick.previous) || !from.number(',', tick.anchor) || !from.number(',', tick.seq) || !from.number(',', tick.timeline) ||
        !from.number(',', tick.log_end) || !from.number(',', tick.xmin) || !from.number(',', tick.xmax))
        return false;
    while (!from.rest.empty()) {
        std::uint64_t distance;
        if (tick.nxip == max_carried_xids || !from.number(',', distance) || tick.xmin > tick.xmax || distance >= tick.xmax - tick.xmin)
            return false;
        tick.xip[tick.nxip] = tick.xmin + distance;
        if (tick.nxip > 0 && tick.xip[tick.nxip] <= tick.xip[tick.nxip - 1])
            return false;
        ++tick.nxip;
    }
    return tick.xmin <= tick.xmax;
}

} // namespace

std::size_t print(const sink_marker &value, char *text) noexcept {
    writer to = {text};
    to.text(value.incarnation);
    *to.at++ = ':';
    to.at += print(value.at, to.at);
    to.number(':', value.repairs);
    to.number(':', value.in_doubt);
    if (value.tick.ms > 0) {
        to.number(':', value.tick.previous);
        to.number(',', value.tick.anchor);
        to.number(',', value.tick.seq);
        to.number(',', value.tick.timeline);
        to.number(',', value.tick.log_end);
        to.number(',', value.tick.xmin);
        to.number(',', value.tick.xmax);
        for (int i = 0; i < value.tick.nxip; ++i)
            to.number(',', value.tick.xip[i] - value.tick.xmin);
    }
    *to.at = '\0';
    return static_cast<std::size_t>(to.at - text);
}

bool parse(std::string_view text, sink_marker &value) noexcept {
    value = {};
    reader from = {text};
    value.incarnation = from.field(':');
    if (!parse(from.field(':'), value.at) || !from.number(':', value.repairs) || !from.number(':', value.in_doubt))
        return false;
    carried_tick tick;
    if (read_tick(from, tick)) {
        tick.ms = value.at.ms;
        value.tick = tick;
    }
    return true;
}

} // namespace outbox

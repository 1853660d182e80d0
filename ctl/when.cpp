#include "ctl/when.hpp"

#include <charconv>
#include <chrono>

namespace outbox::ctl {

// Takes a number of exactly so many digits, or of one to eighteen where `digits` is 0.
static bool take(std::string_view &text, std::size_t digits, std::int64_t &number) {
    std::size_t size = 0;
    while (size < text.size() && size < (digits > 0 ? digits : 18) && text[size] >= '0' && text[size] <= '9')
        ++size;
    if (size == 0 || (digits > 0 && size != digits))
        return false;
    std::from_chars(text.data(), text.data() + size, number);
    text.remove_prefix(size);
    return true;
}

static bool take(std::string_view &text, char c) {
    if (text.empty() || text.front() != c)
        return false;
    text.remove_prefix(1);
    return true;
}

static bool parse_ago(std::string_view text, std::int64_t now_ms, std::int64_t &ms) {
    std::int64_t count = 0;
    if (!take(text, 0, count) || text.size() != 1 || count > 1'000'000'000)
        return false;
    switch (text.front()) {
    case 's': ms = now_ms - count * 1000; break;
    case 'm': ms = now_ms - count * 60'000; break;
    case 'h': ms = now_ms - count * 3'600'000; break;
    case 'd': ms = now_ms - count * 86'400'000; break;
    default: return false;
    }
    if (ms < 0)
        ms = 0; // before everything
    return true;
}

// "Z", "+hh:mm" or nothing.
static bool take_zone(std::string_view &text, std::int64_t &offset_ms) {
    offset_ms = 0;
    if (text.empty() || take(text, 'Z'))
        return true;
    bool behind = text.front() == '-';
    if (!behind && text.front() != '+')
        return false;
    text.remove_prefix(1);
    std::int64_t hours = 0, minutes = 0;
    if (!take(text, 2, hours) || (take(text, ':'), !text.empty() && !take(text, 2, minutes)) || hours > 23 || minutes > 59)
        return false;
    offset_ms = (behind ? -1 : 1) * (hours * 60 + minutes) * 60'000;
    return true;
}

static bool parse_time(std::string_view text, std::int64_t &ms) {
    std::int64_t year = 0, month = 0, day = 0, hours = 0, minutes = 0, seconds = 0, fraction = 0, offset = 0;
    if (!take(text, 4, year) || !take(text, '-') || !take(text, 2, month) || !take(text, '-') || !take(text, 2, day))
        return false;
    std::chrono::year_month_day date{std::chrono::year(static_cast<int>(year)),
                                     std::chrono::month(static_cast<unsigned>(month)),
                                     std::chrono::day(static_cast<unsigned>(day))};
    if (!date.ok())
        return false;
    if (take(text, 'T') || take(text, ' ')) {
        if (!take(text, 2, hours) || !take(text, ':') || !take(text, 2, minutes) ||
            (take(text, ':') && !take(text, 2, seconds)))
            return false;
        if (take(text, '.')) {
            std::int64_t unit = 100;
            if (text.empty() || text.front() < '0' || text.front() > '9')
                return false;
            for (; !text.empty() && text.front() >= '0' && text.front() <= '9'; unit /= 10, text.remove_prefix(1))
                fraction += unit * (text.front() - '0');
        }
        if (hours > 23 || minutes > 59 || seconds > 60 || !take_zone(text, offset))
            return false;
    }
    auto days = std::chrono::sys_days(date).time_since_epoch().count();
    ms = ((days * 24 + hours) * 60 + minutes) * 60'000 + seconds * 1000 + fraction - offset;
    return text.empty() && ms >= 0;
}

bool parse_when(std::string_view text, std::int64_t now_ms, detail::entry_id &position) {
    std::int64_t ms = 0;
    if (detail::parse(text, position))
        return true;
    if (text != "0" && !parse_ago(text, now_ms, ms) && !parse_time(text, ms))
        return false;
    position = {static_cast<std::uint64_t>(ms), 0};
    return true;
}

} // namespace outbox::ctl

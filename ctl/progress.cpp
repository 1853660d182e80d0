#include "ctl/progress.hpp"

#include <algorithm>

#include "ctl/table.hpp"
#include "ctl/terminal.hpp"

namespace outbox::ctl {

progress_bar::~progress_bar() {
    if (drawn_)
        std::fputs("\r\033[K", stderr);
}

void progress_bar::draw(const json &done_or_null, const json &total_or_null, const std::string &rest) {
    auto number = [](const json &value) { return value.is_number() ? value.get<std::int64_t>() : 0; };
    auto done = number(done_or_null), total = number(total_or_null);
    constexpr std::int64_t columns = 24;
    auto filled = total > 0 ? std::min(columns, done * columns / total) : 0;
    std::string bar;
    for (std::int64_t i = 0; i < columns; ++i)
        bar += i < filled ? (shows_unicode() ? "█" : "#") : (shows_unicode() ? "░" : ".");
    auto text = bar + " " + std::to_string(total > 0 ? done * 100 / total : 0) + " %  " + std::to_string(done) + " of " +
                std::to_string(total) + " " + rest;
    std::string line = "\r" + cut(text, terminal_size().columns - 1) + "\033[K";
    std::fputs(line.c_str(), stderr);
    std::fflush(stderr);
    drawn_ = true;
}

} // namespace outbox::ctl

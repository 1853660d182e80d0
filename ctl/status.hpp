// What `status` shows, once or again and again.
#pragma once

#include <deque>
#include <map>
#include <string>

#include "ctl/context.hpp"
#include "ctl/terminal.hpp"

namespace outbox::ctl {

// {"at", "sinks": […], "redis", "streams": […], "groups": […], "redis_error"}: sinks as in outbox.stat_sink. Where Redis
// cannot be asked the reason is in redis_error, and streams and groups are null.
json look(context &context);

// What was seen before, for rates and sparklines.
class history {
  public:
    static constexpr std::size_t length = 20; // looks

    // Adds what look() gave, so many seconds after the one before.
    void add(const json &document, double elapsed);

    struct series {
        std::deque<double> lag;  // NaN where it was not known
        std::deque<double> rate; // per second
        double counter = 0;      // published or read in all
        std::int64_t pid = 0;    // of the worker whose counter that is
    };
    // Null if nothing is known.
    const series *of_sink(const json &sink) const;
    const series *of_group(const json &group) const;

  private:
    std::map<std::string, series> series_;
};

// As lines for a terminal. Without a history there are no rates but the sink's own, and no sparklines.
std::string render(const json &document, const history *past, bool colours, std::size_t columns);

// The newest values at the right, scaled to the greatest.
std::string sparkline(const std::deque<double> &values, std::size_t columns);

// Until q or ctrl-c on a terminal, which is restored; with --json a line each time, until a signal or a failure.
exit_code watch(context &context, double interval);

} // namespace outbox::ctl

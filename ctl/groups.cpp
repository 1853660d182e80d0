// outboxctl groups: how far each consumer group is.
#include "ctl/streams.hpp"

#include "ctl/context.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

static exit_code show(context &context, const std::vector<std::string> &topics) {
    for (const auto &topic : topics)
        require_topic(topic);
    auto streams = survey(context.redis(), topics);
    for (const auto &topic : topics)
        if (std::none_of(streams.begin(), streams.end(), [&](const auto &stream) { return stream.topic == topic; }))
            throw failure(exit_code::wrong,
                          "there is no stream \"outbox:{" + topic + "}\" in Redis at \"" + context.address().url.endpoint() +
                              "\"",
                          "A stream appears with its first event.");
    using enum table::align;
    table table({{"STREAM", left},
                 {"GROUP", left},
                 {"LAG", right},
                 {"PENDING", right},
                 {"OLDEST PENDING", right},
                 {"CONSUMERS", right},
                 {"DEAD LETTERS", right},
                 {"REDRIVEN", right}});
    json rows = json::array();
    bool unknown_lag = false;
    for (const auto &stream : streams)
        for (const auto &group : stream.groups) {
            json row = to_json(stream, group);
            table.add({{plain(row["stream"])},
                       {plain(row["group"]), colour::bold},
                       {plain(row["lag"])},
                       {plain(row["pending"])},
                       {duration(row["oldest_pending_age_seconds"])},
                       {plain(row["consumers"])},
                       {plain(row["dead_letters"]), group.dead_letters > 0 ? colour::bad : colour::none},
                       {plain(row["redriven"])}});
            unknown_lag = unknown_lag || !group.lag;
            rows.push_back(std::move(row));
        }
    if (context.common().json)
        write(line_of({{"groups", std::move(rows)}}));
    else if (table.empty())
        write(streams.empty() ? "no stream yet\n" : "no consumer group yet\n");
    else
        write(table.text(shows_colours(stdout)) +
              (unknown_lag
                   ? "A lag of \"-\" is not known to Redis: it does not count before 7.0, nor where entries were deleted.\n"
                   : ""));
    return exit_code::ok;
}

void add_groups(CLI::App &app, options &common, action &chosen) {
    CLI::App *command = add_command(app, "groups", "Consumer groups: lag, pending entries, consumers, dead letters",
                                    "outboxctl groups\n"
                                    "outboxctl groups wallet billing\n"
                                    "outboxctl groups --json | jq '.groups[] | select(.lag > 1000)'",
                                    common);
    auto topics = std::make_shared<std::vector<std::string>>();
    command->add_option("topic", *topics, "only the streams of these topics")->type_name("TOPIC");
    command->callback([&chosen, topics] { chosen = [topics](context &context) { return show(context, *topics); }; });
}

} // namespace outbox::ctl

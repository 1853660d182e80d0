// outboxctl dlq ls
#include "ctl/dlq.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

static exit_code ls(context &context, const dlq_request &wanted) {
    using enum table::align;
    table consumers({{"TOPIC", left},
                     {"GROUP", left},
                     {"ID", left},
                     {"EVENT TYPE", left},
                     {"AGGREGATE", left},
                     {"ATTEMPTS", right},
                     {"SINCE", left},
                     {"ERROR", left}});
    json groups = json::array();
    std::uint64_t count = 0;
    for (auto &place : places(context, wanted)) {
        count += place.letters.count();
        if (groups.size() >= wanted.limit)
            continue; // counted all the same
        for (const auto &letter : place.letters.list(wanted.limit - groups.size())) {
            auto field = [&](const char *name) { return letter.field(name).empty() ? "-" : shown(letter.field(name)); };
            json row = to_json(letter, place.group);
            consumers.add({{shown(place.topic)},
                           {shown(place.group)},
                           {shown(letter.id)},
                           {field("event_type")},
                           {field("aggregate_id")},
                           {plain(row["attempts"])},
                           {plain(row["died_at"])},
                           {shown(letter.error)}});
            groups.push_back(std::move(row));
        }
    }
    json of_sinks = wanted.group.empty() ? sink_dead_letters(context.database(), wanted) : json::array();
    json in_sinks = 0;
    if (wanted.group.empty())
        in_sinks = context.database()
                       .row("SELECT count(*) AS n FROM outbox.dead_letter WHERE $1 = '' OR topic = $1", {wanted.topic})
                       .at("n");

    if (context.common().json) {
        write(line_of({{"consumers", std::move(groups)},
                       {"consumers_total", count},
                       {"sinks", std::move(of_sinks)},
                       {"sinks_total", in_sinks}}));
        return exit_code::ok;
    }
    bool colours = shows_colours(stdout);
    std::size_t columns = is_terminal(stdout) ? terminal_size().columns : 0;
    std::string text;
    if (!consumers.empty())
        text += "dead letters of consumer groups (" + std::to_string(groups.size()) + " of " + std::to_string(count) +
                ")\n" + consumers.text(colours, columns);
    if (!of_sinks.empty()) {
        table sinks({{"SINK", left},
                     {"TOPIC", left},
                     {"EVENT", left},
                     {"EVENT TYPE", left},
                     {"AGGREGATE", left},
                     {"ATTEMPTS", right},
                     {"SINCE", left},
                     {"ERROR", left}});
        for (const json &row : of_sinks)
            sinks.add({{plain(row["sink"])},
                       {plain(row["topic"])},
                       {plain(row["event_id"])},
                       {plain(row["event_type"])},
                       {plain(row["aggregate_id"])},
                       {plain(row["attempts"])},
                       {plain(row["dead_at"])},
                       {plain(row["error"])}});
        text += std::string(text.empty() ? "" : "\n") + "dead letters of sinks (" + std::to_string(of_sinks.size()) +
                " of " + plain(in_sinks) + ")\n" + sinks.text(colours, columns);
    }
    write(text.empty() ? "no dead letters\n" : text);
    return exit_code::ok;
}

void add_dlq_ls(CLI::App &dlq, options &common, action &chosen) {
    CLI::App *command = add_command(
        dlq, "ls", "List dead letters, oldest first",
        "outboxctl dlq ls\n"
        "outboxctl dlq ls --topic wallet --group billing --limit 1000 --json | jq -r '.consumers[].error' | sort | uniq -c",
        common);
    auto wanted = std::make_shared<dlq_request>();
    add_dlq_options(*command, *wanted);
    command->add_option("--limit", wanted->limit, "at most so many of each kind; default: 100")
        ->type_name("N")
        ->check(CLI::Range(1, 1'000'000));
    command->callback([&chosen, wanted] { chosen = [wanted](context &context) { return ls(context, *wanted); }; });
}

} // namespace outbox::ctl

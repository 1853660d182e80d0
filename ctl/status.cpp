// outboxctl status: the sinks as the database sees them, the groups as Redis does.
#include "ctl/status.hpp"

#include <cmath>
#include <cstdio>

#include "ctl/streams.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

json look(context &context) {
    database &db = context.database();
    json document = {{"at", nullptr},      {"database", db.name()}, {"sinks", nullptr},      {"redis", nullptr},
                     {"streams", nullptr}, {"groups", nullptr},     {"redis_error", nullptr}};
    document["sinks"] = db.rows("SELECT * FROM outbox.stat_sink ORDER BY sink");
    document["at"] = db.row("SELECT pg_catalog.clock_timestamp() AS at").at("at");
    try {
        document["redis"] = context.address().shown();
        auto streams = survey(context.redis());
        json listed = json::array(), groups = json::array();
        for (const auto &stream : streams) {
            listed.push_back(to_json(stream));
            for (const auto &group : stream.groups)
                groups.push_back(to_json(stream, group));
        }
        document["streams"] = std::move(listed);
        document["groups"] = std::move(groups);
    } catch (const outbox::error &error) {
        document["redis_error"] = error.what();
    }
    return document;
}

std::string sparkline(const std::deque<double> &values, std::size_t columns) {
    static constexpr std::string_view blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    static constexpr std::string_view letters = "_.:-=+*#";
    double most = 0;
    for (double value : values)
        if (value > most)
            most = value;
    std::size_t from = values.size() - std::min(values.size(), columns);
    std::string line(columns - (values.size() - from), ' ');
    for (std::size_t i = from; i < values.size(); ++i) {
        if (std::isnan(values[i])) {
            line += ' ';
            continue;
        }
        // anything above nothing can be told from nothing
        auto step = most == 0 ? 0 : static_cast<std::size_t>(std::ceil(values[i] / most * 7));
        line += shows_unicode() ? blocks[step] : letters.substr(step, 1);
    }
    return line;
}

constexpr const char *trend = "LAST 20 LOOKS";

static colour of_state(const std::string &state) {
    if (state == "streaming" || state == "idle")
        return colour::good;
    if (state == "backing off" || state == "unconfirmed" || state == "fenced" || state == "no worker" || state == "wrong version")
        return colour::bad;
    return colour::warning;
}

static table::cell alarming(const json &count) {
    return {plain(count), count.is_number() && count.get<double>() > 0 ? colour::bad : colour::none};
}

static std::string last(const std::deque<double> &values) {
    return values.empty() || std::isnan(values.back()) ? "-" : decimal(values.back());
}

static std::string sinks_of(const json &document, const history *past, bool colours, std::size_t columns) {
    using enum table::align;
    std::vector<table::column> header{{"SINK", left},          {"STATE", left},   {"LAG", right},
                                      {"OLDEST", right},       {"RATE/S", right}, {"PUBLISHED", right},
                                      {"DEAD LETTERS", right}, {"HELD", right},   {"POSITION", left}};
    if (past != nullptr) {
        header.insert(header.begin() + 3, {trend, left});
        header.insert(header.begin() + 6, {trend, left});
    }
    table sinks(header);
    std::string remarks;
    for (const json &sink : document.at("sinks")) {
        std::string state = sink.at("state");
        std::vector<table::cell> row{
            {plain(sink.at("sink")), colour::bold}, {shown(state), of_state(state)},   {plain(sink.at("lag_events"))},
            {duration(sink.at("lag_seconds"))},     {decimal(sink.at("throughput"))},  {plain(sink.at("published"))},
            alarming(sink.at("dead_letters")),      alarming(sink.at("held_streams")), {plain(sink.at("position"))}};
        if (past != nullptr) {
            const auto *series = past->of_sink(sink);
            row[4].text = series != nullptr ? last(series->rate) : "-";
            row.insert(row.begin() + 3,
                       {sparkline(series != nullptr ? series->lag : std::deque<double>(), history::length)});
            row.insert(row.begin() + 6,
                       {sparkline(series != nullptr ? series->rate : std::deque<double>(), history::length)});
        }
        sinks.add(std::move(row));
        for (auto [name, what] :
             {std::pair("last_error", "last error"), std::pair("retention_held_back_by", "retention is held back by")})
            if (!sink.at(name).is_null())
                remarks +=
                    cut(plain(sink.at("sink")) + ": " + what + ": " + plain(sink.at(name)) +
                            (std::string_view(name) == "last_error" ? " (" + plain(sink.at("last_error_at")) + ")" : ""),
                        columns > 0 ? columns : std::string::npos) +
                    "\n";
    }
    return sinks.text(colours, columns) + in(colour::warning, remarks, colours && !remarks.empty());
}

static std::string groups_of(const json &document, const history *past, bool colours, std::size_t columns) {
    using enum table::align;
    std::vector<table::column> header{{"STREAM", left},   {"ENTRIES", right}, {"GROUP", left},      {"LAG", right},
                                      {"PENDING", right}, {"OLDEST", right},  {"CONSUMERS", right}, {"DEAD LETTERS", right}};
    if (past != nullptr)
        header.insert(header.begin() + 4, {{trend, left}, {"RATE/S", right}});
    table groups(header);
    for (const json &stream : document.at("streams")) {
        bool any = false;
        for (const json &group : document.at("groups")) {
            if (group.at("stream") != stream.at("stream"))
                continue;
            std::vector<table::cell> row{{any ? "" : plain(stream.at("stream"))},
                                         {any ? "" : plain(stream.at("length"))},
                                         {plain(group.at("group")), colour::bold},
                                         {plain(group.at("lag"))},
                                         {plain(group.at("pending"))},
                                         {duration(group.at("oldest_pending_age_seconds"))},
                                         {plain(group.at("consumers"))},
                                         alarming(group.at("dead_letters"))};
            if (past != nullptr) {
                const auto *series = past->of_group(group);
                row.insert(row.begin() + 4,
                           {table::cell{sparkline(series != nullptr ? series->lag : std::deque<double>(), history::length)},
                            table::cell{series != nullptr ? last(series->rate) : "-"}});
            }
            groups.add(std::move(row));
            any = true;
        }
        if (!any) {
            std::vector<table::cell> row(header.size());
            row[0].text = plain(stream.at("stream"));
            row[1].text = plain(stream.at("length"));
            row[2] = {"no group", colour::dim};
            groups.add(std::move(row));
        }
    }
    return groups.empty() ? "no stream yet\n" : groups.text(colours, columns);
}

std::string render(const json &document, const history *past, bool colours, std::size_t columns) {
    std::string text = sinks_of(document, past, colours, columns) + "\n";
    if (document.at("redis_error").is_null())
        return text + groups_of(document, past, colours, columns);
    return text + in(colour::bad, plain(document.at("redis_error")), colours) + "\n";
}

void add_status(CLI::App &app, options &common, action &chosen) {
    CLI::App *command = add_command(app, "status", "Sinks, streams and consumer groups at a glance",
                                    "outboxctl status\n"
                                    "outboxctl status -d service --watch\n"
                                    "outboxctl status --json | jq '.sinks[] | {sink, state, lag_events}'",
                                    common);
    auto live = std::make_shared<bool>(false);
    auto interval = std::make_shared<double>(1);
    command->add_flag("-w,--watch", *live, "a live screen with rates and sparklines, until q or ctrl-c");
    command->add_option("--interval", *interval, "seconds between two looks of --watch; default: 1")
        ->type_name("SECONDS")
        ->check(CLI::Range(0.1, 3600.0));
    command->callback([&chosen, live, interval] {
        chosen = [live, interval](context &context) {
            if (*live)
                return watch(context, *interval);
            json document = look(context);
            write(context.common().json ? line_of(document) : render(document, nullptr, shows_colours(stdout), 0));
            return document.at("redis_error").is_null() ? exit_code::ok : exit_code::unavailable;
        };
    });
}

} // namespace outbox::ctl

// outboxctl replay: outbox.replay(), with a progress bar; and what there is of replays.
#include <csignal>
#include <memory>

#include <poll.h>

#include "ctl/context.hpp"
#include "ctl/progress.hpp"
#include "ctl/table.hpp"

namespace outbox::ctl {

static volatile std::sig_atomic_t interrupted = 0;
static void interrupt(int) { interrupted = 1; }

namespace {

struct replay_request {
    std::string since, until, into;
    std::vector<std::string> topics;
    std::int64_t rate = 0;
    std::int64_t cancel = 0, follow = 0;
    bool no_wait = false, list = false;
};

} // namespace

constexpr const char *columns = R"(
    SELECT id, sink, state, stream, array_to_string(topics, ' ') AS topics, since, until, position, done, total, rate, created_by,
           created_at, started_at, ended_at, not_retained_upto, last_error FROM outbox.stat_replay)";

static json replay_row(database &db, const std::string &id) {
    json row = db.row((std::string(columns) + " WHERE id = $1").c_str(), {id});
    if (row.is_null())
        throw failure(exit_code::wrong, "there is no replay " + id, "\"outboxctl replay --list\" shows those that there are.");
    return row;
}

static exit_code list(context &context) {
    json rows = context.database().rows((std::string(columns) + " ORDER BY id").c_str());
    if (context.common().json) {
        write(line_of({{"replays", rows}}));
        return exit_code::ok;
    }
    using enum table::align;
    table table({{"ID", right}, {"SINK", left}, {"STATE", left}, {"INTO", left}, {"DONE", right}, {"TOTAL", right}, {"POSITION", left}, {"ERROR", left}});
    for (const json &row : rows)
        table.add({{plain(row["id"])},
                   {plain(row["sink"])},
                   {plain(row["state"]), row["state"] == "failed" ? colour::bad : colour::none},
                   {plain(row["stream"])},
                   {plain(row["done"])},
                   {plain(row["total"])},
                   {plain(row["position"])},
                   {row["last_error"].is_null() ? "" : plain(row["last_error"])}});
    write(rows.empty() ? std::string("there are no replays\n") : table.text(shows_colours(stdout)));
    return exit_code::ok;
}

static std::string array_of(const std::vector<std::string> &topics) {
    std::string text = "{";
    for (const auto &topic : topics) {
        text += text.size() > 1 ? ",\"" : "\"";
        for (char c : topic)
            text += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
        text += "\"";
    }
    return text + "}";
}

// As outbox.replay() understands it: a position, or a time in full.
static std::optional<std::string> limit(database &db, const std::string &text) {
    if (text.empty() || text.find('-') == text.find_last_of('-'))
        if (text.find('-') != text.npos || text.empty())
            return text.empty() ? std::nullopt : std::optional(text);
    return time_for_sql(db, text);
}

static exit_code say(context &context, const json &row) {
    std::string state = row.at("state");
    auto code = state == "failed" || state == "cancelled" || state == "interrupted" ? exit_code::wrong
                : row.at("not_retained_upto").is_null()                             ? exit_code::ok
                                                                                    : exit_code::warnings;
    if (context.common().json) {
        write(line_of(row));
        return code;
    }
    std::string text = "replay " + plain(row.at("id")) + " of sink \"" + plain(row.at("sink")) + "\" into " + plain(row.at("stream")) +
                       " is " + state + ": " + plain(row.at("done")) + " of " + plain(row.at("total")) + " events\n";
    if (!row.at("not_retained_upto").is_null())
        text += "events up to " + plain(row.at("not_retained_upto")) + " are no longer retained\n";
    if (!row.at("last_error").is_null())
        text += plain(row.at("last_error")) + "\n";
    write(text);
    return code;
}

// Until it has ended. It does not need this program: whoever leaves leaves it running.
static exit_code follow(context &context, const std::string &id) {
    struct sigaction action {}, before {};
    sigemptyset(&action.sa_mask);
    action.sa_handler = interrupt;
    sigaction(SIGINT, &action, &before);
    json row;
    {
        progress_bar bar;
        while (row = replay_row(context.database(), id), interrupted == 0) {
            if (row.at("state") != "running" && row.at("state") != "waiting")
                break;
            if (is_terminal(stderr))
                bar.draw(row.at("done"), row.at("total"),
                         "events, " + (row.at("last_error").is_null() ? plain(row.at("state")) + " at " + plain(row.at("position"))
                                                                      : plain(row.at("last_error"))));
            poll(nullptr, 0, 200);
        }
    }
    sigaction(SIGINT, &before, nullptr);
    if (interrupted != 0) {
        std::fprintf(stderr, "replay %s goes on: \"outboxctl replay --follow %s\", or --cancel %s\n", id.c_str(), id.c_str(), id.c_str());
        std::raise(SIGINT);
    }
    return say(context, row);
}

static exit_code replay(context &context, const replay_request &wanted) {
    database &db = context.database();
    db.require_extension();
    if (wanted.list)
        return list(context);
    if (wanted.follow > 0)
        return follow(context, std::to_string(wanted.follow));
    if (wanted.cancel > 0) {
        auto id = std::to_string(wanted.cancel);
        replay_row(db, id);
        bool was_cancelled = db.row("SELECT outbox.cancel_replay($1) AS was", {id}).at("was");
        json row = replay_row(db, id);
        auto said = say(context, row);
        return was_cancelled ? exit_code::ok : said == exit_code::ok ? exit_code::wrong : said;
    }
    auto since = limit(db, wanted.since), until = limit(db, wanted.until);
    auto id = db.row("SELECT outbox.replay($1, $2, $3, $4::text[], $5, $6::int) AS id",
                     {context.common().sink, since, until,
                      wanted.topics.empty() ? std::nullopt : std::optional(array_of(wanted.topics)),
                      wanted.into.empty() ? std::nullopt : std::optional(wanted.into),
                      wanted.rate == 0 ? std::nullopt : std::optional(std::to_string(wanted.rate))})
                  .at("id")
                  .dump();
    return wanted.no_wait ? say(context, replay_row(db, id)) : follow(context, id);
}

void add_replay(CLI::App &app, options &common, action &chosen) {
    CLI::App *command = add_command(app, "replay", "Append retained events of a sink again",
                                    "outboxctl replay --since 2h --topic wallet --into 'replay:{%t}'\n"
                                    "outboxctl replay --since 1795273184059-0 --rate 500 --no-wait\n"
                                    "outboxctl replay --list\n"
                                    "outboxctl replay --cancel 7",
                                    common);
    auto wanted = std::make_shared<replay_request>();
    command->add_option("--since", wanted->since, "events published from then on: 10m, 2h, 3d, 2026-11-21T08:55:15Z, or a position")
        ->type_name("TIME");
    command->add_option("--until", wanted->until, "events up to then; default: all that is published now")->type_name("TIME");
    command->add_option("--topic", wanted->topics, "only these topics, or patterns of topics")->type_name("TOPIC");
    command->add_option("--into", wanted->into, "template of the streams, such as 'replay:{%t}'; default: the ends of the sink's own")
        ->type_name("STREAM");
    command->add_option("--rate", wanted->rate, "events per second at most")->type_name("N")->check(CLI::PositiveNumber);
    auto *no_wait = command->add_flag("--no-wait", wanted->no_wait, "start it, and leave it alone");
    auto *list = command->add_flag("--list", wanted->list, "show what replays there are");
    auto *cancel = command->add_option("--cancel", wanted->cancel, "end a replay")->type_name("ID")->check(CLI::PositiveNumber);
    auto *follow = command->add_option("--follow", wanted->follow, "show how far a replay is, until it has ended")
                       ->type_name("ID")
                       ->check(CLI::PositiveNumber);
    for (CLI::Option *one : {no_wait, list, cancel, follow})
        for (CLI::Option *other : {no_wait, list, cancel, follow})
            if (one != other)
                one->excludes(other);
    command->callback([&chosen, wanted] { chosen = [wanted](context &context) { return replay(context, *wanted); }; });
}

} // namespace outbox::ctl

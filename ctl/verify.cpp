// outboxctl verify: outbox.verify(), with a progress bar.
#include <algorithm>
#include <csignal>

#include <poll.h>

#include "ctl/context.hpp"
#include "ctl/progress.hpp"
#include "ctl/table.hpp"
#include "ctl/when.hpp"

namespace outbox::ctl {

static volatile std::sig_atomic_t interrupted = 0;
static void interrupt(int) { interrupted = 1; }

namespace {

// Ctrl-c ends the query in the server, too, and then this program in the usual way.
class cancellable {
  public:
    explicit cancellable(PGconn *connection) : connection_(connection) {
        struct sigaction action {};
        sigemptyset(&action.sa_mask);
        action.sa_handler = interrupt; // without SA_RESTART: poll() ends
        sigaction(SIGINT, &action, &before_);
    }
    ~cancellable() { sigaction(SIGINT, &before_, nullptr); }
    cancellable(const cancellable &) = delete;
    cancellable &operator=(const cancellable &) = delete;

    void cancel() {
        char why[256];
        PGcancel *cancel = PQgetCancel(connection_);
        PQcancel(cancel, why, sizeof why);
        PQfreeCancel(cancel);
    }

  private:
    PGconn *connection_;
    struct sigaction before_ {};
};

// Looks at a verify from beside it, where there is somebody to show it to. Without it nothing but the bar is missing.
class watcher {
  public:
    explicit watcher(const std::string &dbname) {
        if (is_terminal(stderr))
            attempt([&] { connection_.emplace(dbname); });
    }

    json progress_of(const std::string &pid) {
        json row;
        if (connection_)
            attempt([&] {
                row = connection_->row(
                    "SELECT ticks_total, ticks, upto, findings FROM outbox.stat_verify WHERE pid = $1::int", {pid});
            });
        return row;
    }

  private:
    template <typename Act> void attempt(Act act) {
        try {
            act();
        } catch (const failure &) {
            connection_.reset();
        }
    }
    std::optional<database> connection_;
};

} // namespace

std::optional<std::string> time_for_sql(database &db, const std::string &text) {
    if (text.empty())
        return std::nullopt;
    auto now = db.row("SELECT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint AS ms")
                   .at("ms")
                   .get<std::int64_t>();
    detail::entry_id position;
    if (!parse_when(text, now, position))
        throw failure(exit_code::usage, "\"" + text + "\" is no point in time", "Use 10m, 2h, 3d, or 2026-11-21T08:55:15Z.");
    return db.row("SELECT pg_catalog.to_timestamp($1::numeric / 1000) AS at", {std::to_string(position.ms)})
        .at("at")
        .get<std::string>();
}

// The rows, however long that takes.
static json run(context &context, const std::optional<std::string> &since, const std::optional<std::string> &until) {
    database &db = context.database();
    watcher beside(context.common().dbname);
    PGconn *connection = db.connection();
    auto pid = std::to_string(PQbackendPID(connection));
    const char *values[] = {context.common().sink.c_str(), since ? since->c_str() : nullptr,
                            until ? until->c_str() : nullptr};
    cancellable guard(connection);
    progress_bar bar;
    if (PQsendQueryParams(connection, "SELECT * FROM outbox.verify($1, $2, $3)", 3, nullptr, values, nullptr, nullptr, 0) ==
        0)
        return db.result(PQgetResult(connection));
    bool cancelled = false;
    while (PQisBusy(connection) != 0) {
        pollfd socket{PQsocket(connection), POLLIN, 0};
        poll(&socket, 1, 100);
        if (interrupted != 0 && !cancelled) {
            guard.cancel();
            cancelled = true;
        }
        if (PQconsumeInput(connection) == 0)
            break;
        if (PQisBusy(connection) != 0)
            if (json row = beside.progress_of(pid); !row.is_null())
                bar.draw(row.at("ticks"), row.at("ticks_total"),
                         "ticks, " + plain(row.at("findings")) + " findings, up to " + plain(row.at("upto")));
    }
    PGresult *got = PQgetResult(connection);
    while (PGresult *more = PQgetResult(connection))
        PQclear(more);
    if (cancelled && PQresultStatus(got) != PGRES_TUPLES_OK) {
        PQclear(got);
        return nullptr;
    }
    return db.result(got);
}

static exit_code verify(context &context, const std::string &since, const std::string &until) {
    database &db = context.database();
    db.require_extension();
    auto from = time_for_sql(db, since), to = time_for_sql(db, until);
    db.take_notices();
    json findings = run(context, from, to);
    if (findings.is_null()) {
        std::signal(SIGINT, SIG_DFL);
        std::raise(SIGINT);
    }
    auto notices = db.take_notices();
    bool good = findings.empty();
    bool only_trimmed =
        std::all_of(findings.begin(), findings.end(), [](const json &row) { return row.at("finding") == "trimmed"; });
    auto code = good ? exit_code::ok : only_trimmed ? exit_code::warnings : exit_code::wrong;
    if (context.common().json) {
        write(line_of({{"sink", context.common().sink}, {"verified", good}, {"findings", findings}, {"notices", notices}}));
        return code;
    }
    bool colours = shows_colours(stdout);
    std::string text;
    for (const auto &notice : notices)
        text += shown(notice) + "\n";
    if (good) {
        text += in(colour::good, "everything is where it should be", colours) + "\n";
    } else {
        using enum table::align;
        table table({{"FINDING", left},
                     {"STREAM", left},
                     {"EXPECTED", left},
                     {"FOUND", left},
                     {"EVENT", left},
                     {"ENTRIES", right},
                     {"DETAIL", left}});
        for (const json &row : findings)
            table.add({{plain(row["finding"]), row["finding"] == "trimmed" ? colour::warning : colour::bad},
                       {plain(row["stream"])},
                       {plain(row["expected"])},
                       {plain(row["found"])},
                       {plain(row["event_id"])},
                       {plain(row["entries"])},
                       {row["detail"].is_null() ? "" : plain(row["detail"])}});
        text += table.text(colours);
    }
    write(text);
    return code;
}

void add_verify(CLI::App &app, options &common, action &chosen) {
    CLI::App *command =
        add_command(app, "verify", "Compare what was committed with what the streams hold",
                    "outboxctl verify\n"
                    "outboxctl verify --since 6h\n"
                    "outboxctl verify --since 2026-11-21 --until 2026-11-22 --json | jq '.findings | length'",
                    common);
    auto since = std::make_shared<std::string>(), until = std::make_shared<std::string>();
    command->add_option("--since", *since, "only ticks from then on: 10m, 2h, 3d, or 2026-11-21T08:55:15Z")
        ->type_name("TIME");
    command->add_option("--until", *until, "only ticks up to then")->type_name("TIME");
    command->callback(
        [&chosen, since, until] { chosen = [since, until](context &context) { return verify(context, *since, *until); }; });
}

} // namespace outbox::ctl

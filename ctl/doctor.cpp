// outboxctl doctor: what is wrong, and what to change.
#include "ctl/doctor.hpp"

#include <chrono>
#include <cmath>

#include "ctl/table.hpp"

namespace outbox::ctl {

namespace {

// A clock beside ours: how far ahead, and how far off that may be.
struct offset {
    double seconds, error;
};

template <typename Ask> offset measure(Ask ask) {
    using clock = std::chrono::system_clock;
    auto seconds = [](clock::time_point time) { return std::chrono::duration<double>(time.time_since_epoch()).count(); };
    offset best{0, HUGE_VAL};
    for (int i = 0; i < 3; ++i) { // the quickest answer is the most exact
        double before = seconds(clock::now()), there = ask(), after = seconds(clock::now());
        if (double error = std::fabs(after - before) / 2; error < best.error)
            best = {there - (before + after) / 2, error};
    }
    return best;
}

} // namespace

void examine_clocks(database &db, redis &redis, report &report) {
    auto of_database = measure([&] {
        return db.row("SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) AS at").at("at").get<double>();
    });
    auto of_redis = measure([&] { return std::chrono::duration<double>(redis.time().time_since_epoch()).count(); });
    double skew = of_redis.seconds - of_database.seconds, error = of_redis.error + of_database.error;
    char text[128];
    std::snprintf(text, sizeof text, "the clock of Redis is %.3f s %s that of PostgreSQL (measured to %.3f s)",
                  std::fabs(skew), skew < 0 ? "behind" : "ahead of", error);
    double surely = std::fabs(skew) - error;
    if (surely > 60)
        report.error("clocks", text, "Synchronise the clocks of both machines (NTP): ages and leases are reckoned by them.");
    else if (surely > 1)
        report.warning("clocks", text, "Synchronise the clocks of both machines (NTP): ages are reckoned by them.");
    else
        report.ok("clocks", text);
}

static std::string name_of(level is) {
    switch (is) {
    case level::ok: return "ok";
    case level::unknown: return "unknown";
    case level::warning: return "warning";
    default: return "error";
    }
}

static colour colour_of(level is) {
    return is == level::ok        ? colour::good
           : is == level::unknown ? colour::dim
           : is == level::warning ? colour::warning
                                  : colour::bad;
}

static std::string render(const report &report, bool colours) {
    std::string text;
    std::int64_t counts[4] = {};
    for (const auto &one : report.findings()) {
        ++counts[static_cast<int>(one.is)];
        std::string head = name_of(one.is);
        head.resize(9, ' ');
        text += in(colour_of(one.is), head, colours) + shown(one.what) + "\n";
        if (!one.change.empty())
            text += std::string(9, ' ') + in(colour::dim, "-> " + shown(one.change), colours) + "\n";
    }
    text += "\n" + counted(counts[3], "error") + ", " + counted(counts[2], "warning") + ", " + std::to_string(counts[1]) +
            " unknown, " + std::to_string(counts[0]) + " ok\n";
    return text;
}

static exit_code doctor(context &context) {
    report report;
    bool database_works = false, extension_works = false;
    try {
        database &db = context.database();
        database_works = true;
        examine_server(db, report);
        extension_works = examine_extension(db, report);
    } catch (const failure &why) {
        report.error(database_works ? "extension" : "postgresql", why.what(), why.hint());
    }
    try {
        examine_redis(context, extension_works, report);
        if (database_works)
            examine_clocks(context.database(), context.redis(), report);
    } catch (const failure &why) {
        if (why.code() == exit_code::usage)
            throw;
        report.error("redis", why.what(), why.hint());
    } catch (const outbox::error &why) {
        report.error("redis", why.what(),
                     "Say where Redis is with --redis or OUTBOX_REDIS_URL, and who asks; see that it runs.");
    }

    auto worst = level::ok;
    json rows = json::array();
    for (const auto &one : report.findings()) {
        if (one.is != level::unknown)
            worst = std::max(worst, one.is);
        rows.push_back({{"check", one.check},
                        {"level", name_of(one.is)},
                        {"what", one.what},
                        {"change", one.change.empty() ? json(nullptr) : json(one.change)}});
    }
    write(context.common().json ? line_of({{"worst", name_of(worst)}, {"findings", std::move(rows)}})
                                : render(report, shows_colours(stdout)));
    return worst == level::error ? exit_code::wrong : worst == level::warning ? exit_code::warnings : exit_code::ok;
}

void add_doctor(CLI::App &app, options &common, action &chosen) {
    CLI::App *command = add_command(app, "doctor", "Look for what is wrong, and say what to change",
                                    "outboxctl doctor\n"
                                    "outboxctl doctor -d 'host=db1 dbname=service user=postgres'\n"
                                    "outboxctl doctor --json | jq -r '.findings[] | select(.level == \"error\") | .what'",
                                    common);
    command->callback([&chosen] { chosen = doctor; });
}

} // namespace outbox::ctl

// The command line of outboxctl: which command, its options, and how it ends.
#include <csignal>
#include <cstdio>
#include <iostream>

#include "ctl/context.hpp"
#include "ctl/terminal.hpp"

namespace outbox::ctl {

static void add_common_options(CLI::App &app, options &common) {
    app.add_option("-d,--dbname", common.dbname, "database, or a connection string of libpq; PG* variables say the rest")
        ->type_name("CONNINFO")
        ->group("Connection");
    app.add_option("--redis", common.redis_url,
                   "URL of Redis without a password; default: OUTBOX_REDIS_URL, else what the sink uses")
        ->type_name("URL")
        ->group("Connection");
    app.add_option("--redis-password-file", common.password_file,
                   "file with the password of Redis; default: OUTBOX_REDIS_PASSWORD_FILE")
        ->type_name("FILE")
        ->group("Connection");
    app.add_option("--sink", common.sink, "the sink whose Redis is asked, and that is verified; default: default")
        ->type_name("NAME")
        ->group("Connection");
    app.add_flag("--json", common.json, "JSON on standard output, for scripts")->group("Output");
}

static std::string indented(const std::string &lines) {
    std::string result = "Examples:\n  ";
    for (char c : lines)
        result += c == '\n' ? std::string("\n  ") : std::string(1, c);
    return result;
}

CLI::App *add_command(CLI::App &parent, const std::string &name, const std::string &about, const std::string &examples,
                      options &common) {
    CLI::App *command = parent.add_subcommand(name, about);
    add_common_options(*command, common);
    command->footer(indented(examples));
    return command;
}

// The command that the words ask for help about: "outboxctl dlq ls".
static std::string parsed_so_far(const CLI::App &app) {
    std::string words = "outboxctl";
    for (const CLI::App *command = &app; !command->get_subcommands().empty();) {
        command = command->get_subcommands().front();
        words += " " + command->get_name();
    }
    return words;
}

static int say(exit_code code, const std::string &message, const std::string &hint = {}) {
    bool colours = shows_colours(stderr);
    std::cerr << in(colour::bad, "outboxctl:", colours) << " " << shown(message) << "\n";
    if (!hint.empty())
        std::cerr << in(colour::dim, "hint:", colours) << " " << shown(hint) << "\n";
    return static_cast<int>(code);
}

static int said_by_redis(const reply_error &error) {
    std::string hint = "See \"outboxctl doctor\".";
    if (error.code() == "NOPERM")
        hint = "Give --redis a user that may read everything of outbox: see REDIS PRIVILEGES in outboxctl(1).";
    else if (error.code() == "NOAUTH" || error.code() == "WRONGPASS")
        hint = "Give the password in a file (--redis-password-file), or in OUTBOX_REDIS_PASSWORD.";
    return say(exit_code::unavailable, std::string("Redis refuses: ") + error.what(), hint);
}

static int run(int argc, char **argv) {
    prepare_terminal();
    std::signal(SIGPIPE, SIG_DFL); // as `outboxctl tail | head` expects

    options common;
    action chosen;
    CLI::App app("Shows and operates the transactional outbox: events on their way from PostgreSQL to Redis Streams.",
                 "outboxctl");
    app.set_version_flag("--version", "outboxctl " OUTBOX_VERSION);
    app.require_subcommand(1);
    app.footer("Exit status: 0 done; 1 done, and the answer is bad; 2 wrong usage; 3 a server cannot be asked;\n"
               "4 nothing worse than warnings. \"outboxctl COMMAND --help\" shows examples; the rest is in outboxctl(1).");
    app.get_formatter()->column_width(34);
    add_status(app, common, chosen);
    add_tail(app, common, chosen);
    add_show(app, common, chosen);
    add_groups(app, common, chosen);
    add_dlq(app, common, chosen);
    add_replay(app, common, chosen);
    add_verify(app, common, chosen);
    add_doctor(app, common, chosen);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError &error) {
        if (error.get_exit_code() == 0)
            return app.exit(error); // --help and --version
        if (auto words = app.remaining(true); !words.empty() && app.get_subcommands().empty())
            return say(exit_code::usage, "there is no command \"" + words.front() + "\"", "Try \"outboxctl --help\".");
        return say(exit_code::usage, error.what(), "Try \"" + parsed_so_far(app) + " --help\".");
    }

    try {
        context context(common);
        return static_cast<int>(chosen(context));
    } catch (const failure &why) {
        return say(why.code(), why.what(), why.hint());
    } catch (const reply_error &error) {
        return said_by_redis(error);
    } catch (const connection_error &error) {
        return say(exit_code::unavailable, error.what(),
                   "Say where Redis is with --redis or OUTBOX_REDIS_URL: the address that the sink uses may mean another "
                   "machine here.");
    } catch (const std::exception &error) {
        return say(exit_code::unavailable, error.what());
    }
}

} // namespace outbox::ctl

int main(int argc, char **argv) { return outbox::ctl::run(argc, argv); }

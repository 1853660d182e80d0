// What every command understands, and how a command is made known to the command line.
#pragma once

#include <functional>
#include <string>

#include <CLI/CLI.hpp>

#include "ctl/failure.hpp"

namespace outbox::ctl {

struct options {
    std::string dbname;        // as psql's: a name, or a connection string
    std::string redis_url;     // empty: see find_redis()
    std::string password_file; // of Redis
    std::string sink = "default";
    bool json = false;
};

class context;

// What the chosen command does; set by the one that was parsed.
using action = std::function<exit_code(context &)>;

// Makes a command and gives it the common options. `examples` are whole command lines, one each line.
CLI::App *add_command(CLI::App &parent, const std::string &name, const std::string &about, const std::string &examples,
                      options &common);

// One each command, in a file of its own; they keep what they parse for themselves.
void add_status(CLI::App &app, options &common, action &chosen);
void add_tail(CLI::App &app, options &common, action &chosen);
void add_show(CLI::App &app, options &common, action &chosen);
void add_groups(CLI::App &app, options &common, action &chosen);
void add_dlq(CLI::App &app, options &common, action &chosen);
void add_replay(CLI::App &app, options &common, action &chosen);
void add_verify(CLI::App &app, options &common, action &chosen);
void add_doctor(CLI::App &app, options &common, action &chosen);

} // namespace outbox::ctl

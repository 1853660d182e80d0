// What `outboxctl doctor` looks at. Each check says what it found, and what to change.
#pragma once

#include <string>
#include <vector>

#include "ctl/context.hpp"

namespace outbox::ctl {

enum class level { ok, unknown, warning, error };

struct finding {
    std::string check; // a name that stays: for scripts
    level is;
    std::string what;
    std::string change; // what to do; of one that is unknown what is needed to know
};

class report {
  public:
    void ok(std::string check, std::string what) { add(std::move(check), level::ok, std::move(what)); }
    void unknown(std::string check, std::string what, std::string change) {
        add(std::move(check), level::unknown, std::move(what), std::move(change));
    }
    void warning(std::string check, std::string what, std::string change) {
        add(std::move(check), level::warning, std::move(what), std::move(change));
    }
    void error(std::string check, std::string what, std::string change) {
        add(std::move(check), level::error, std::move(what), std::move(change));
    }

    const std::vector<finding> &findings() const noexcept { return findings_; }

  private:
    void add(std::string check, level is, std::string what, std::string change = {}) {
        findings_.push_back({std::move(check), is, std::move(what), std::move(change)});
    }
    std::vector<finding> findings_;
};

// The server: versions, settings, workers.
void examine_server(database &db, report &report);
// The extension in this database: privileges, sinks, dead letters, retention. False if it is not there or may not be read.
bool examine_extension(database &db, report &report);
// Redis: version, role, persistence, eviction, privileges, and whether it is the sink's.
void examine_redis(context &context, bool database_works, report &report);
// The clocks of both servers beside each other.
void examine_clocks(database &db, redis &redis, report &report);

} // namespace outbox::ctl

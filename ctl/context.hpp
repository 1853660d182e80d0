// What a command works with: the options, and the two servers, connected to when they are first needed.
#pragma once

#include <memory>
#include <optional>

#include "ctl/options.hpp"
#include "ctl/postgres.hpp"
#include "ctl/redis.hpp"

namespace outbox::ctl {

class context {
  public:
    explicit context(const options &common) : common_(common) {}

    const options &common() const noexcept { return common_; }

    // Throws failure if it cannot be reached.
    ctl::database &database() {
        if (!database_)
            database_ = std::make_unique<ctl::database>(common_.dbname);
        return *database_;
    }

    // Needs the database unless the URL was given; connects at the first command.
    const redis_address &address() {
        if (!address_)
            address_ = find_redis(common_, [this]() -> ctl::database & { return database(); });
        return *address_;
    }

    ctl::redis &redis() {
        if (!redis_)
            redis_ = std::make_unique<ctl::redis>(address());
        return *redis_;
    }

    // What broke is connected to again at the next call.
    void forget_database() { database_.reset(); }

  private:
    const options &common_;
    std::unique_ptr<ctl::database> database_;
    std::optional<redis_address> address_;
    std::unique_ptr<ctl::redis> redis_;
};

// A point in time as people type it, as SQL reads it; nothing for an empty text. Throws failure.
std::optional<std::string> time_for_sql(database &db, const std::string &text);

} // namespace outbox::ctl

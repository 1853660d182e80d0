// A bar on standard error that says how far something is; it is gone when it is destroyed.
#pragma once

#include <optional>
#include <string>

#include "ctl/postgres.hpp"

namespace outbox::ctl {

class progress_bar {
  public:
    progress_bar() = default;
    ~progress_bar();
    progress_bar(const progress_bar &) = delete;
    progress_bar &operator=(const progress_bar &) = delete;

    // `rest` follows "<done> of <total>"; both are numbers or null.
    void draw(const json &done, const json &total, const std::string &rest);

  private:
    bool drawn_ = false;
};

} // namespace outbox::ctl

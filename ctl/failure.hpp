// How a command ends when it cannot do, or did not find, what it was asked for.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace outbox::ctl {

// Documented in the man page: scripts depend on them.
enum class exit_code {
    ok = 0,
    wrong = 1,       // done, and the answer is bad: findings, errors, or what was asked for is not there
    usage = 2,       // the command line cannot be
    unavailable = 3, // a server cannot be asked: no connection, no extension, no right
    warnings = 4,    // nothing worse than a warning: of doctor; of verify, that entries were trimmed; of replay, that events are gone
};

// Said on standard error, with what to do about it.
class failure : public std::runtime_error {
  public:
    failure(exit_code code, const std::string &message, std::string hint = {})
        : std::runtime_error(message), code_(code), hint_(std::move(hint)) {}

    exit_code code() const noexcept { return code_; }
    const std::string &hint() const noexcept { return hint_; }

  private:
    exit_code code_;
    std::string hint_;
};

} // namespace outbox::ctl

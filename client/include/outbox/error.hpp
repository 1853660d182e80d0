// What the library throws: one family, rooted in outbox::error, with a type of its own only where a caller can act
// differently.
#pragma once

#include <chrono>
#include <stdexcept>
#include <string>

namespace outbox {

/// The root of everything the library throws, but for std::invalid_argument (options and arguments that cannot work, thrown
/// before anything connects).
class error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// A server could not be reached, or the connection to it broke. What was asked may or may not have been done.
class connection_error : public error {
  public:
    using error::error;
};

/// A server did not answer in time. What was asked may or may not have been done.
class timeout_error : public connection_error {
  public:
    using connection_error::connection_error;
};

/// A server answered with an error: Redis' words, or PostgreSQL's primary message.
class reply_error : public error {
  public:
    explicit reply_error(const std::string &message, std::string code = {}) : error(message), code_(std::move(code)) {}

    /// Redis' first word ("WRONGTYPE"), or PostgreSQL's five characters of SQLSTATE ("22023"); empty when there is none.
    const std::string &code() const noexcept { return code_; }

  private:
    std::string code_;
};

/// Thrown by a handler: this event will never be handled, so it goes to the dead letters at once, with this reason and
/// without another attempt.
class reject : public error {
  public:
    using error::error;
};

/// An event that does not keep the contract: a payload that is not JSON, a header that is no object, a time that is none.
/// Thrown by the accessors of outbox::event; thrown out of a handler it means what reject means.
class malformed : public reject {
  public:
    using reject::reject;
};

/// Thrown by a handler: not now. The event is tried again after `delay` (0 or more) instead of the policy's next delay; the
/// attempt counts.
class retry_after : public error {
  public:
    retry_after(std::chrono::milliseconds delay, const std::string &why) : error(why), delay_(delay) {}

    std::chrono::milliseconds delay() const noexcept { return delay_; }

  private:
    std::chrono::milliseconds delay_;
};

} // namespace outbox

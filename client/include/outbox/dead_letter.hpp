// The dead letters of a group: what could not be handled, and what to do with it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <outbox/error.hpp>

namespace outbox {

/// One entry of `outbox:{topic}:dlq:<group>`.
struct dead_letter {
    std::string id;        ///< of the dead letter itself: its entry ID in the dead letter stream
    std::string topic;
    std::string position;  ///< of the original entry, `<ms>-<n>`
    std::string stream;    ///< that it was read from: the topic's stream, or the group's redrive stream
    std::string error;     ///< what the last attempt said, or why there was none
    std::string consumer;  ///< that moved it here
    int attempts = 0;      ///< that were made
    std::chrono::sys_time<std::chrono::milliseconds> died_at; ///< by the clock of Redis
    std::uint64_t parked = 0; ///< events of its aggregate that wait behind it (on_poison::park_aggregate)

    /// The original entry, every field as it was and in its order, also what is no event. Empty if the entry was trimmed
    /// away before it could be copied.
    std::vector<std::pair<std::string, std::string>> fields;

    /// A field of the original entry, or empty: field("event_id"), field("event_type"), field("payload"), …
    std::string_view field(std::string_view name) const noexcept;
};

/// Lists, counts, redrives and discards the dead letters of a group in a topic. Each call talks to Redis and waits for it:
/// for operators' tools and tests, not for handlers. An object is for one thread at a time; it connects at the first call,
/// and again after an error.
///
/// A redriven event is appended, with all its fields, to the group's own stream `outbox:{topic}:redrive:<group>`, which only
/// this group reads: the other groups do not see it again, and the topic's stream stays the outbox's alone. It starts with
/// its full budget of attempts, and comes after the events that were handled meanwhile; with park_aggregate those of its
/// aggregate have waited and follow it in order. Moving there and leaving the dead letters is one atomic step; so is
/// discarding. Neither forgets that an event is done: one that an earlier delivery has handled is skipped.
///
/// \throws connection_error, timeout_error, reply_error from every call
class dead_letters {
  public:
    /// \param redis_url as consumer_options::redis_url
    /// \throws std::invalid_argument if the URL, the topic or the group cannot be
    dead_letters(std::string_view redis_url, std::string topic, std::string group,
                 std::chrono::milliseconds timeout = std::chrono::seconds(5));
    ~dead_letters();
    dead_letters(dead_letters &&) noexcept;
    dead_letters &operator=(dead_letters &&) noexcept;

    std::uint64_t count();

    /// At most `limit` of them, oldest first, behind the one with the id `after`.
    std::vector<dead_letter> list(std::size_t limit = 100, std::string_view after = "0");

    /// One of them, by its id; nothing if it is not there (any more).
    std::optional<dead_letter> inspect(std::string_view id);

    using filter = std::function<bool(const dead_letter &)>;

    /// Delivers one again; false if it is not there. One that was trimmed away cannot be: reply_error.
    bool redrive(std::string_view id);

    /// Those that the filter accepts, or all that are there when the call begins, oldest first; returns how many. Those
    /// without fields are left.
    std::size_t redrive(const filter &accepts);
    std::size_t redrive_all();

    /// Deletes one for ever; false if it is not there. What is parked behind it is released.
    bool discard(std::string_view id);
    std::size_t discard(const filter &accepts);
    std::size_t discard_all();

  private:
    struct implementation;
    std::unique_ptr<implementation> implementation_;
};

} // namespace outbox

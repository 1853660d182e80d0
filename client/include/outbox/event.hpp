// An event as a handler sees it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace outbox {

/// One event, as it was emitted, and where it stands in the stream.
///
/// Every text is a view into the reply that the event was read from; the event owns a share of it, so a view is good as long
/// as the event or a copy of it lives. Copies are cheap. A copy may be used in another thread; one object is for one thread
/// at a time, because the payload and the headers are parsed when they are first asked for.
class event {
  public:
    /// The identity: a UUID. Two entries with the same id are the same event.
    std::string_view id() const noexcept { return fields_.id; }

    /// `module.aggregate.action`.
    std::string_view type() const noexcept { return fields_.type; }

    /// The kind of thing the event is about, and which one; empty when it was emitted without. Together they name the
    /// aggregate, within which order is kept.
    std::string_view aggregate_type() const noexcept { return fields_.aggregate_type; }
    std::string_view aggregate_id() const noexcept { return fields_.aggregate_id; }

    /// The version of the payload's contract, 1 or more.
    int version() const noexcept { return fields_.version; }

    /// When it happened, as text (RFC 3339, UTC, microseconds) and as a time.
    /// \throws malformed from occurred_at() if the text is not such a time
    std::string_view occurred_at_text() const noexcept { return fields_.occurred_at; }
    std::chrono::sys_time<std::chrono::microseconds> occurred_at() const;

    /// The headers, an empty object if there are none. Parsed once; the text is what is in the stream.
    /// \throws malformed
    const nlohmann::json &headers() const;
    std::string_view headers_text() const noexcept { return fields_.headers; }

    /// One header, if it is there: a string as it is, anything else as JSON text.
    /// \throws malformed
    std::optional<std::string> header(std::string_view name) const;

    /// The payload. Parsed once; the text is what was emitted, byte for byte.
    /// \throws malformed
    const nlohmann::json &payload() const;
    std::string_view payload_text() const noexcept { return fields_.payload; }

    /// `correlation_id` of the headers, or the event's own id: an event without one starts a correlation.
    std::string correlation_id() const;

    /// Where it is: the topic, and the position `<ms>-<n>` in the topic's stream (for a redriven event the position that
    /// it had there at first).
    std::string_view topic() const noexcept { return topic_; }
    std::string_view position() const noexcept { return position_; }

    /// Which attempt this is: 1 for the first.
    int attempt() const noexcept { return attempt_; }

    /// The eight fields of an entry, as views. What a decoder fills in; a handler uses the functions above.
    struct fields {
        std::string_view id, type, aggregate_type, aggregate_id, occurred_at, headers, payload;
        int version = 1;
    };

    /// For brokers, not for handlers: an event over texts that `owner` keeps alive.
    event(const fields &texts, std::string_view topic, std::string_view position, int attempt,
          std::shared_ptr<const void> owner)
        : fields_(texts), topic_(topic), position_(position), attempt_(attempt), owner_(std::move(owner)) {}

  private:
    fields fields_;
    std::string_view topic_, position_;
    int attempt_;
    std::shared_ptr<const void> owner_;
    mutable std::shared_ptr<const nlohmann::json> payload_json_, headers_json_;

    friend class event_access; // the library itself: sets the attempt
};

} // namespace outbox

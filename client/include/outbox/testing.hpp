// Unit tests of handlers without servers: the consumer on a broker in memory, with a clock that the test moves.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <libpq-fe.h>

#include <outbox/dead_letter.hpp>
#include <outbox/emit.hpp>

namespace outbox::testing {

/// Streams, groups and dead letters in memory. Everything happens in the thread that calls consumer::run(), which returns
/// when there is nothing left to do at this time of the broker's clock: no thread, no waiting, the same every time.
///
///     outbox::testing::broker broker;
///     outbox::consumer consumer{{.group = "billing"}, broker};
///     consumer.on("wallet.created", flaky);
///     broker.publish({.type = "wallet.created", .payload = {{"wallet_id", "a"}}});
///     consumer.run();                              // attempt 1 fails
///     broker.advance(std::chrono::minutes(1));
///     consumer.run();                              // attempt 2
///     EXPECT_EQ(broker.dead("wallet", "billing").size(), 0u);
///
/// What is the library's own is the same code as on Redis: which handler is called, order, concurrency, retries, rejections,
/// duplicates, decoding. Attempts of a process that dies, leases and reconnects are not: those want the real thing.
///
/// A group is made when a consumer of it first runs. Handlers are called one at a time; asynchronous ones may be without an
/// answer up to `concurrency`, and what a token says is heard by the next run(). Retries come after the delay of the policy
/// without jitter. A consumer may run() as often as it likes until it is stopped: then it hands what it holds to the others of
/// its group, and run() returns false if a token was still out. `on_transaction` needs no `consumer_options::inbox` here.
///
/// The broker must outlive its consumers; consumers of one broker run in one thread, one after the other.
class broker {
  public:
    broker();
    ~broker();
    broker(const broker &) = delete;
    broker &operator=(const broker &) = delete;

    /// Appends an event to its topic as the outbox would, and returns its id. Publishing the same id again is a duplicate.
    /// \throws std::invalid_argument for deliver_at and dedupe_key, which are the database's matter: publish what it would, when it would
    /// \throws std::invalid_argument for what outbox.emit() would refuse, but for payloads that are too large: what is, is a
    ///     setting
    std::string publish(const new_event &event);

    /// Appends an entry of any fields, one at least, as a stranger might.
    /// \throws std::invalid_argument if the topic is none, or there is no field
    void publish_raw(std::string_view topic, std::vector<std::pair<std::string, std::string>> fields);

    /// The clock: starts at 2000-01-01, and moves only here.
    std::chrono::sys_time<std::chrono::milliseconds> now() const noexcept;
    /// \throws std::invalid_argument if `by` is negative
    void advance(std::chrono::milliseconds by);

    /// When the next retry is due, of any consumer; nothing if none waits.
    std::optional<std::chrono::milliseconds> until_next_retry() const;

    /// What on_transaction handlers get as their connection. Null, as it is at first, for handlers that do not use it; the
    /// broker begins and commits nothing on it, and keeps the inbox in memory.
    void use_connection(PGconn *connection) noexcept;

    std::vector<dead_letter> dead(std::string_view topic, std::string_view group) const;

    /// As dead_letters::redrive and discard, by the dead letter's id.
    bool redrive(std::string_view topic, std::string_view group, std::string_view id);
    bool discard(std::string_view topic, std::string_view group, std::string_view id);

    /// Entries of the topic that the group has not finished, redriven ones too; not what is parked behind a dead letter, see
    /// dead_letter::parked.
    std::size_t pending(std::string_view topic, std::string_view group) const;

    class implementation;
    implementation &internals() noexcept { return *implementation_; }

  private:
    std::unique_ptr<implementation> implementation_;
};

} // namespace outbox::testing

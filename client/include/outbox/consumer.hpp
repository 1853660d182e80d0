// Reads events from Redis Streams as a member of a consumer group and calls handlers.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <outbox/error.hpp>
#include <outbox/event.hpp>
#include <outbox/idempotency.hpp>
#include <outbox/inbox.hpp>
#include <outbox/log.hpp>
#include <outbox/retry.hpp>
#include <outbox/stats.hpp>

namespace outbox {

namespace testing {
class broker;
}

/// Whether events of one aggregate (`aggregate_type` and `aggregate_id`, within a topic) keep their order.
enum class ordering {
    /// They never overlap and are handled in the order of the stream, in this process and between the processes of the
    /// group, also while one of them waits for a retry. Events without an `aggregate_id` are free.
    aggregate,
    /// All events are free: while one waits for a retry the next of its aggregate is handled.
    none,
};

/// What a dead letter means to the later events of its aggregate.
enum class on_poison {
    /// Nothing: they are handled.
    skip,
    /// They are set aside behind it, in order, until it is redriven or discarded. Needs `ordering::aggregate`, and every
    /// consumer of the group must say so.
    park_aggregate,
};

/// What to do with an event that no handler is for.
enum class on_unhandled { acknowledge, dead_letter };

/// Options of a consumer. Durations are 0 or more unless a range is given.
struct consumer_options {
    /// One of
    /// - `redis://[[user][:password]@]host[:port][/db]`, with `[…]` around an IPv6 address
    /// - `rediss://…`, the same by TLS (1.2 or later; certificate and host are always verified), with
    ///   `?sslrootcert=FILE` (the system's authorities where it is not given) and `&sslcert=FILE&sslkey=FILE`
    /// - `unix://[[user][:password]@]/path[?db=N]`
    /// - `redis+sentinel://[[user][:password]@]host[:port],…/master[/db]`: the master that the sentinels name, asked for at
    ///   every connect; `?sentinel_user=NAME&sentinel_password=TEXT`
    /// - `rediss+sentinel://…`, sentinels and servers by TLS, with the parameters of both
    std::string redis_url = "redis://127.0.0.1:6379/0";

    /// A file that holds the password, for URLs without one; in its second line that of the sentinels. Read at every
    /// connect.
    std::string redis_password_file;

    /// The consumer group: processes with the same group share the work, each group gets every event. Required; at most 200
    /// bytes, without control characters, spaces, braces or colons.
    std::string group;

    /// This process in the group. Must be unique; empty: host, process id and a random part.
    std::string name;

    /// The topics to read. Empty: those of the handlers' patterns, which then must begin with a literal segment. Needed for
    /// events that are emitted with a topic of their own.
    std::vector<std::string> topics;

    /// Handlers at a time, 1 to 1024; so many threads, and with an inbox so many connections to PostgreSQL.
    int concurrency = 4;

    outbox::ordering ordering = ordering::aggregate;
    outbox::on_poison on_poison = on_poison::skip;
    outbox::on_unhandled on_unhandled = on_unhandled::acknowledge;
    outbox::idempotency idempotency = idempotency::redis;

    /// How long an event is remembered as done by `idempotency::redis`; 1 s or more.
    std::chrono::milliseconds idempotency_ttl = std::chrono::hours(24);

    retry_policy retry;

    /// What is read ahead: at most so many entries (1 to 100,000, and two for each topic in any case), and so many bytes of
    /// them, but for reads that turn out larger than those before (two at most), and for what is taken over while a read waits
    /// for new entries. What only waits for its acknowledgement does not count as an entry. Few for slow handlers, so that
    /// other processes get their share; a thousand where handlers take microseconds.
    std::size_t prefetch = 256;
    std::size_t prefetch_bytes = 16 * 1024 * 1024;

    /// Handlers started per second, by all processes of the group together, 0.001 to 1,000,000; 0: no limit.
    double rate_limit = 0;

    /// A connection string (libpq) of the database with the inbox, for `on_transaction`.
    std::string inbox;

    /// How long the inbox keeps the ids of handled events; longer than the streams can bring them again. 0: for ever.
    std::chrono::seconds inbox_retention = std::chrono::hours(24 * 30);

    /// Where a group that never existed begins in a stream: "0", at its first entry, or a position `<ms>-<n>`, behind it.
    /// There is no "$": what is emitted while the group is made would be skipped.
    std::string start = "0";

    /// How long a consumer may be silent before others take over its entries; 100 ms or more. A consumer that lives renews
    /// the lease of what it holds four times in this span, however slow a handler is; one that was stopped for longer asks
    /// for each entry whether it is still its own before it calls a handler.
    std::chrono::milliseconds claim_idle = std::chrono::seconds(30);

    /// How long a consumer of the group may be silent, with nothing pending on it, before its name is removed from the group.
    std::chrono::milliseconds reap_idle = std::chrono::minutes(10);

    /// How long one read waits in Redis for entries; 10 ms or more, less than claim_idle.
    std::chrono::milliseconds block = std::chrono::seconds(2);

    std::chrono::milliseconds connect_timeout = std::chrono::seconds(5);  ///< 1 ms or more
    std::chrono::milliseconds response_timeout = std::chrono::seconds(5); ///< 1 ms or more

    /// Reconnecting backs off exponentially between these, with jitter.
    std::chrono::milliseconds reconnect_min = std::chrono::milliseconds(100);
    std::chrono::milliseconds reconnect_max = std::chrono::seconds(10);

    /// How long running handlers have to finish after stop().
    std::chrono::milliseconds shutdown_timeout = std::chrono::seconds(30);

    /// run() stops at SIGTERM and SIGINT. Off, where the program has a handler of its own that calls stop().
    bool handle_signals = true;

    log_function log = log_to_stderr;

    /// The defaults, with what the environment says: OUTBOX_REDIS_URL, OUTBOX_REDIS_PASSWORD_FILE, OUTBOX_GROUP,
    /// OUTBOX_CONSUMER, OUTBOX_TOPICS (separated by commas), OUTBOX_CONCURRENCY, OUTBOX_PREFETCH, OUTBOX_PREFETCH_BYTES,
    /// OUTBOX_RATE_LIMIT, OUTBOX_MAX_ATTEMPTS, OUTBOX_CLAIM_IDLE_MS, OUTBOX_SHUTDOWN_TIMEOUT_MS, OUTBOX_INBOX.
    /// \throws std::invalid_argument if a value is not a number where one is needed, naming the variable
    static consumer_options from_env();

    /// \throws std::invalid_argument with what to change
    void validate() const;
};

/// How an asynchronous handler says that it is done. Exactly one call counts, the first; any thread may make it, also after
/// the consumer has gone. A token whose last copy is destroyed without a call fails the event ("was dropped"), which is then
/// tried again.
class completion {
  public:
    /// The event was handled.
    void done() const noexcept;

    /// It was not: as if the handler had thrown. An outbox::reject or outbox::retry_after means what it means there.
    void failed(std::exception_ptr why) const noexcept;
    void failed(std::string_view why) const noexcept;

    /// The event, as long as this token lives.
    const outbox::event &event() const noexcept;

    struct state;
    explicit completion(std::shared_ptr<state> shared) noexcept : state_(std::move(shared)) {}

  private:
    std::shared_ptr<state> state_;
};

/// A contract: a type that names its event type and version, and is decoded by nlohmann's from_json.
///
///     struct user_created {
///         static constexpr std::string_view event_type = "identity.user.created";
///         static constexpr int version = 1;
///         std::string user_id;
///     };
///     void from_json(const nlohmann::json &json, user_created &user) { json.at("user_id").get_to(user.user_id); }
template <typename T>
concept contract = requires(const nlohmann::json &json) {
    { T::event_type } -> std::convertible_to<std::string_view>;
    { T::version } -> std::convertible_to<int>;
    json.get<T>();
};

/// Calls handlers for the events of the group's topics until stop() or SIGTERM.
///
///     outbox::consumer consumer{outbox::consumer_options::from_env()};
///     consumer.on("wallet.created", [](const outbox::event &event) { greet(event.payload().at("wallet_id")); });
///     consumer.run();
///
/// **Promises.** Each event of the topics is handled at least once, whatever dies; exactly once in its effects with
/// `on_transaction`; in order per aggregate (see outbox::ordering). An event that cannot be handled ends in the dead letters
/// `outbox:{topic}:dlq:<group>` and nowhere else; none is dropped silently. (Operators: `XGROUP DELCONSUMER` of a consumer that
/// lives makes Redis forget what it holds; what has not started of that is given up, and counted as a lost lease.)
///
/// **Handlers.** A handler that returns has handled the event; one that throws is tried again (see outbox::retry_policy,
/// outbox::reject, outbox::retry_after). Handlers run in `concurrency` threads of the consumer; what they share they guard
/// themselves. Exactly one handler sees an event: the one registered for its very type (a contract of its version before one
/// of any version), or else that of the pattern with the most literal segments, the earlier registered one of two alike.
///
/// **Patterns.** An event type, in which a segment may be `*`: one segment, whatever it is; as the last one, one or more.
/// "billing.*" is for "billing.paid" and "billing.invoice.paid"; "*.created" for "wallet.created"; "*" for all.
///
/// **Threads.** Register handlers before run(), from one thread. run() blocks; stop() and stats() may be called from
/// anywhere, stop() also from a handler. A consumer runs once.
class consumer {
  public:
    using handler = std::function<void(const event &)>;
    using async_handler = std::function<void(const event &, completion)>;
    using transaction_handler = std::function<void(const event &, transaction &)>;

    /// \throws std::invalid_argument if an option cannot work, with what to do; nothing connects before run()
    explicit consumer(consumer_options options);

    /// The same consumer on an in-memory broker, for tests without servers; see outbox/testing.hpp.
    consumer(consumer_options options, testing::broker &broker);

    ~consumer();
    consumer(const consumer &) = delete;
    consumer &operator=(const consumer &) = delete;

    /// Registers a handler, a function of `const event &`; or an asynchronous one, a function of `const event &` and a
    /// `completion`, whose event is finished when the token says so.
    /// \throws std::invalid_argument if the pattern is none, or has a handler already
    template <typename F>
        requires(std::invocable<F &, const event &> || std::invocable<F &, const event &, completion>)
    consumer &on(std::string_view pattern, F function) {
        if constexpr (std::invocable<F &, const event &, completion>)
            return add(pattern, any_version, async_handler(std::move(function)));
        else
            return add(pattern, any_version, handler(std::move(function)));
    }

    /// Registers a handler of a contract, a function of `const T &` and `const event &`, or of `const T &` alone. An event of
    /// the type in a version that no contract is for, or one that does not decode, is a dead letter at once, with the reason.
    template <contract T, typename F>
        requires(std::invocable<F &, const T &, const event &> || std::invocable<F &, const T &>)
    consumer &on(F function) {
        static_assert(T::version >= 1, "the version of a contract is 1 or more");
        return add(T::event_type, T::version, handler([function = std::move(function)](const event &event) mutable {
                       const T value = decode<T>(event);
                       if constexpr (std::invocable<F &, const T &, const outbox::event &>)
                           function(value, event);
                       else
                           function(value);
                   }));
    }

    /// Registers a handler whose effects are committed together with the event's id; needs `consumer_options::inbox`.
    template <typename F>
        requires std::invocable<F &, const event &, transaction &>
    consumer &on_transaction(std::string_view pattern, F function) {
        return add(pattern, any_version, transaction_handler(std::move(function)));
    }

    template <contract T, typename F>
        requires std::invocable<F &, const T &, const event &, transaction &>
    consumer &on_transaction(F function) {
        static_assert(T::version >= 1, "the version of a contract is 1 or more");
        return add(T::event_type, T::version,
                   transaction_handler([function = std::move(function)](const event &event, transaction &tx) mutable {
                       function(decode<T>(event), event, tx);
                   }));
    }

    /// Consumes until stop(), or SIGTERM or SIGINT: takes no new work then, lets running handlers finish within
    /// `shutdown_timeout`, hands what is unfinished to the other processes of the group, and returns. A Redis or PostgreSQL
    /// that cannot be reached is waited for, at the start too. Returns false if handlers were still running when the time was
    /// over: their threads live on until they end, and what they use must, too.
    ///
    /// On an in-memory broker it returns when there is nothing left to do before the clock moves on.
    ///
    /// \throws std::invalid_argument if no handler is registered, or no topic can be told from the patterns
    bool run();

    /// Makes run() return. Before run(): makes it return at once. Safe in a signal handler.
    void stop() noexcept;

    consumer_stats stats() const noexcept;

    const std::string &name() const noexcept; ///< this process' name in the group
    const std::string &group() const noexcept;

    class implementation;

  private:
    static constexpr int any_version = 0;

    consumer &add(std::string_view pattern, int version, handler function);
    consumer &add(std::string_view pattern, int version, async_handler function);
    consumer &add(std::string_view pattern, int version, transaction_handler function);

    // What from_json has to say about a payload is a reason for the dead letters; what the handler says is not.
    template <typename T> static T decode(const event &event) {
        const nlohmann::json &json = event.payload();
        try {
            return json.get<T>();
        } catch (const std::exception &cause) {
            throw malformed("the payload is no " + std::string(T::event_type) + " of version " +
                            std::to_string(T::version) + ": " + cause.what());
        }
    }

    std::unique_ptr<implementation> implementation_;
};

} // namespace outbox

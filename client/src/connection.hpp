// One connection to Redis on a libuv loop: asks sentinels for the server where there are some, connects, logs in, answers every
// command exactly once, gives up on a server that is silent, and comes back with backoff. For the thread of the loop alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <hiredis/hiredis.h>
#include <uv.h>

#include <outbox/log.hpp>

#include "common/url.hpp"
#include "src/reply.hpp"
#include "src/scripts.hpp"
#include "src/wire.hpp"

namespace outbox::detail {

struct connection_options {
    redis_url url;
    std::string password_file;
    std::string name; // CLIENT SETNAME
    std::chrono::milliseconds connect_timeout, response_timeout, reconnect_min, reconnect_max;
    log_function log;
};

class connection {
  public:
    // The reply, good during the call (but see share()); null if the connection was lost first: whether the command was
    // executed is then unknown.
    using reply_function = std::function<void(const redisReply *)>;

    connection(uv_loop_t &loop, connection_options options, std::function<void()> ready, std::function<void()> lost);
    ~connection();
    connection(const connection &) = delete;
    connection &operator=(const connection &) = delete;

    void open();

    // No more calls of anything, every outstanding reply_function has been called. The handles are closed by the loop's next
    // rounds: the object must live until then.
    void close();

    bool ready() const noexcept { return state_ == state::ready; }

    // Sends a command. Before the connection is ready it is answered with null at once. `patience` is how much longer than
    // the response timeout its reply may take.
    void command(std::span<const std::string_view> words, reply_function reply, std::chrono::milliseconds patience = {});
    void command(std::initializer_list<std::string_view> words, reply_function reply) {
        command(std::span(words.begin(), words.size()), std::move(reply));
    }

    // EVALSHA, and EVAL if the server does not have the script (any more).
    void run(const script &script, std::span<const std::string_view> keys, std::span<const std::string_view> arguments,
             reply_function reply);

    // Drops the connection and makes a new one after the backoff: the server is the wrong one, or not itself.
    void reconnect(std::string_view why);

    // Sends what was queued in this round of the loop; happens by itself, unless more is queued after that.
    void flush() noexcept;

    std::uint64_t connects() const noexcept { return connects_; }

  private:
    enum class state { closed, connecting, greeting, ready, backing_off };

    struct pending {
        reply_function reply;
        std::chrono::steady_clock::time_point deadline;
    };

    struct parser;

    void begin();
    void ask_sentinel();
    void connect();
    void connected();
    void log_in();
    void greet_sentinel();
    void greet();
    void greet_server(std::string_view run);
    reply_function must_succeed(std::string_view what);
    void greeting_failed(std::string_view why);
    void received(std::string_view bytes);
    void answer(const redisReply &reply);
    void lost(std::string_view why);
    void drop();
    void back_off();
    void poll();
    void send(std::span<const std::string_view> words, reply_function reply, std::chrono::milliseconds patience);
    void warn(std::string_view what, std::string_view why);
    void works();
    std::chrono::milliseconds next_delay();

    uv_loop_t &loop_;
    connection_options options_;
    std::function<void()> ready_, lost_;
    state state_ = state::closed;

    wire wire_;
    std::shared_ptr<parser> parser_; // of this connection
    std::deque<pending> pending_; // Redis answers in order
    bool overdue_ = false;        // the first of them was, when the watchdog looked last
    std::uint64_t connects_ = 0;
    redis_url target_; // a sentinel, or the server, with the password as it was when the connection was begun

    redis_url url_;                 // that, too, of the whole
    std::size_t sentinel_ = 0;      // that answered last, or is being asked
    std::size_t sentinels_left_ = 0; // to ask yet; the one that is being asked is among them
    std::string told_;              // by one that could be reached

    std::string client_id_; // the server's number for the last connection,
    std::string run_;       // in this run of it; empty if that is not to be known
    int failures_ = 0;             // since the last answer that was of use
    std::set<std::string> warned_; // of since then
    std::string complaint_;        // an error that the greeting can do without
    std::minstd_rand random_{std::random_device{}()};

    uv_timer_t timer_{};     // backoff, connect timeout
    uv_timer_t watchdog_{};  // the oldest reply that is awaited
    uv_prepare_t prepare_{}; // sends what has been queued since the loop's last round
};

} // namespace outbox::detail

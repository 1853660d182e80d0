// A consumer on Redis: one thread that reads, schedules and settles, and a pool of threads that call handlers. Its parts are
// a file each:
//
//   engine.cpp   the loop, stopping
//   read.cpp     groups, reading, what comes in
//   start.cpp    from "may run" to a handler: what others have before it, idempotency, attempts, the rate limit
//   settle.cpp   from a handler's end to the acknowledgement, the next attempt or the dead letters
//   keep.cpp     leases, taking over, giving back, removing consumers
//
// Redis is the only truth about who has what: the pending entries list of the group. Everything here is a copy that may be
// late, so whatever depends on it asks first, or happens in a script that looks.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include <uv.h>

#include <outbox/consumer.hpp>

#include "src/connection.hpp"
#include "src/counters.hpp"
#include "src/delivery.hpp"
#include "src/handlers.hpp"
#include "src/keeper.hpp"
#include "src/keys.hpp"
#include "src/mailbox.hpp"
#include "src/pool.hpp"
#include "src/runner.hpp"
#include "src/scheduler.hpp"

namespace outbox::detail {

// A stream that the group reads: of a topic, or of what is redriven there.
struct stream {
    std::string key, attempts_key, generation_key;
    std::string generation; // of the group, as of the last time that it was asked for
    const topic_keys *keys;
    std::string_view topic;
    bool redrive;

    entry_id newest; // that was read
    delivery *first_held = nullptr, *last_held = nullptr;

    // Of a stream whose key cannot be used: when to try again, and how long to wait after that.
    time_point broken_until{};
    std::chrono::milliseconds broken_for{0};

    // What other consumers have pending: the first entry of each aggregate; and the aggregates of entries that were looked up.
    std::unordered_map<std::uint64_t, entry_id> foreign;
    std::map<entry_id, std::uint64_t> known;
    bool inspecting = false;
    bool inspect_again = false;

    std::vector<delivery *> settled; // to be acknowledged
    int acknowledging = 0;           // requests on their way; usually one: what comes meanwhile makes the next batch
    time_point settle_after{};       // Redis refused the last one
    bool saved = true;               // nothing was acknowledged since the position was last asked for
    bool taking_over = false;
};

class engine final : public runner {
  public:
    // Nothing connects before run().
    engine(const consumer_options &options, std::shared_ptr<const handlers> handlers, counters &counters);
    ~engine() override;

    bool run() override;
    void stop() noexcept override;

  private:
    using milliseconds = std::chrono::milliseconds;

    // A uv_timer_t that calls a function.
    struct timer {
        uv_timer_t handle{};
        std::function<void()> call;
        void init(uv_loop_t &loop, std::function<void()> function);
        void start(milliseconds delay, milliseconds repeat = {});
        void stop() { uv_timer_stop(&handle); }
        bool active() const { return uv_is_active(reinterpret_cast<const uv_handle_t *>(&handle)) != 0; }
        void close();
    };

    // engine.cpp
    void open();
    void post(std::function<void()> task); // from any thread: runs in the loop
    void woken();
    void round();                          // once before the loop waits
    void begin_to_stop();
    void stop_step();
    void give_back();
    void finish_loop();
    void log(log_level level, const std::string &message) const;
    void log_seldom(log_level level, const std::string &message);
    void reader_ready();
    void reader_lost();
    void commands_ready();
    void commands_lost();
    bool trouble_of(const redisReply *reply, connection &from, std::string_view what); // true if there is any

    // read.cpp
    void ensure_groups();
    void create_groups(const std::map<std::string, std::string> &positions);
    void groups_missing();
    void void_leases(stream &stream);
    void read();
    void on_read(const redisReply *reply, time_point asked, std::size_t count, std::size_t reserved);
    void find_broken(std::string_view why);
    void sweep();
    struct arrival {
        std::string_view id;
        const redisReply *fields;
        int attempts;
        bool written;
        bool suspect;
    };
    void admit(stream &stream, const redisReply *outermost, const std::vector<arrival> &arrivals, std::size_t bytes,
               time_point asked);
    delivery *find_held(const stream &stream, entry_id id) const;
    bool came_again(delivery &one, time_point asked);
    void hold_back(delivery &one);
    void keep_alone(delivery &one);
    void leave_batch(delivery &one);

    // start.cpp
    void pump();
    bool must_ask(const delivery &one) const;
    bool must_write(const delivery &one) const;
    bool try_suspects(time_point now);
    void begin_all();
    void begun(const std::vector<delivery *> &asked, const redisReply *reply);
    void take_tokens();
    void inspect(stream &stream);
    void inspect_held();
    struct inspection;
    void inspect_page(const std::shared_ptr<inspection> &look);
    void inspect_unknown(const std::shared_ptr<inspection> &look);
    void inspect_generation(const std::shared_ptr<inspection> &look, std::function<void()> then);
    void inspected(const std::shared_ptr<inspection> &look);
    void inspection_failed(stream &stream, const redisReply *reply);

    // settle.cpp
    void collect();
    void ended(delivery &one);
    void settle(delivery &one);
    void acknowledge(stream &stream);
    void acknowledge_all();
    bool acknowledge_some(stream &stream);
    void acknowledged(stream &stream, const std::vector<delivery *> &part, const redisReply *reply);
    void bury(delivery &one);
    void retry(delivery &one, milliseconds delay);

    void drop(delivery &one); // somebody else has it
    void forget(delivery &one);

    // keep.cpp
    void keep();
    void renew(stream &stream, std::vector<delivery *> due);
    void verify(std::vector<delivery *> &stale);
    void not_owned(delivery &one);
    bool stuck();
    void take_over(stream &stream, bool mine, std::string after, std::function<void(bool)> then);
    void save_positions();

    consumer_options options_;
    std::shared_ptr<const handlers> handlers_;
    counters &counters_;

    uv_loop_t loop_{};
    uv_async_t wake_{};
    uv_prepare_t prepare_{};
    uv_signal_t sigterm_{}, sigint_{};
    timer housekeeping_, groups_timer_, read_timer_, poll_timer_, due_timer_, token_timer_, stop_timer_, look_timer_;

    std::atomic<bool> stop_asked_{false};
    std::mutex tasks_lock_;
    std::vector<std::function<void()>> tasks_;

    std::unique_ptr<connection> reader_, commands_;
    std::shared_ptr<const std::vector<std::string>> topics_;
    std::vector<std::unique_ptr<topic_keys>> keys_;
    std::vector<std::unique_ptr<stream>> streams_;
    std::unique_ptr<keeper> keeper_;

    scheduler scheduler_;
    std::shared_ptr<mailbox> mailbox_;
    std::unique_ptr<pool> pool_;
    std::minstd_rand random_{std::random_device{}()};

    // reading
    bool groups_ready_ = false, groups_asked_ = false;
    bool swept_ = false; // what is pending with this name was left by this process, and not by an earlier one
    milliseconds groups_delay_{0};
    time_point groups_tried_{};
    int reads_ = 0;                        // on their way
    std::size_t coming_ = 0;               // entries that they may bring
    bool behind_ = false;                  // the last one brought as many as it might
    bool finding_broken_ = false;
    milliseconds read_delay_{0};
    std::size_t held_ = 0, held_bytes_ = 0;
    std::size_t settling_ = 0;             // of these: handled, to be acknowledged
    double entry_bytes_; // expected of the next entry

    // starting
    std::size_t asking_ = 0;               // begin was sent for them
    std::deque<delivery *> begun_;         // may go to the pool
    std::size_t submitted_ = 0;            // are in the pool, or run on without it
    bool pool_moved_ = false;              // something was given to it, or came back, in this round
    std::size_t ahead_;                    // how many may wait in the pool
    std::vector<delivery *> to_pool_, to_begin_, to_verify_;
    std::deque<delivery *> suspects_;    // in line
    std::vector<delivery *> on_trial_;   // started, and Redis does not know their end yet
    double tokens_ = 0;
    bool asking_tokens_ = false;
    milliseconds poll_delay_{0};

    std::map<std::string, time_point> logged_; // what a fault says again and again

    // keeping
    time_point next_take_over_{}, next_reap_{}, next_save_{};

    // stopping
    enum class stopping { no, handlers, settling, giving_back, done } stopping_ = stopping::no;
    std::size_t burying_ = 0;
    std::size_t giving_back_ = 0;
    bool clean_ = true;
    std::vector<delivery *> finished_;
};

} // namespace outbox::detail

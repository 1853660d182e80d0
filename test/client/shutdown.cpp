// How a consumer ends: what runs is finished, the rest is left to others, and nothing that is away keeps it.
#include <atomic>
#include <csignal>
#include <future>
#include <optional>

#include "consumers.hpp"
#include "workers.hpp"

namespace outbox::test {

static const std::string wallets = "outbox:{wallet}";

static std::string number(const event &event) { return event.payload().at("n").dump(); }

// How long stop() took.
static std::chrono::milliseconds time_to_stop(running_consumer &consumer) {
    auto start = std::chrono::steady_clock::now();
    consumer.stop();
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
}

class Shutdown : public ::testing::Test {
  protected:
    redis_server redis;
    notes handled;

    consumer_options options() {
        auto options = quick_options(redis);
        options.claim_idle = 30s;
        return options;
    }
    auto handler() {
        return [this](class consumer &to) { to.on("wallet.created", [this](const event &event) { handled.take(number(event)); }); };
    }
    bool all_done(std::size_t count) {
        return eventually([&] { return handled.count() == count && pending(redis, wallets, "billing") == 0; });
    }
};

TEST_F(Shutdown, a_consumer_that_never_ran_just_goes) {
    consumer consumer(options());
    handler()(consumer);
    EXPECT_FALSE(consumer.stats().connected);
}

TEST_F(Shutdown, handlers_that_run_finish_and_nothing_else_begins) {
    append_many(redis, 1, 20, 0);
    gate hold;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 20 && hold.waiting() == 4; }));
    auto stopped = std::async(std::launch::async, [&] { return consumer.stop(); });
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("stopping: 4 handlers"); }));
    hold.open();
    EXPECT_TRUE(stopped.get());
    EXPECT_EQ(handled.count(), 4u);
    EXPECT_EQ(consumer->stats().acknowledged, 4u);
    EXPECT_EQ(pending(redis, wallets, "billing"), 16);
    EXPECT_EQ(consumer->stats().held, 0u);
    // at once for anybody
    redis_reply free = redis.command({"XPENDING", wallets, "billing", "IDLE", "30000", "-", "+", "100"});
    EXPECT_EQ(free->elements, 16u);
}

TEST_F(Shutdown, does_not_wait_for_a_read_that_waits) {
    auto options = this->options();
    options.block = options.response_timeout = 1min;
    options.claim_idle = 2min;
    running_consumer consumer(options, handler());
    append_many(redis, 1, 1, 0);
    ASSERT_TRUE(all_done(1));
    EXPECT_LT(time_to_stop(consumer), 30s);
    EXPECT_TRUE(consumer.stop());
}

TEST_F(Shutdown, a_handler_that_does_not_finish_in_time_is_left_behind_and_may_end_later) {
    append_many(redis, 1, 8, 0);
    auto options = this->options();
    options.claim_idle = 500ms;
    options.shutdown_timeout = 100ms;
    auto hold = std::make_shared<gate>();
    auto late = std::make_shared<notes>();
    {
        running_consumer consumer(options, [&](class consumer &to) {
            to.on("wallet.created", [hold, late](const event &event) {
                std::string n = number(event);
                hold->pass();
                late->take(number(event)); // the event is still good
                if (n == "2")
                    throw std::runtime_error("too late to matter");
            });
        });
        ASSERT_TRUE(eventually([&] { return hold->waiting() == 4; }));
        EXPECT_FALSE(consumer.stop());
        EXPECT_TRUE(consumer.log().contain("4 handlers did not finish"));
        EXPECT_EQ(consumer->stats().acknowledged, 0u);
    }
    // the consumer is gone; another one has everything, also what they are at work on
    running_consumer other(options, handler());
    ASSERT_TRUE(all_done(8));
    hold->open();
    EXPECT_TRUE(eventually([&] { return late->count() == 4; }));
    EXPECT_EQ(pending(redis, wallets, "billing"), 0);
}

TEST_F(Shutdown, an_asynchronous_handler_that_does_not_finish_in_time_is_left_behind) {
    append_many(redis, 1, 3, 0);
    auto options = this->options();
    options.shutdown_timeout = 50ms;
    std::mutex lock;
    std::vector<completion> tokens;
    {
        running_consumer consumer(options, [&](class consumer &to) {
            to.on("wallet.created", [&](const event &, completion token) {
                std::lock_guard guard(lock);
                tokens.push_back(std::move(token));
            });
        });
        ASSERT_TRUE(eventually([&] {
            std::lock_guard guard(lock);
            return tokens.size() == 3;
        }));
        EXPECT_FALSE(consumer.stop());
    }
    EXPECT_EQ(tokens[0].event().topic(), "wallet");
    tokens[0].done();
    tokens[1].failed("too late");
    tokens.clear();
    EXPECT_EQ(pending(redis, wallets, "billing"), 3);
}

TEST_F(Shutdown, at_any_moment_loses_nothing) {
    auto options = this->options();
    options.claim_idle = 500ms;
    for (std::uint64_t round = 0; round < 30; ++round) {
        append_many(redis, round * 20 + 1, 20, 3);
        running_consumer consumer(options, handler());
        std::size_t enough = handled.count() + round % 8;
        ASSERT_TRUE(eventually([&] { return round % 3 == 0 || handled.count() >= enough || handled.count() == (round + 1) * 20; }));
        EXPECT_TRUE(consumer.stop());
    }
    running_consumer last(options, handler());
    ASSERT_TRUE(all_done(600)) << handled.count();
    EXPECT_EQ(last->stats().failed, 0u);
}

// Redis is away

TEST_F(Shutdown, does_not_wait_for_a_server_that_was_never_there) {
    redis.kill9();
    auto options = this->options();
    options.reconnect_min = options.reconnect_max = 2min;
    running_consumer consumer(options, handler());
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("could not connect"); }));
    EXPECT_LT(time_to_stop(consumer), 30s);
}

TEST_F(Shutdown, does_not_wait_for_a_server_that_is_gone) {
    append_many(redis, 1, 10, 0);
    gate hold;
    auto options = this->options();
    options.reconnect_min = options.reconnect_max = 2min;
    running_consumer consumer(options, [&](class consumer &to) { to.on("wallet.created", [&](const event &) { hold.pass(); }); });
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 10 && hold.waiting() == 4; }));
    redis.kill9();
    hold.open();
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("lost the connection"); }));
    EXPECT_LT(time_to_stop(consumer), 30s);
    EXPECT_TRUE(consumer.stop());
}

TEST_F(Shutdown, waits_no_longer_than_the_response_timeout_for_a_server_that_is_silent) {
    append_many(redis, 1, 10, 0);
    gate hold;
    auto options = this->options();
    options.response_timeout = 4s;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 10 && hold.waiting() == 4; }));
    redis.stop();
    hold.open();
    EXPECT_LT(time_to_stop(consumer), 2 * options.response_timeout);
    EXPECT_TRUE(consumer.stop());
    // What was not acknowledged comes again; the server executes some of it when it goes on.
    redis.cont();
    options.claim_idle = 300ms;
    running_consumer other(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") == 0; }));
    for (int n = 1; n <= 10; ++n)
        EXPECT_GE(handled.count(std::to_string(n)), 1u);
}

TEST_F(Shutdown, waits_no_longer_than_the_response_timeout_for_an_idle_server_that_is_silent) {
    auto options = this->options();
    options.response_timeout = 4s;
    running_consumer consumer(options, handler());
    append_many(redis, 1, 1, 0);
    ASSERT_TRUE(all_done(1));
    redis.stop();
    EXPECT_LT(time_to_stop(consumer), 2 * options.response_timeout);
    redis.cont();
}

// PostgreSQL is away

class InboxShutdown : public Shutdown {
  protected:
    database effects;
    session connection = effects.connect();

    InboxShutdown() {
        inbox::create_schema(connection.get());
        connection.sql("CREATE TABLE effect (n bigint)");
    }

    consumer_options options() {
        auto options = Shutdown::options();
        options.inbox = effects.conninfo();
        options.shutdown_timeout = 500ms;
        return options;
    }
    static void handle(class consumer &to) {
        to.on_transaction("wallet.created", [](const event &event, transaction &tx) {
            session::sql(tx.connection(), "INSERT INTO effect VALUES (" + number(event) + ")");
        });
    }
    std::vector<pid_t> backends() const {
        std::vector<pid_t> pids;
        for (const auto &row : connection.rows("SELECT pid FROM pg_stat_activity WHERE application_name = 'outbox inbox' "
                                               "AND datname = current_database()"))
            pids.push_back(std::stoi(row.at(0)));
        return pids;
    }
};

// The backends of this consumer say nothing until the object goes.
class silence {
  public:
    explicit silence(std::vector<pid_t> pids) : pids_(std::move(pids)) {
        for (pid_t pid : pids_)
            ::kill(pid, SIGSTOP);
    }
    ~silence() {
        for (pid_t pid : pids_)
            ::kill(pid, SIGCONT);
    }

  private:
    std::vector<pid_t> pids_;
};

TEST_F(InboxShutdown, does_not_wait_for_a_database_that_cannot_be_reached) {
    auto options = this->options();
    options.inbox = "host=" + redis.directory() + " user=nobody dbname=nothing";
    running_consumer consumer(options, handle);
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("inbox: "); }));
    EXPECT_LT(time_to_stop(consumer), 20s);
    EXPECT_TRUE(consumer.stop());
}

TEST_F(InboxShutdown, does_not_wait_for_a_database_that_says_nothing) {
    std::optional<silence> silent;
    gate hold;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on_transaction("wallet.created", [&](const event &event, transaction &tx) {
            hold.pass();
            session::sql(tx.connection(), "INSERT INTO effect VALUES (" + number(event) + ")");
        });
    });
    append_many(redis, 1, 4, 0);
    ASSERT_TRUE(eventually([&] { return hold.waiting() == 4; })); // each thread has its connection now
    hold.open();
    ASSERT_TRUE(eventually([&] { return connection.sql("SELECT count(*) FROM effect") == "4"; }));
    ASSERT_TRUE(eventually([&] { return connection.sql("SELECT count(*) FROM outbox_inbox.position") == "1"; }));
    silent.emplace(backends());
    append_many(redis, 5, 20, 0);
    ASSERT_TRUE(eventually([&] { return consumer->stats().running == 4; })); // which it does not finish
    EXPECT_LT(time_to_stop(consumer), 20s);
    EXPECT_FALSE(consumer.stop());
    silent.reset();
    // others do
    auto options = this->options();
    options.claim_idle = 300ms;
    running_consumer other(options, handle);
    ASSERT_TRUE(eventually([&] { return connection.sql("SELECT count(DISTINCT n) FROM effect") == "24" && pending(redis, wallets, "billing") == 0; }));
    EXPECT_EQ(connection.sql("SELECT count(*) FROM effect"), "24");
}

TEST_F(InboxShutdown, does_not_wait_for_a_position_that_cannot_be_saved) {
    std::optional<silence> silent;
    running_consumer consumer(options(), handle);
    // the first connection is that of who keeps the positions
    ASSERT_TRUE(eventually([&] { return backends().size() == 1 && pending(redis, wallets, "billing") == 0; }));
    silent.emplace(backends());
    auto asked = executed(redis, "xinfo|groups");
    append_many(redis, 1, 4, 0);
    ASSERT_TRUE(eventually([&] { return connection.sql("SELECT count(*) FROM effect") == "4"; }));
    ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") == 0; }));
    ASSERT_TRUE(eventually([&] { return executed(redis, "xinfo|groups") > asked; }));
    EXPECT_LT(time_to_stop(consumer), 20s);
    EXPECT_TRUE(consumer.stop());
}

// A process of its own

TEST_F(Shutdown, a_process_finishes_what_runs_at_sigterm_and_ends_well) {
    for (int signal : {SIGTERM, SIGINT}) {
        journal journal(redis, "journal" + std::to_string(signal));
        worker worker(redis, journal, {"concurrency=2", "claim_idle=60000"});
        for (std::uint64_t n = 1; n <= 6; ++n)
            append(redis, {.id = event_id(static_cast<std::uint64_t>(signal) * 100 + n), .payload = "{\"n\": " + std::to_string(n) + R"(, "do": "gate"})"});
        ASSERT_TRUE(eventually([&] { return journal.lines().size() == 2; })) << journal.log();
        worker.signal(signal);
        ASSERT_TRUE(eventually([&] { return journal.log().find("stopping") != std::string::npos; }));
        journal.open_gate();
        EXPECT_EQ(worker.terminate(), 0); // a second signal changes nothing
        EXPECT_EQ(journal.lines().size(), 4u); // two that began, and ended
        EXPECT_EQ(pending(redis, wallets, "billing"), 4);
        redis.command({"FLUSHALL"});
    }
}

} // namespace outbox::test

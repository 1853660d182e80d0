// Attempts: when the next one comes, who counts them, and how the last one ends.
#include <algorithm>
#include <numeric>
#include <random>

#include "workers.hpp"

namespace outbox::test {

namespace {

using clock = std::chrono::steady_clock;

// When a handler was called, and with which attempt.
class calls {
  public:
    void take(const event &event) {
        std::lock_guard guard(lock_);
        times_.push_back(clock::now());
        attempts_.push_back(event.attempt());
    }
    std::size_t count() const {
        std::lock_guard guard(lock_);
        return times_.size();
    }
    std::vector<int> attempts() const {
        std::lock_guard guard(lock_);
        return attempts_;
    }
    // Between one call and the next.
    std::vector<std::chrono::milliseconds> pauses() const {
        std::lock_guard guard(lock_);
        std::vector<std::chrono::milliseconds> all;
        for (std::size_t i = 1; i < times_.size(); ++i)
            all.push_back(std::chrono::round<std::chrono::milliseconds>(times_[i] - times_[i - 1]));
        return all;
    }

  private:
    mutable std::mutex lock_;
    std::vector<clock::time_point> times_;
    std::vector<int> attempts_;
};

std::vector<dead_letter> letters(const redis_server &redis) { return dead_letters(redis.url(), "wallet", "billing").list(100'000); }

} // namespace

class Attempts : public ::testing::TestWithParam<guard> {
  protected:
    Attempts() {
        if (GetParam() == guard::inbox)
            inbox_.emplace();
        options_ = quick_options(redis_);
        options_.idempotency = GetParam() == guard::redis ? idempotency::redis : idempotency::none;
        if (inbox_)
            options_.inbox = inbox_->conninfo();
        append(redis_, {.id = event_id(1), .aggregate_id = "a"});
    }

    // A consumer with a handler, in a transaction where there is an inbox.
    template <typename F> void start(F handler) {
        consumer_ = std::make_unique<running_consumer>(options_, [&](class consumer &to) {
            if (inbox_)
                to.on_transaction("wallet.*", [handler](const event &event, transaction &) { handler(event); });
            else
                to.on("wallet.*", handler);
        });
    }

    // and the consumer knows it
    bool is_finished() { return pending(redis_, stream, "billing") == 0 && (*consumer_)->stats().held == 0; }

    redis_server redis_;
    std::optional<effects> inbox_;
    consumer_options options_;
    std::unique_ptr<running_consumer> consumer_;
};

TEST_P(Attempts, that_fail_back_off_and_end_in_a_dead_letter_with_the_last_error) {
    options_.retry = {.max_attempts = 5, .initial = 40ms, .max = 200ms, .multiplier = 2, .jitter = 0};
    calls called;
    start([&](const event &event) {
        called.take(event);
        throw std::runtime_error("no luck in attempt " + std::to_string(event.attempt()) + "\nsecret\x1b[2J");
    });
    ASSERT_TRUE(eventually([&] { return count_dead_letters(redis_) == 1 && is_finished(); }));
    EXPECT_EQ(called.attempts(), (std::vector<int>{1, 2, 3, 4, 5}));
    auto pauses = called.pauses();
    ASSERT_EQ(pauses.size(), 4u);
    EXPECT_GE(pauses[0], 40ms);
    EXPECT_GE(pauses[1], 80ms);
    EXPECT_GE(pauses[2], 160ms);
    EXPECT_GE(pauses[3], 200ms);

    auto dead = letters(redis_);
    EXPECT_EQ(dead.at(0).attempts, 5);
    EXPECT_EQ(dead.at(0).error, "no luck in attempt 5\nsecret\x1b[2J");
    EXPECT_EQ(dead.at(0).consumer, (*consumer_)->name());
    EXPECT_EQ(dead.at(0).fields.size(), 8u);
    for (int attempt = 1; attempt <= 4; ++attempt)
        EXPECT_TRUE(consumer_->log().contain("failed in attempt " + std::to_string(attempt) + " of 5"));
    EXPECT_TRUE(consumer_->log().contain("to the dead letters after 5 attempts: no luck in attempt 5"));
    for (const std::string &line : consumer_->log().all())
        EXPECT_TRUE(std::none_of(line.begin(), line.end(), [](unsigned char c) { return c < ' '; })) << line;
    auto stats = (*consumer_)->stats();
    EXPECT_EQ(stats.failed, 5u);
    EXPECT_EQ(stats.retried, 4u);
    EXPECT_EQ(stats.dead_lettered, 1u);
    EXPECT_EQ(stats.handled, 0u);
    EXPECT_EQ(stats.waiting_retry, 0u);
    EXPECT_EQ(redis_.command("EXISTS", stream + ":attempts:billing")->integer, 0);
}

TEST_P(Attempts, succeed_as_late_as_the_last_one) {
    calls called;
    start([&](const event &event) {
        called.take(event);
        if (event.attempt() < 3)
            throw 42; // no std::exception
    });
    ASSERT_TRUE(eventually([&] { return called.count() == 3 && is_finished(); }));
    EXPECT_EQ(called.attempts(), (std::vector<int>{1, 2, 3}));
    EXPECT_EQ(count_dead_letters(redis_), 0u);
    EXPECT_TRUE(consumer_->log().contain("no std::exception"));
    EXPECT_EQ(redis_.command("EXISTS", stream + ":attempts:billing")->integer, 0);
}

TEST_P(Attempts, end_at_once_where_the_handler_rejects_the_event) {
    options_.retry.max_attempts = 10;
    calls called;
    start([&](const event &event) {
        called.take(event);
        if (event.attempt() == 1)
            throw std::runtime_error("not yet");
        throw reject("never: no such wallet");
    });
    ASSERT_TRUE(eventually([&] { return count_dead_letters(redis_) == 1 && is_finished(); }));
    EXPECT_EQ(called.attempts(), (std::vector<int>{1, 2}));
    EXPECT_EQ(letters(redis_).at(0).error, "never: no such wallet");
    EXPECT_EQ(letters(redis_).at(0).attempts, 2);
}

TEST_P(Attempts, come_when_the_handler_says_and_count_all_the_same) {
    options_.retry = {.max_attempts = 4, .initial = 1h, .max = 1h};
    calls called;
    start([&](const event &event) {
        called.take(event);
        throw retry_after(event.attempt() == 2 ? 150ms : event.attempt() == 3 ? -5ms : 0ms, "later");
    });
    ASSERT_TRUE(eventually([&] { return count_dead_letters(redis_) == 1 && is_finished(); }));
    EXPECT_EQ(called.attempts(), (std::vector<int>{1, 2, 3, 4}));
    EXPECT_GE(called.pauses()[1], 150ms);
    EXPECT_EQ(letters(redis_).at(0).error, "later");
}

TEST_P(Attempts, of_one_event_hold_back_its_aggregate_alone) {
    append(redis_, {.id = event_id(2), .aggregate_id = "a"});
    append(redis_, {.id = event_id(3), .aggregate_id = "b"});
    append(redis_, {.id = event_id(4)});
    options_.retry = {.max_attempts = 1'000'000, .initial = 10ms, .max = 10ms};
    notes handled;
    start([&](const event &event) {
        handled.take(std::string(event.id().substr(35)));
        bool others_are_held_back = handled.count("3") == 0 || handled.count("4") == 0;
        if (event.id() == event_id(1) && (event.attempt() < 3 || others_are_held_back))
            throw std::runtime_error("not yet");
    });
    ASSERT_TRUE(eventually([&] { return handled.count("2") == 1 && is_finished(); }));
    std::vector<std::string> all = handled.all();
    EXPECT_GE(handled.count("1"), 3u);
    EXPECT_EQ(all.back(), "2") << "behind the last attempt of 1";
    EXPECT_EQ(handled.count("3") + handled.count("4"), 2u);
}

TEST_P(Attempts, are_counted_across_consumers_that_stop) {
    options_.retry = {.max_attempts = 4, .initial = 10ms, .max = 10ms};
    calls called;
    for (int attempt = 1; attempt <= 4; ++attempt) {
        // each lets one attempt fail, and is stopped while the next one is far away
        start([&](const event &event) {
            called.take(event);
            throw retry_after(1h, "attempt " + std::to_string(event.attempt()));
        });
        ASSERT_TRUE(eventually([&] {
            return static_cast<int>(called.count()) == attempt &&
                   ((*consumer_)->stats().waiting_retry == 1 || (attempt == 4 && is_finished()));
        }));
        EXPECT_TRUE(consumer_->stop());
    }
    EXPECT_EQ(called.attempts(), (std::vector<int>{1, 2, 3, 4}));
    EXPECT_EQ(letters(redis_).at(0).attempts, 4);
    EXPECT_EQ(letters(redis_).at(0).error, "attempt 4");
}

INSTANTIATE_TEST_SUITE_P(Handlers, Attempts, ::testing::Values(guard::none, guard::redis, guard::inbox),
                         [](const auto &info) { return name_of(info.param); });

TEST(Backoff, of_many_events_stays_within_the_jitter_and_is_not_the_same_for_all) {
    redis_server redis;
    consumer_options options = quick_options(redis);
    options.retry = {.max_attempts = 2, .initial = 200ms, .max = 200ms, .jitter = 0.5};
    options.concurrency = 8;
    for (std::uint64_t n = 1; n <= 30; ++n)
        append(redis, {.id = event_id(n)});
    std::mutex lock;
    std::map<std::string, std::vector<clock::time_point>> times;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.*", [&](const event &event) {
            std::lock_guard guard(lock);
            times[std::string(event.id())].push_back(clock::now());
            throw std::runtime_error("no");
        });
    });
    ASSERT_TRUE(eventually([&] { return count_dead_letters(redis) == 30; }));
    std::vector<clock::duration> pauses;
    for (auto &[id, both] : times) {
        ASSERT_EQ(both.size(), 2u);
        pauses.push_back(both[1] - both[0]);
    }
    EXPECT_GE(*std::min_element(pauses.begin(), pauses.end()), 100ms);
    // what was meant, and not what became of it while the machine had something else to do
    std::vector<int> delays;
    const std::string words = ", again in ";
    for (const std::string &line : consumer.log().all())
        if (auto at = line.find(words); at != line.npos)
            delays.push_back(std::stoi(line.substr(at + words.size())));
    ASSERT_EQ(delays.size(), 30u);
    auto [least, most] = std::minmax_element(delays.begin(), delays.end());
    EXPECT_GE(*least, 100);
    EXPECT_LE(*most, 300);
    EXPECT_GE(*most - *least, 50) << "they would all come back at the same time";
}

// The attempts of an event in one process after the other, each killed with the event in its hands.
TEST(Budget, is_one_for_all_processes_whether_they_fail_or_die) {
    redis_server redis;
    journal journal(redis);
    // throws, kills its process, throws, …
    append_event(redis, 1, "a", R"("do": "throw")");
    append_event(redis, 2, "b", R"("do": "exit")");
    append_event(redis, 3, "a");
    service service(redis, journal, {"max_attempts=4", "claim_idle=8000", "initial=1"}, 2);
    ASSERT_TRUE(eventually([&] {
        service.keep();
        return journal.count("end", 3) > 0 && pending(redis, stream, "billing") == 0;
    })) << journal.log();
    EXPECT_EQ(journal.count("start", 2), 4u) << journal.log();
    EXPECT_LE(journal.count("start", 1), 4u) << journal.log();
    auto dead = letters(redis);
    ASSERT_EQ(dead.size(), 2u) << journal.log();
    for (const dead_letter &letter : dead)
        EXPECT_EQ(letter.attempts, 4);
}

// A process that waits with a retry dies: what it has counted is known to the next.
TEST(Budget, survives_a_process_that_is_killed_between_two_attempts) {
    redis_server redis;
    journal journal(redis);
    append_event(redis, 1, "", R"("do": "throw")");
    const std::vector<std::string> words{"max_attempts=5", "claim_idle=300", "concurrency=1"};
    auto patient = words;
    patient.push_back("initial=3600000");
    for (std::size_t life = 1; life <= 4; ++life) {
        worker one(redis, journal, patient);
        ASSERT_TRUE(eventually([&] {
            return journal.count("start", 1) == life && journal.log().find("failed in attempt " + std::to_string(life)) != std::string::npos;
        })) << journal.log();
        one.kill9();
    }
    worker last(redis, journal, words);
    ASSERT_TRUE(eventually([&] { return count_dead_letters(redis) == 1 && pending(redis, stream, "billing") == 0; })) << journal.log();
    EXPECT_EQ(journal.count("start", 1), 5u);
    std::vector<int> attempts;
    for (auto &line : journal.lines("start", 1))
        attempts.push_back(line.attempt);
    EXPECT_EQ(attempts, (std::vector<int>{1, 2, 3, 4, 5}));
    EXPECT_EQ(letters(redis).at(0).error, "no luck");
}

// kill -9 at any moment around the script that moves entries to the dead letters and acknowledges them.
TEST(Burial, is_all_or_nothing_when_the_consumer_is_killed_around_it) {
    const char *said = std::getenv("OUTBOX_TEST_ROUNDS");
    const std::uint64_t rounds = said != nullptr ? 3 * std::stoull(said) : 30, each = 20;
    const auto seed = std::random_device{}();
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    redis_server redis;
    journal journal(redis);
    service service(redis, journal, {"max_attempts=1", "claim_idle=300", "concurrency=2"});
    std::size_t killed_amid = 0;
    for (std::uint64_t round = 0; round < rounds; ++round) {
        std::uint64_t before = count_dead_letters(redis);
        for (std::uint64_t n = 1; n <= each; ++n)
            append_event(redis, round * each + n, std::to_string(n % 3), R"("do": "throw")");
        std::uint64_t target = before + random() % each;
        auto deadline = clock::now() + 300ms;
        while (count_dead_letters(redis) < target && clock::now() < deadline) {
        }
        service[0].kill9();
        killed_amid += count_dead_letters(redis) < (round + 1) * each;
        service.keep();
    }
    ASSERT_TRUE(eventually([&] {
        service.keep();
        return count_dead_letters(redis) >= rounds * each && pending(redis, stream, "billing") == 0;
    })) << count_dead_letters(redis);
    EXPECT_GT(killed_amid, rounds / 3);
    std::vector<std::string> ids, expected;
    for (const dead_letter &letter : letters(redis))
        ids.emplace_back(letter.field("event_id"));
    for (std::uint64_t n = 1; n <= rounds * each; ++n)
        expected.push_back(event_id(n));
    std::sort(ids.begin(), ids.end());
    EXPECT_EQ(ids, expected) << "each exactly once";
    EXPECT_EQ(redis.command("EXISTS", stream + ":attempts:billing")->integer, 0);
}

} // namespace outbox::test

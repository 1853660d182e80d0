// An event that is delivered more than once: because it is in the stream more than once, or because whoever had it died. What
// outbox/idempotency.hpp says about each, a test for each.
#include <algorithm>
#include <random>
#include <set>

#include "workers.hpp"

namespace outbox::test {

namespace {

std::string mark_of(std::uint64_t n) { return stream + ":event:billing:" + event_id(n); }

std::string text_of(const redis_reply &reply) { return reply->type == REDIS_REPLY_STRING ? std::string(reply->str, reply->len) : "nil"; }

} // namespace

class Duplicates : public ::testing::TestWithParam<guard> {
  protected:
    Duplicates() {
        if (GetParam() == guard::inbox)
            inbox_.emplace();
    }

    // A consumer that notes the numbers of the events it handles, and that two never overlap.
    std::unique_ptr<running_consumer> start(std::chrono::milliseconds takes = 0ms) {
        consumer_options options = quick_options(redis_);
        options.concurrency = 8;
        options.idempotency = GetParam() == guard::redis ? idempotency::redis : idempotency::none;
        if (inbox_)
            options.inbox = inbox_->conninfo();
        auto handle = [this, takes](const event &event) {
            std::string n = event.payload().at("n").dump();
            {
                std::lock_guard guard(lock_);
                overlapped_ |= !at_work_.insert(n).second;
            }
            std::this_thread::sleep_for(takes);
            handled_.take(n);
            std::lock_guard guard(lock_);
            at_work_.erase(n);
        };
        return std::make_unique<running_consumer>(options, [&](class consumer &to) {
            if (inbox_)
                to.on_transaction("wallet.*", [handle](const event &event, transaction &tx) {
                    session::sql(tx.connection(), "INSERT INTO effect (n) VALUES (" + event.payload().at("n").dump() + ")");
                    handle(event);
                });
            else
                to.on("wallet.*", handle);
        });
    }

    redis_server redis_;
    std::optional<effects> inbox_;
    notes handled_;
    std::mutex lock_;
    std::set<std::string> at_work_;
    bool overlapped_ = false;
};

TEST_P(Duplicates, in_the_stream_are_handled_once_where_they_are_guarded_against) {
    const std::size_t copies = 5;
    for (std::size_t i = 0; i < copies; ++i)
        append_event(redis_, 1, "a");
    append_event(redis_, 2, "a");
    auto consumer = start();
    ASSERT_TRUE(eventually([&] { return handled_.count("2") == 1 && pending(redis_, stream, "billing") == 0; }));
    EXPECT_EQ(handled_.count("1"), GetParam() == guard::none ? copies : 1u);
    EXPECT_TRUE(consumer->stop());
    auto stats = (*consumer)->stats();
    EXPECT_EQ(stats.duplicates, GetParam() == guard::none ? 0u : copies - 1);
    EXPECT_EQ(stats.acknowledged, copies + 1);
    EXPECT_EQ(count_dead_letters(redis_), 0u);
    if (inbox_) {
        EXPECT_EQ(inbox_->all(), (std::vector<std::uint64_t>{1, 2}));
    }
}

// Shuffled, with and without aggregates, between consumers that are all at work.
TEST_P(Duplicates, that_several_consumers_have_at_the_same_time_are_handled_once) {
    const auto seed = std::random_device{}();
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    std::vector<std::uint64_t> order;
    for (std::uint64_t n = 1; n <= 60; ++n)
        order.insert(order.end(), 2 + random() % 4, n);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::unique_ptr<running_consumer>> consumers;
    for (int i = 0; i < 3; ++i)
        consumers.push_back(start(1ms));
    for (std::uint64_t n : order)
        append_event(redis_, n, n % 3 == 0 ? std::to_string(n) : "");
    ASSERT_TRUE(eventually([&] {
        std::set<std::string> different;
        for (std::string &n : handled_.all())
            different.insert(std::move(n));
        return different.size() == 60 && is_through(redis_, stream, "billing");
    }));
    if (GetParam() == guard::none) {
        EXPECT_EQ(handled_.count(), order.size());
        return;
    }
    EXPECT_EQ(handled_.count(), 60u);
    EXPECT_FALSE(overlapped_);
    std::uint64_t duplicates = 0;
    for (auto &consumer : consumers) {
        consumer->stop();
        duplicates += (*consumer)->stats().duplicates;
    }
    EXPECT_EQ(duplicates, order.size() - 60);
    if (inbox_) {
        EXPECT_EQ(inbox_->all().size(), 60u);
    }
}

INSTANTIATE_TEST_SUITE_P(Events, Duplicates, ::testing::Values(guard::none, guard::redis, guard::inbox),
                         [](const auto &info) { return name_of(info.param); });

// With the marks in Redis

TEST(Marks, the_second_of_two_waits_for_the_first_and_has_its_own_attempts_if_that_dies) {
    redis_server redis;
    append_event(redis, 1, "");
    append_event(redis, 1, "");
    consumer_options options = quick_options(redis);
    options.retry.max_attempts = 2;
    notes seen;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.*", [&](const event &event) {
            seen.take(std::string(event.position()) + " " + std::to_string(event.attempt()));
            if (seen.count() <= 2)
                throw std::runtime_error("not this one");
        });
    });
    ASSERT_TRUE(eventually([&] { return seen.count() == 3 && pending(redis, stream, "billing") == 0; }));
    std::vector<std::string> all = seen.all();
    EXPECT_EQ(all[0].substr(all[0].size() - 2), " 1");
    EXPECT_EQ(all[1].substr(all[1].size() - 2), " 2");
    EXPECT_EQ(all[2].substr(all[2].size() - 2), " 1") << "the other entry";
    EXPECT_EQ(count_dead_letters(redis), 1u);
    EXPECT_EQ(text_of(redis.command("GET", mark_of(1))), "done");
}

TEST(Marks, an_event_waits_for_one_that_a_dead_process_holds_until_that_is_taken_over) {
    redis_server redis;
    journal journal(redis);
    append_event(redis, 1, "", R"("do": "stop", "upto": 1)");
    worker dead(redis, journal, {"concurrency=1"});
    ASSERT_TRUE(eventually([&] { return dead.is_stopped(); }));
    std::string lease = text_of(redis.command("GET", mark_of(1)));
    EXPECT_EQ(lease.substr(0, 2), "0/");
    append_event(redis, 1, "");
    append_event(redis, 2, "");
    worker patient(redis, journal, {"claim_idle=3600000"});
    // by then it could be done, too
    ASSERT_TRUE(eventually([&] { return journal.count("end", 2) == 1; }));
    EXPECT_EQ(journal.count("start", 1), 1u);
    EXPECT_EQ(text_of(redis.command("GET", mark_of(1))), lease);
    dead.kill9();
    worker heir(redis, journal);
    ASSERT_TRUE(eventually([&] { return journal.count("end", 1) == 1 && pending(redis, stream, "billing") == 0; })) << journal.log();
    EXPECT_EQ(journal.count("start", 1), 2u);
    EXPECT_EQ(text_of(redis.command("GET", mark_of(1))), "done");
}

// The first entry was acknowledged by hand, or its group made anew: its lease binds nobody.
TEST(Marks, a_lease_whose_entry_is_pending_no_more_is_free) {
    redis_server redis;
    std::string position = append(redis, {.id = event_id(1)});
    redis.command("SET", mark_of(1), "0/" + position);
    redis.command("XGROUP", "CREATE", stream, "billing", position);
    append_event(redis, 1, "");
    redis.command("SET", mark_of(2), "0/1-1");
    append_event(redis, 2, "");
    redis.command("SET", mark_of(3), "junk");
    append_event(redis, 3, "");
    notes handled;
    running_consumer consumer(quick_options(redis), [&](class consumer &to) {
        to.on("wallet.*", [&](const event &event) { handled.take(event.payload().at("n").dump()); });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 3 && pending(redis, stream, "billing") == 0; }));
    for (std::uint64_t n = 1; n <= 3; ++n)
        EXPECT_EQ(text_of(redis.command("GET", mark_of(n))), "done");
}

TEST(Marks, live_for_their_time_and_then_the_event_is_a_new_one) {
    redis_server redis;
    consumer_options options = quick_options(redis);
    notes handled;
    auto handler = [&](class consumer &to) {
        to.on("wallet.*", [&](const event &event) { handled.take(event.payload().at("n").dump()); });
    };
    options.idempotency_ttl = 1h;
    {
        running_consumer consumer(options, handler);
        append_event(redis, 1, "");
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
        append_event(redis, 1, "");
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 2; }));
        EXPECT_EQ(handled.count("1"), 1u);
        auto left = redis.command("PTTL", mark_of(1))->integer;
        EXPECT_GT(left, 30 * 60 * 1000);
        EXPECT_LE(left, 60 * 60 * 1000);
    }
    options.idempotency_ttl = 1s;
    running_consumer consumer(options, handler);
    append_event(redis, 2, "");
    ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
    ASSERT_TRUE(eventually([&] { return redis.command("EXISTS", mark_of(2))->integer == 0; }));
    append_event(redis, 2, "");
    ASSERT_TRUE(eventually([&] { return handled.count("2") == 2; }));
    EXPECT_EQ(handled.count("1"), 1u);
}

TEST(Marks, a_lease_lives_at_least_a_day_and_no_mark_is_made_of_it_before_the_handler_is_through) {
    redis_server redis;
    journal journal(redis);
    append_event(redis, 1, "", R"("do": "gate")");
    worker one(redis, journal);
    ASSERT_TRUE(eventually([&] { return journal.count("start", 1) == 1; }));
    EXPECT_NE(text_of(redis.command("GET", mark_of(1))), "done");
    EXPECT_GT(redis.command("PTTL", mark_of(1))->integer, 23LL * 60 * 60 * 1000);
    one.kill9();
    EXPECT_NE(text_of(redis.command("GET", mark_of(1))), "done");
    journal.open_gate();
    worker other(redis, journal);
    ASSERT_TRUE(eventually([&] { return text_of(redis.command("GET", mark_of(1))) == "done"; }));
    EXPECT_EQ(journal.count("start", 1), 2u);
}

TEST(Marks, are_not_made_where_nobody_asked_for_them) {
    redis_server redis;
    consumer_options options = quick_options(redis);
    options.idempotency = idempotency::none;
    notes handled;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.*", [&](const event &event) { handled.take(event.payload().at("n").dump()); });
    });
    append_event(redis, 1, "");
    ASSERT_TRUE(eventually([&] { return handled.count() == 1 && pending(redis, stream, "billing") == 0; }));
    redis_reply keys = redis.command("KEYS", "*:event:*");
    EXPECT_EQ(keys->elements, 0u);
}

TEST(Marks, of_one_group_say_nothing_to_another) {
    redis_server redis;
    append_event(redis, 1, "");
    notes handled;
    std::vector<std::unique_ptr<running_consumer>> consumers;
    for (const char *group : {"billing", "mail"})
        consumers.push_back(std::make_unique<running_consumer>(quick_options(redis, group), [&, group](class consumer &to) {
            to.on("wallet.*", [&, group](const event &) { handled.take(group); });
        }));
    ASSERT_TRUE(eventually([&] { return handled.count("billing") == 1 && handled.count("mail") == 1; }));
}

// The table in outbox/idempotency.hpp: where the process dies, and how often the effect is there in the end.
class Death : public ::testing::TestWithParam<guard> {
  protected:
    Death() {
        if (GetParam() == guard::inbox)
            inbox_.emplace();
    }
    worker start() { return worker(redis_, journal_, words_for(GetParam(), inbox_)); }

    // A handler that notes its end has made its effect; with an inbox it has if it is committed.
    std::size_t effects_of(std::uint64_t n) {
        if (!inbox_)
            return journal_.count("end", n);
        auto all = inbox_->all();
        return static_cast<std::size_t>(std::count(all.begin(), all.end(), n));
    }
    bool is_finished(std::uint64_t n) { return journal_.count("end", n) > 0 && pending(redis_, stream, "billing") == 0; }

    redis_server redis_;
    journal journal_{redis_};
    std::optional<effects> inbox_;
};

TEST_P(Death, before_the_handler_leaves_the_event_to_be_handled_once) {
    append_event(redis_, 1, "a");
    redis_.command("XGROUP", "CREATE", stream, "billing", "0");
    redis_.command("XREADGROUP", "GROUP", "billing", "dead", "STREAMS", stream, ">");
    auto other = start();
    ASSERT_TRUE(eventually([&] { return is_finished(1); })) << journal_.log();
    EXPECT_EQ(effects_of(1), 1u);
    EXPECT_EQ(journal_.count("start", 1), 1u);
}

TEST_P(Death, in_the_handler_starts_it_again_and_an_inbox_forgets_the_first_time) {
    append_event(redis_, 1, "a", R"("do": "exit", "upto": 1)");
    {
        auto first = start();
        ASSERT_TRUE(eventually([&] { return first.has_ended(); }));
    }
    auto other = start();
    ASSERT_TRUE(eventually([&] { return is_finished(1); })) << journal_.log();
    EXPECT_EQ(journal_.count("start", 1), 2u) << "effects up to there are there twice";
    EXPECT_EQ(effects_of(1), 1u);
}

// Redis takes no write, so nothing can be acknowledged.
TEST_P(Death, after_the_effect_and_before_the_acknowledgement_makes_the_effect_twice_without_an_inbox) {
    append_event(redis_, 1, "a", R"("do": "gate")");
    {
        auto first = start();
        ASSERT_TRUE(eventually([&] { return journal_.count("start", 1) == 1; })) << journal_.log();
        redis_.command("CLIENT", "PAUSE", "60000", "WRITE");
        journal_.open_gate();
        ASSERT_TRUE(eventually([&] { return effects_of(1) == 1; })) << journal_.log();
        first.kill9();
    }
    ASSERT_EQ(pending(redis_, stream, "billing"), 1);
    redis_.command("CLIENT", "UNPAUSE");
    auto other = start();
    ASSERT_TRUE(eventually([&] { return pending(redis_, stream, "billing") == 0; })) << journal_.log();
    EXPECT_EQ(effects_of(1), GetParam() == guard::inbox ? 1u : 2u);
    EXPECT_EQ(journal_.count("start", 1), GetParam() == guard::inbox ? 1u : 2u);
}

TEST_P(Death, after_the_acknowledgement_leaves_nothing_to_do) {
    append_event(redis_, 1, "a");
    {
        auto first = start();
        ASSERT_TRUE(eventually([&] { return is_finished(1); })) << journal_.log();
        first.kill9();
    }
    append_event(redis_, 2, "a");
    auto other = start();
    ASSERT_TRUE(eventually([&] { return is_finished(2); })) << journal_.log();
    EXPECT_EQ(effects_of(1), 1u);
    EXPECT_EQ(journal_.count("start", 1), 1u);
}

TEST_P(Death, of_redis_that_forgets_everything_brings_again_what_is_in_the_stream_and_an_inbox_knows_it) {
    append_event(redis_, 1, "a");
    auto one = start();
    ASSERT_TRUE(eventually([&] { return is_finished(1); })) << journal_.log();
    redis_.command("FLUSHALL");
    append_event(redis_, 1, "a");
    append_event(redis_, 2, "a");
    ASSERT_TRUE(eventually([&] { return journal_.count("end", 2) == 1 && pending(redis_, stream, "billing") == 0; })) << journal_.log();
    EXPECT_EQ(effects_of(1), GetParam() == guard::inbox ? 1u : 2u);
    EXPECT_EQ(effects_of(2), 1u);
}

INSTANTIATE_TEST_SUITE_P(Processes, Death, ::testing::Values(guard::none, guard::redis, guard::inbox),
                         [](const auto &info) { return name_of(info.param); });

} // namespace outbox::test

// on_poison::park_aggregate with several consumers on a real Redis, and what an operator does about dead letters.
#include <algorithm>
#include <atomic>
#include <random>
#include <set>

#include "workers.hpp"

namespace outbox::test {

class Parking : public ::testing::TestWithParam<idempotency> {
  protected:
    consumer_options options() {
        consumer_options all = quick_options(redis_);
        all.claim_idle = 8s;
        all.on_poison = on_poison::park_aggregate;
        all.idempotency = GetParam();
        all.retry.max_attempts = 2;
        all.topics = {"wallet"};
        return all;
    }

    // Consumers whose handler fails for the events that are named in `failing_`, and notes what it has handled.
    void start(int count, const consumer_options &with) {
        for (int i = 0; i < count; ++i)
            consumers_.push_back(std::make_unique<running_consumer>(with, [this](class consumer &to) {
                to.on("wallet.*", [this](const event &event) {
                    auto n = event.payload().at("n").get<std::uint64_t>();
                    {
                        std::lock_guard guard(lock_);
                        if (failing_.contains(n))
                            throw std::runtime_error("not " + std::to_string(n));
                    }
                    if (n == gated_)
                        while (!open_)
                            std::this_thread::sleep_for(1ms);
                    handled_.take(std::to_string(n));
                });
            }));
    }
    void start(int count) { start(count, options()); }

    void fail(std::set<std::uint64_t> which) {
        std::lock_guard guard(lock_);
        failing_ = std::move(which);
    }

    void add(std::uint64_t first, std::uint64_t last, const std::string &aggregate) {
        for (std::uint64_t n = first; n <= last; ++n)
            append_event(redis_, n, aggregate);
    }

    // Those of the numbers that were handled, in order.
    std::vector<std::uint64_t> handled(std::uint64_t first, std::uint64_t last) {
        std::vector<std::uint64_t> some;
        for (const std::string &note : handled_.all())
            if (std::uint64_t n = std::stoull(note); n >= first && n <= last)
                some.push_back(n);
        return some;
    }

    static std::vector<std::uint64_t> numbers(std::uint64_t first, std::uint64_t last) {
        std::vector<std::uint64_t> all;
        for (; first <= last; ++first)
            all.push_back(first);
        return all;
    }

    bool is_idle() {
        return is_through(redis_, stream, "billing") && redis_.command("XLEN", stream + ":redrive:billing")->integer == 0 &&
               pending(redis_, stream + ":redrive:billing", "billing") == 0;
    }

    // Gives so many entries to a consumer that has been silent for longer than anybody bears.
    void read_and_die(const std::string &key, int count) {
        redis_reply reply = redis_.command("XREADGROUP", "GROUP", "billing", "dead", "COUNT", count, "STREAMS", key, ">");
        ASSERT_EQ(reply->type, REDIS_REPLY_ARRAY);
        const redisReply &entries = *reply->element[0]->element[1];
        for (std::size_t i = 0; i < entries.elements; ++i)
            redis_.command("XCLAIM", key, "billing", "dead", 0, entries.element[i]->element[0]->str, "IDLE", 60'000, "JUSTID");
    }

    std::uint64_t parked() {
        std::uint64_t all = 0;
        for (auto &consumer : consumers_)
            all += (*consumer)->stats().parked;
        return all;
    }

    // After one more event of the aggregate, which finds that it is free again.
    void expect_nothing_is_left(const std::string &aggregate = "a") {
        append_event(redis_, 999, aggregate);
        EXPECT_TRUE(eventually([this] { return handled(999, 999).size() == 1 && is_idle(); }));
        redis_reply keys = redis_.command("KEYS", "*parked*");
        for (std::size_t i = 0; i < keys->elements; ++i)
            ADD_FAILURE() << keys->element[i]->str << " is left";
        EXPECT_EQ(redis_.command("EXISTS", stream + ":attempts:billing")->integer, 0);
        EXPECT_EQ(redis_.command("EXISTS", stream + ":redrive:billing:attempts:billing")->integer, 0);
    }

    redis_server redis_;
    dead_letters dead_{redis_.url(), "wallet", "billing"};
    notes handled_;
    std::mutex lock_;
    std::set<std::uint64_t> failing_;
    std::atomic<std::uint64_t> gated_{0};
    std::atomic<bool> open_{false};
    std::vector<std::unique_ptr<running_consumer>> consumers_;
};

TEST_P(Parking, sets_the_rest_of_the_aggregate_aside_until_the_dead_letter_is_redriven) {
    fail({3});
    start(2);
    add(1, 10, "a");
    add(101, 120, "b");
    add(201, 210, "");
    ASSERT_TRUE(eventually([&] { return handled_.count() == 2 + 20 + 10 && is_idle() && parked() == 7; }));
    EXPECT_EQ(handled(1, 10), numbers(1, 2));
    EXPECT_EQ(handled(101, 120), numbers(101, 120));
    // those that come later, too
    add(11, 12, "a");
    add(121, 121, "b");
    ASSERT_TRUE(eventually([&] { return handled(101, 121).size() == 21 && parked() == 9 && is_idle(); }));

    auto letters = dead_.list();
    ASSERT_EQ(letters.size(), 1u);
    EXPECT_EQ(letters[0].parked, 9u);
    EXPECT_EQ(letters[0].error, "not 3");
    EXPECT_EQ(letters[0].field("aggregate_id"), "a");
    fail({});
    EXPECT_TRUE(dead_.redrive(letters[0].id));
    ASSERT_TRUE(eventually([&] { return handled(1, 12).size() == 12; }));
    EXPECT_EQ(handled(1, 12), numbers(1, 12));
    EXPECT_EQ(dead_.count(), 0u);
    expect_nothing_is_left();
    add(13, 13, "a");
    EXPECT_TRUE(eventually([&] { return handled(13, 13).size() == 1; })) << "as if nothing had been";
}

TEST_P(Parking, keeps_the_order_with_what_arrives_while_it_drains) {
    fail({1});
    start(2);
    add(1, 30, "a");
    ASSERT_TRUE(eventually([&] { return parked() == 29 && is_idle(); }));
    fail({});
    gated_ = 10; // in the middle of it
    EXPECT_EQ(dead_.redrive_all(), 1u);
    ASSERT_TRUE(eventually([&] { return handled(1, 9).size() == 9; }));
    add(31, 50, "a");
    add(101, 110, "b");
    ASSERT_TRUE(eventually([&] { return handled(101, 110).size() == 10; }));
    EXPECT_EQ(handled(1, 50), numbers(1, 9));
    open_ = true;
    ASSERT_TRUE(eventually([&] { return handled(1, 50).size() == 50; }));
    EXPECT_EQ(handled(1, 50), numbers(1, 50));
    expect_nothing_is_left();
}

// What was read before the redrive waits in its consumer for what the redrive brings to the same consumer.
TEST_P(Parking, lets_what_is_redriven_pass_what_was_read_before_it) {
    fail({1});
    consumer_options alone = options();
    alone.concurrency = 1;
    alone.retry.max_attempts = 1; // each start is asked for, and only when there is a thread
    start(1, alone);
    add(1, 3, "a");
    ASSERT_TRUE(eventually([&] { return parked() == 2 && is_idle(); }));
    gated_ = 100;
    add(100, 100, "b");
    add(4, 6, "a"); // read, and behind 100
    ASSERT_TRUE(eventually([&] { return (*consumers_[0])->stats().held == 4; }));
    fail({});
    EXPECT_EQ(dead_.redrive_all(), 1u);
    ASSERT_TRUE(eventually([&] { return (*consumers_[0])->stats().held == 7; }));
    open_ = true;
    ASSERT_TRUE(eventually([&] { return handled(1, 6).size() == 6; })) << handled(1, 6).size();
    EXPECT_EQ(handled(1, 6), numbers(1, 6));
    expect_nothing_is_left();
}

TEST_P(Parking, begins_again_behind_one_that_dies_while_it_drains) {
    fail({2, 5});
    start(2);
    add(1, 10, "a");
    ASSERT_TRUE(eventually([&] { return parked() == 8 && is_idle(); }));
    fail({5});
    EXPECT_EQ(dead_.redrive_all(), 1u);
    ASSERT_TRUE(eventually([&] { return handled(1, 10) == numbers(1, 4) && dead_.count() == 1 && is_idle(); }));
    add(11, 15, "a");
    ASSERT_TRUE(eventually([&] { return dead_.list().at(0).parked == 10 && is_idle(); })) << dead_.list().at(0).parked;
    EXPECT_EQ(dead_.list().at(0).field("event_id"), event_id(5));
    // the same one again, right at the start
    EXPECT_EQ(dead_.redrive_all(), 1u);
    ASSERT_TRUE(eventually([&] { return dead_.count() == 1 && dead_.list().at(0).parked == 10 && is_idle(); }));
    EXPECT_EQ(handled(1, 15), numbers(1, 4));
    fail({});
    EXPECT_EQ(dead_.redrive_all(), 1u);
    ASSERT_TRUE(eventually([&] { return handled(1, 15).size() == 15; }));
    EXPECT_EQ(handled(1, 15), numbers(1, 15));
    expect_nothing_is_left();
}

TEST_P(Parking, is_released_by_a_discard_without_the_dead_one) {
    fail({1});
    start(2);
    add(1, 5, "a");
    ASSERT_TRUE(eventually([&] { return parked() == 4 && is_idle(); }));
    fail({});
    EXPECT_TRUE(dead_.discard(dead_.list().at(0).id));
    ASSERT_TRUE(eventually([&] { return handled(1, 5).size() == 4; }));
    EXPECT_EQ(handled(1, 5), numbers(2, 5));
    expect_nothing_is_left();
}

TEST_P(Parking, ends_where_the_dead_letter_was_deleted_by_hand) {
    fail({1});
    start(2);
    add(1, 4, "a");
    ASSERT_TRUE(eventually([&] { return parked() == 3 && is_idle(); }));
    fail({});
    redis_.command("XDEL", stream + ":dlq:billing", dead_.list().at(0).id);
    add(5, 5, "a"); // finds out
    ASSERT_TRUE(eventually([&] { return handled(1, 5).size() == 4; }));
    EXPECT_EQ(handled(1, 5), numbers(2, 5));
    expect_nothing_is_left();
}

TEST_P(Parking, of_many_aggregates_at_once_mixes_none_of_them) {
    std::set<std::uint64_t> failing;
    for (std::uint64_t n = 1; n <= 200; ++n)
        if (n % 20 == 5)
            failing.insert(n);
    fail(failing);
    start(3);
    for (std::uint64_t n = 1; n <= 200; ++n)
        append_event(redis_, n, std::to_string(n % 10));
    // aggregate 5 has them all: 5 dies, the rest is behind it
    ASSERT_TRUE(eventually([&] { return handled_.count() == 180 && is_idle(); })) << handled_.count();
    EXPECT_EQ(dead_.count(), 1u);
    // each redrive gets as far as the next that fails
    for (std::uint64_t next = 25; next <= 185; next += 20) {
        failing.erase(next - 20);
        fail(failing);
        EXPECT_EQ(dead_.redrive_all(), 1u);
        ASSERT_TRUE(eventually([&] { return dead_.count() == 1 && dead_.list().at(0).field("event_id") == event_id(next) && is_idle(); }));
    }
    fail({});
    EXPECT_EQ(dead_.redrive_all(), 1u);
    ASSERT_TRUE(eventually([&] { return handled_.count() == 200 && is_idle(); }));
    expect_nothing_is_left("5");
    for (std::uint64_t aggregate = 0; aggregate < 10; ++aggregate) {
        std::vector<std::uint64_t> order;
        for (std::uint64_t n : handled(1, 200))
            if (n % 10 == aggregate)
                order.push_back(n);
        EXPECT_EQ(order.size(), 20u);
        EXPECT_TRUE(std::is_sorted(order.begin(), order.end())) << aggregate;
    }
}

// A consumer that holds the parked events' successors is stopped for good: another one has to take over and park them.
TEST_P(Parking, outlives_the_consumers) {
    fail({1});
    start(1);
    add(1, 5, "a");
    ASSERT_TRUE(eventually([&] { return parked() == 4 && is_idle(); }));
    consumers_.clear();
    add(6, 8, "a");
    read_and_die(stream, 2);
    start(2);
    ASSERT_TRUE(eventually([&] { return dead_.list().at(0).parked == 7 && is_idle(); }));
    // redriven while nobody is there, and half taken by one who dies
    consumers_.clear();
    fail({});
    EXPECT_EQ(dead_.redrive_all(), 1u);
    read_and_die(stream + ":redrive:billing", 3);
    add(9, 10, "a");
    start(2);
    ASSERT_TRUE(eventually([&] { return handled(1, 10).size() == 10; }));
    EXPECT_EQ(handled(1, 10), numbers(1, 10));
    expect_nothing_is_left();
}

INSTANTIATE_TEST_SUITE_P(Consumers, Parking, ::testing::Values(idempotency::none, idempotency::redis),
                         [](const auto &info) { return info.param == idempotency::none ? "none" : "redis"; });

// Everything at once: events that die, redrives of them while they do, and processes that are killed in the middle.
TEST(ParkedAndKilled, keeps_the_order_of_every_aggregate_and_loses_nothing) {
    const auto seed = std::random_device{}();
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    redis_server redis;
    journal journal(redis);
    dead_letters dead(redis.url(), "wallet", "billing");
    service service(redis, journal, {"park=1", "max_attempts=1", "claim_idle=8000", "initial=1"}, 3);
    const std::uint64_t rounds = 10, each = 30, all = rounds * each, aggregates = 5;
    auto has_all_read = [&] { return redis.command("XLEN", stream + ":redrive:billing")->integer == 0 && pending(redis, stream, "billing") == 0; };
    for (std::uint64_t round = 0; round < rounds; ++round) {
        for (std::uint64_t n = round * each + 1; n <= (round + 1) * each; ++n)
            append_event(redis, n, std::to_string(n % aggregates), random() % 15 == 0 ? R"("do": "fail")" : "");
        std::size_t target = journal.lines().size() + random() % 20;
        eventually([&] { return journal.lines().size() >= target; }, 200ms);
        if (random() % 2 == 0)
            dead.redrive([&](const dead_letter &) { return random() % 2 == 0; });
        service[random() % 3].kill9();
        service.keep();
    }
    journal.open_gate();
    ASSERT_TRUE(eventually([&] {
        service.keep();
        dead.redrive_all();
        std::set<std::uint64_t> ended;
        for (auto &line : journal.lines())
            if (line.what == "end")
                ended.insert(line.n);
        return ended.size() == all && has_all_read() && dead.count() == 0;
    }, 60s)) << journal.log();

    std::map<std::uint64_t, std::uint64_t> last;
    std::set<std::uint64_t> seen;
    for (const auto &line : journal.lines())
        if (line.what == "end" && seen.insert(line.n).second) {
            EXPECT_EQ(line.n, last[line.n % aggregates] == 0 ? (line.n - 1) % aggregates + 1 : last[line.n % aggregates] + aggregates);
            last[line.n % aggregates] = line.n;
        }
    EXPECT_EQ(seen.size(), all);
    if (HasFailure())
        std::fputs(journal.log().c_str(), stderr);
}

// Dead letters of a running group

class Operator : public ::testing::Test {
  protected:
    std::unique_ptr<running_consumer> start(const std::string &group) {
        consumer_options options = quick_options(redis_, group);
        options.retry.max_attempts = 1;
        return std::make_unique<running_consumer>(options, [this, group](class consumer &to) {
            to.on("wallet.*", [this, group](const event &event) {
                if (fail_)
                    throw std::runtime_error("no " + event.payload().at("n").dump());
                handled_.take(group + " " + event.payload().at("n").dump() + " " + std::to_string(event.attempt()) + " " +
                              std::string(event.position()));
            });
        });
    }

    redis_server redis_;
    notes handled_;
    std::atomic<bool> fail_{true};
};

TEST_F(Operator, redrives_one_some_and_all_and_each_is_delivered_to_its_group_alone) {
    dead_letters dead(redis_.url(), "wallet", "billing"), other(redis_.url(), "wallet", "mail");
    auto billing = start("billing"), mail = start("mail");
    std::vector<std::string> positions;
    for (std::uint64_t n = 1; n <= 10; ++n)
        positions.push_back(append(redis_, {.id = event_id(n), .payload = "{\"n\": " + std::to_string(n) + "}"}));
    ASSERT_TRUE(eventually([&] { return dead.count() == 10 && other.count() == 10; }));

    auto letters = dead.list();
    ASSERT_EQ(letters.size(), 10u);
    std::sort(letters.begin(), letters.end(), [](auto &a, auto &b) { return a.field("event_id") < b.field("event_id"); });
    for (std::size_t i = 0; i < 10; ++i) {
        EXPECT_EQ(letters[i].position, positions[i]);
        EXPECT_EQ(letters[i].error, "no " + std::to_string(i + 1));
        EXPECT_EQ(letters[i].parked, 0u);
    }
    auto page = dead.list(3);
    ASSERT_EQ(page.size(), 3u);
    EXPECT_EQ(dead.list(100, page[2].id).size(), 7u);
    auto one = dead.inspect(letters[4].id);
    ASSERT_TRUE(one.has_value());
    EXPECT_EQ(one->field("payload"), "{\"n\": 5}");
    EXPECT_FALSE(dead.inspect("1-1").has_value());

    fail_ = false;
    EXPECT_TRUE(dead.redrive(letters[4].id));
    EXPECT_FALSE(dead.redrive(letters[4].id)) << "it is not there any more";
    ASSERT_TRUE(eventually([&] { return handled_.count() == 1; }));
    EXPECT_EQ(handled_.all()[0], "billing 5 1 " + positions[4]) << "with all its attempts, and where it was at first";
    EXPECT_EQ(dead.redrive([](const dead_letter &letter) { return letter.error == "no 1" || letter.error == "no 2"; }), 2u);
    ASSERT_TRUE(eventually([&] { return handled_.count() == 3; }));
    EXPECT_TRUE(dead.discard(letters[2].id));
    EXPECT_FALSE(dead.inspect(letters[2].id).has_value());
    EXPECT_EQ(dead.discard([](const dead_letter &letter) { return letter.error == "no 4"; }), 1u);
    EXPECT_EQ(dead.count(), 5u);
    EXPECT_EQ(dead.redrive_all(), 5u);
    ASSERT_TRUE(eventually([&] { return handled_.count() == 8; }));
    EXPECT_EQ(dead.count(), 0u);
    EXPECT_EQ(other.count(), 10u);
    for (const std::string &note : handled_.all())
        EXPECT_EQ(note.substr(0, 8), "billing ");
    EXPECT_EQ(redis_.command("XLEN", stream)->integer, 10) << "the topic's stream is the outbox's alone";
    EXPECT_EQ(other.discard_all(), 10u);
    ASSERT_TRUE(eventually([&] { return redis_.command("XLEN", stream + ":redrive:billing")->integer == 0; }));
}

TEST_F(Operator, redrives_what_dies_again_and_finds_it_with_its_first_position) {
    dead_letters dead(redis_.url(), "wallet", "billing");
    auto billing = start("billing");
    std::string position = append(redis_, {.id = event_id(1), .aggregate_id = "a", .payload = "{\"n\": 1}"});
    std::vector<std::pair<std::string, std::string>> fields;
    for (int round = 0; round < 5; ++round) {
        ASSERT_TRUE(eventually([&] { return dead.count() == 1; }));
        auto letter = dead.list().at(0);
        EXPECT_EQ(letter.position, position);
        EXPECT_EQ(letter.attempts, 1);
        EXPECT_EQ(letter.stream, round == 0 ? stream : stream + ":redrive:billing");
        if (round == 0)
            fields = letter.fields;
        EXPECT_EQ(letter.fields, fields);
        fail_ = round < 4;
        EXPECT_TRUE(dead.redrive(letter.id));
        if (round < 4) {
            ASSERT_TRUE(eventually([&] { auto next = dead.list(); return !next.empty() && next[0].id != letter.id; }));
        }
    }
    EXPECT_TRUE(eventually([&] { return handled_.count() == 1; }));
}

TEST_F(Operator, redrives_an_event_that_was_handled_meanwhile_and_it_is_skipped) {
    dead_letters dead(redis_.url(), "wallet", "billing");
    auto billing = start("billing");
    append(redis_, {.id = event_id(1), .payload = "{\"n\": 1}"});
    ASSERT_TRUE(eventually([&] { return dead.count() == 1; }));
    fail_ = false;
    append(redis_, {.id = event_id(1), .payload = "{\"n\": 1}"}); // replayed by the outbox
    ASSERT_TRUE(eventually([&] { return handled_.count() == 1; }));
    EXPECT_EQ(dead.redrive_all(), 1u);
    EXPECT_TRUE(eventually([&] { return (*billing)->stats().duplicates == 1; }));
    EXPECT_EQ(handled_.count(), 1u);
}

} // namespace outbox::test

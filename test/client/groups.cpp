// Redis loses what a group is made of: streams, the group, entries, consumers, everything. The group is made anew, never from
// "$" and never in a hot loop, and nothing that is still there, or comes again, is skipped.
#include <atomic>
#include <set>

#include "consumers.hpp"

namespace outbox::test {

static const std::string wallets = "outbox:{wallet}";

static std::string number(const event &event) { return event.payload().at("n").dump(); }

// The position that the outbox would give to event n, the same whenever it appends it.
static std::string position(std::uint64_t n) { return std::to_string(1'700'000'000'000 + n) + "-0"; }

// Appends events as the outbox does, and again when Redis has lost them: entries keep their positions.
static void publish(redis_server &redis, std::uint64_t first, std::uint64_t last, std::uint64_t aggregates = 5) {
    for (std::uint64_t n = first; n <= last; ++n)
        append(redis, {.id = event_id(n), .aggregate_id = std::to_string(n % aggregates), .payload = "{\"n\": " + std::to_string(n) + "}"},
               position(n));
}

class Groups : public ::testing::Test {
  protected:
    redis_server redis;
    notes handled;

    consumer_options options() {
        auto options = quick_options(redis);
        options.claim_idle = 60s;
        return options;
    }
    auto handler() {
        return [this](class consumer &to) { to.on("wallet.created", [this](const event &event) { handled.take(number(event)); }); };
    }
    bool all_done(std::size_t count) {
        return eventually([&] { return distinct() == count && pending(redis, wallets, "billing") == 0; });
    }
    std::size_t distinct() const {
        auto all = handled.all();
        return std::set<std::string>(all.begin(), all.end()).size();
    }
    // How often each of them was handled.
    std::size_t times(std::uint64_t first, std::uint64_t last) const {
        std::size_t total = 0;
        for (std::uint64_t n = first; n <= last; ++n)
            total += handled.count(std::to_string(n));
        return total;
    }
    // Of both streams, that of the topic and that of what is redriven.
    long long groups_made() { return executed(redis, "xgroup|create"); }
    std::vector<dead_letter> dead() { return dead_letters(redis.url(), "wallet", "billing").list(); }
};

TEST_F(Groups, a_group_that_never_existed_begins_at_the_first_entry) {
    publish(redis, 1, 20);
    running_consumer consumer(options(), handler());
    EXPECT_TRUE(all_done(20));
    EXPECT_EQ(consumer->stats().groups_created, 2u);
}

TEST_F(Groups, a_group_that_never_existed_begins_where_the_options_say) {
    publish(redis, 1, 20);
    auto options = this->options();
    options.start = position(15);
    running_consumer consumer(options, handler());
    ASSERT_TRUE(all_done(5));
    EXPECT_EQ(times(16, 20), 5u);
    // and a group that is there goes on where it is
    EXPECT_TRUE(consumer.stop());
    publish(redis, 21, 22);
    options.start = "0";
    running_consumer again(options, handler());
    ASSERT_TRUE(all_done(7));
    EXPECT_EQ(handled.count(), 7u);
}

TEST_F(Groups, after_everything_is_lost_what_comes_then_is_handled) {
    running_consumer consumer(options(), handler());
    publish(redis, 1, 50);
    ASSERT_TRUE(all_done(50));
    redis.command({"FLUSHALL"});
    publish(redis, 51, 100); // the outbox is faster than the consumer: these are in the stream before there is a group
    ASSERT_TRUE(all_done(100));
    EXPECT_EQ(handled.count(), 100u);
    EXPECT_GE(consumer->stats().groups_created, 4u);
    EXPECT_EQ(consumer->stats().failed, 0u);
}

TEST_F(Groups, after_everything_is_lost_while_handlers_run_nothing_is_lost_with_it) {
    gate hold;
    std::atomic<bool> wait = true;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            if (wait)
                hold.pass();
            handled.take(number(event));
        });
    });
    publish(redis, 1, 50);
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 50 && hold.waiting() == 4; }));
    redis.command({"FLUSHALL"});
    wait = false;
    hold.open();
    publish(redis, 1, 60); // as the outbox does when it sees that Redis forgot
    ASSERT_TRUE(all_done(60));
    // what started before the loss was noticed may have been handled twice, and nothing more often
    EXPECT_LE(handled.count(), 110u);
    EXPECT_TRUE(eventually([&] { return consumer->stats().held == 0; }));
}

TEST_F(Groups, a_stream_that_is_deleted_and_appended_again_is_not_handled_twice_where_the_marks_remain) {
    running_consumer consumer(options(), handler());
    publish(redis, 1, 50);
    ASSERT_TRUE(all_done(50));
    redis.command({"DEL", wallets});
    publish(redis, 1, 80);
    ASSERT_TRUE(all_done(80));
    ASSERT_TRUE(eventually([&] { return consumer->stats().duplicates == 50; }));
    EXPECT_EQ(handled.count(), 80u);
}

TEST_F(Groups, a_group_that_is_destroyed_begins_anew_and_skips_what_is_done) {
    running_consumer consumer(options(), handler());
    publish(redis, 1, 50);
    ASSERT_TRUE(all_done(50));
    redis.command({"XGROUP", "DESTROY", wallets, "billing"});
    publish(redis, 51, 60);
    ASSERT_TRUE(all_done(60));
    ASSERT_TRUE(eventually([&] { return consumer->stats().duplicates == 50; }));
    EXPECT_EQ(handled.count(), 60u);
}

TEST_F(Groups, a_group_that_is_destroyed_while_handlers_run_loses_nothing) {
    gate hold;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    publish(redis, 1, 50);
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 50 && hold.waiting() == 4; }));
    redis.command({"XGROUP", "DESTROY", wallets, "billing"});
    publish(redis, 51, 55);
    hold.open();
    ASSERT_TRUE(all_done(55));
    EXPECT_LE(handled.count(), 59u);
    EXPECT_TRUE(eventually([&] { return consumer->stats().held == 0; }));
}

TEST_F(Groups, a_group_that_is_destroyed_again_and_again_is_not_made_anew_in_a_hot_loop) {
    running_consumer consumer(options(), handler());
    publish(redis, 1, 20);
    ASSERT_TRUE(all_done(20));
    auto before = groups_made();
    auto lines = consumer.log().count();
    auto start = std::chrono::steady_clock::now();
    ASSERT_TRUE(eventually([&] {
        redis.command({"XGROUP", "DESTROY", wallets, "billing"});
        return std::chrono::steady_clock::now() - start > 1500ms;
    }));
    auto made = groups_made() - before;
    lines = consumer.log().count() - lines;
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    // the first at once, two a second then, and each for two streams
    EXPECT_LE(static_cast<double>(made), 2 * (1 + 2 * took.count()) + 1);
    EXPECT_LE(static_cast<double>(lines), 10 * took.count());
    publish(redis, 21, 30);
    ASSERT_TRUE(all_done(30));
    EXPECT_EQ(handled.count(), 30u);
}

TEST_F(Groups, a_stream_that_is_deleted_again_and_again_is_no_reason_for_a_hot_loop) {
    running_consumer consumer(options(), handler());
    publish(redis, 1, 20);
    ASSERT_TRUE(all_done(20));
    auto before = groups_made();
    auto start = std::chrono::steady_clock::now();
    std::uint64_t n = 20;
    ASSERT_TRUE(eventually([&] {
        redis.command({"DEL", wallets, wallets + ":redrive:billing"});
        ++n;
        publish(redis, n, n); // a stream, but no group
        return std::chrono::steady_clock::now() - start > 1500ms;
    }));
    auto made = groups_made() - before;
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT_LE(static_cast<double>(made), 2 * (1 + 2 * took.count()) + 1);
    publish(redis, n + 1, n + 10);
    ASSERT_TRUE(eventually([&] { return times(n + 1, n + 10) == 10 && pending(redis, wallets, "billing") == 0; }));
}

// What was handed to a consumer that died, and then trimmed away, would be pending for ever.
TEST_F(Groups, entries_that_were_trimmed_away_under_a_dead_consumer_become_dead_letters_with_their_positions) {
    publish(redis, 1, 10);
    redis.command({"XGROUP", "CREATE", wallets, "billing", "0"});
    redis.command({"XREADGROUP", "GROUP", "billing", "dead", "COUNT", "10", "STREAMS", wallets, ">"});
    redis.command({"XTRIM", wallets, "MINID", position(4)});
    redis.command({"XDEL", wallets, position(7)});
    auto options = this->options();
    options.claim_idle = 100ms;
    running_consumer consumer(options, handler());
    ASSERT_TRUE(all_done(6));
    ASSERT_TRUE(eventually([&] { return consumer->stats().dead_lettered == 4; }));
    EXPECT_EQ(consumer->stats().trimmed, 4u);
    EXPECT_EQ(handled.count(), 6u);
    std::set<std::string> positions;
    for (const auto &letter : dead()) {
        positions.insert(letter.position);
        EXPECT_TRUE(letter.fields.empty());
        EXPECT_NE(letter.error.find("trimmed"), letter.error.npos);
    }
    EXPECT_EQ(positions, (std::set<std::string>{position(1), position(2), position(3), position(7)}));
    EXPECT_TRUE(eventually([&] { return consumer.log().contain("trimmed away"); })); // said after it is counted
}

TEST_F(Groups, entries_that_were_trimmed_away_under_a_consumer_that_comes_back_become_dead_letters) {
    publish(redis, 1, 10);
    redis.command({"XGROUP", "CREATE", wallets, "billing", "0"});
    redis.command({"XREADGROUP", "GROUP", "billing", "again", "COUNT", "10", "STREAMS", wallets, ">"});
    redis.command({"XTRIM", wallets, "MAXLEN", "5"});
    auto options = this->options();
    options.name = "again";
    running_consumer consumer(options, handler());
    ASSERT_TRUE(all_done(5));
    ASSERT_TRUE(eventually([&] { return consumer->stats().trimmed == 5 && consumer->stats().dead_lettered == 5; }));
    EXPECT_EQ(dead().size(), 5u);
}

TEST_F(Groups, what_is_in_hand_is_handled_although_it_was_trimmed_away) {
    gate hold;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    publish(redis, 1, 20);
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 20 && hold.waiting() == 4; }));
    redis.command({"XTRIM", wallets, "MAXLEN", "0"});
    hold.open();
    ASSERT_TRUE(all_done(20));
    EXPECT_EQ(handled.count(), 20u);
    EXPECT_EQ(consumer->stats().dead_lettered, 0u);
}

// A lease of what is not in the stream any more cannot be renewed.
TEST_F(Groups, what_was_trimmed_away_is_handled_by_whoever_has_it_for_as_long_as_that_takes) {
    gate hold;
    auto options = this->options();
    options.claim_idle = 2s;
    auto handler = [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    };
    running_consumer consumer(options, handler);
    publish(redis, 1, 4);
    ASSERT_TRUE(eventually([&] { return hold.waiting() == 4; }));
    redis.command({"XTRIM", wallets, "MAXLEN", "0"});
    // the other one looks for what it may take over, again and again; and so does the one that has it
    running_consumer other(options, handler);
    ASSERT_TRUE(eventually([&] { return redis.command({"XPENDING", wallets, "billing", "IDLE", "3000", "-", "+", "9"})->elements == 4; }));
    hold.open();
    ASSERT_TRUE(all_done(4));
    EXPECT_EQ(handled.count(), 4u);
    EXPECT_TRUE(dead().empty());
    EXPECT_EQ(consumer->stats().trimmed + other->stats().trimmed, 0u);
    EXPECT_EQ(consumer->stats().acknowledged, 4u);
}

TEST_F(Groups, an_event_that_was_trimmed_away_and_fails_for_good_is_a_dead_letter_all_the_same) {
    gate hold;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &) {
            hold.pass();
            throw std::runtime_error("no luck");
        });
    });
    publish(redis, 1, 1);
    ASSERT_TRUE(eventually([&] { return hold.waiting() == 1; }));
    redis.command({"XTRIM", wallets, "MAXLEN", "0"});
    hold.open();
    ASSERT_TRUE(eventually([&] { return consumer->stats().dead_lettered == 1 && pending(redis, wallets, "billing") == 0; }));
    auto letters = dead();
    ASSERT_EQ(letters.size(), 1u);
    EXPECT_EQ(letters[0].position, position(1));
    EXPECT_EQ(letters[0].attempts, 3);
}

// Redis forgets whose they were, and there is nothing to tell that from an acknowledgement by hand.
TEST_F(Groups, a_consumer_whose_name_is_deleted_finishes_what_runs_and_goes_on) {
    gate hold;
    auto options = this->options();
    options.claim_idle = 400ms;
    options.name = "deleted";
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    publish(redis, 1, 20);
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 20 && hold.waiting() == 4; }));
    redis_reply orphans = redis.command({"XGROUP", "DELCONSUMER", wallets, "billing", "deleted"});
    ASSERT_EQ(orphans->integer, 20);
    ASSERT_TRUE(eventually([&] { return consumer->stats().lost_leases > 0; }));
    publish(redis, 21, 25);
    hold.open();
    ASSERT_TRUE(eventually([&] { return times(21, 25) == 5 && pending(redis, wallets, "billing") == 0; }));
    EXPECT_TRUE(eventually([&] { return consumer->stats().held == 0; }));
    EXPECT_EQ(handled.count() + consumer->stats().lost_leases, 25u);
}

TEST_F(Groups, a_group_that_is_set_back_skips_what_is_done_and_handles_the_rest_once) {
    gate hold;
    std::atomic<bool> wait = false;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            handled.take(number(event));
            if (wait)
                hold.pass();
        });
    });
    publish(redis, 1, 30, 1000);
    ASSERT_TRUE(all_done(30));
    wait = true;
    publish(redis, 31, 40, 1000);
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 10 && hold.waiting() == 4; }));
    redis.command({"XGROUP", "SETID", wallets, "billing", "0"});
    ASSERT_TRUE(eventually([&] { return consumer->stats().duplicates == 30; })); // while handlers run and others wait
    wait = false;
    hold.open();
    ASSERT_TRUE(all_done(40));
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 0; }));
    EXPECT_EQ(handled.count(), 40u);
}

// With an inbox

class Inboxed : public ::testing::Test {
  protected:
    redis_server redis;
    database effects;
    session connection = effects.connect();

    Inboxed() {
        inbox::create_schema(connection.get());
        connection.sql("CREATE TABLE effect (n bigint)"); // without a constraint: duplicates are to be seen
    }

    consumer_options options() {
        auto options = quick_options(redis);
        options.inbox = effects.conninfo();
        options.idempotency = idempotency::none; // the inbox alone
        return options;
    }
    static void handle(class consumer &to) {
        to.on_transaction("wallet.created", [](const event &event, transaction &tx) {
            session::sql(tx.connection(), "INSERT INTO effect VALUES (" + number(event) + ")");
        });
    }
    std::string count(const std::string &what) { return connection.sql("SELECT count(" + what + ") FROM effect"); }
    bool all_done(std::size_t events) {
        return eventually([&] { return count("DISTINCT n") == std::to_string(events) && pending(redis, wallets, "billing") == 0; });
    }
    std::string saved() {
        return connection.sql("SELECT ms || '-' || n FROM outbox_inbox.position WHERE group_name = 'billing' AND topic = 'wallet'");
    }
};

TEST_F(Inboxed, effects_happen_once_although_redis_forgets_everything_and_the_outbox_appends_it_again) {
    running_consumer consumer(options(), handle);
    for (std::uint64_t round = 0; round < 3; ++round) {
        publish(redis, 50 * round + 1, 50 * round + 40);
        if (round == 1) {
            ASSERT_TRUE(eventually([&] { return saved() == position(90); })) << saved();
        } else {
            ASSERT_TRUE(eventually([&] { return std::stoul(count("*")) > 50 * round + 10; })); // in the middle
        }
        redis.command({"FLUSHALL"});
        publish(redis, 1, 50 * round + 50);
        ASSERT_TRUE(all_done(50 * round + 50));
    }
    EXPECT_EQ(count("*"), "150");
    EXPECT_EQ(connection.sql("SELECT count(*) FROM outbox_inbox.event"), "150");
    EXPECT_EQ(consumer->stats().failed, 0u);
}

TEST_F(Inboxed, a_group_that_redis_forgot_begins_where_it_is_known_to_have_been) {
    {
        running_consumer consumer(options(), handle);
        publish(redis, 1, 40);
        ASSERT_TRUE(all_done(40));
        ASSERT_TRUE(eventually([&] { return saved() == position(40); })) << saved();
    }
    redis.command({"FLUSHALL"});
    publish(redis, 1, 50);
    running_consumer consumer(options(), handle);
    ASSERT_TRUE(all_done(50));
    EXPECT_EQ(consumer->stats().read, 10u);
    EXPECT_EQ(count("*"), "50");
    EXPECT_TRUE(consumer.log().contain("from " + position(40)));
}

TEST_F(Inboxed, what_is_not_finished_is_never_behind_the_position) {
    gate hold;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on_transaction("wallet.created", [&](const event &event, transaction &tx) {
            if (number(event) == "5")
                hold.pass();
            session::sql(tx.connection(), "INSERT INTO effect VALUES (" + number(event) + ")");
        });
    });
    publish(redis, 1, 20, 1000);
    ASSERT_TRUE(eventually([&] { return count("*") == "19" && pending(redis, wallets, "billing") == 1; }));
    // the one before the fifth
    EXPECT_TRUE(eventually([&] { return saved() == "1700000000004-18446744073709551615"; })) << saved();
    redis.command({"FLUSHALL"});
    publish(redis, 1, 20, 1000);
    hold.open();
    ASSERT_TRUE(all_done(20));
    EXPECT_EQ(count("*"), "20");
}

TEST_F(Inboxed, a_group_is_not_made_before_its_position_is_known) {
    publish(redis, 1, 10);
    connection.sql("INSERT INTO outbox_inbox.position (group_name, topic, ms, n) VALUES ('billing', 'wallet', 1700000000007, 0)");
    connection.sql("ALTER TABLE outbox_inbox.position RENAME TO away");
    running_consumer consumer(options(), handle);
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("inbox: "); }));
    EXPECT_EQ(pending(redis, wallets, "billing"), -1);
    connection.sql("ALTER TABLE outbox_inbox.away RENAME TO position");
    ASSERT_TRUE(all_done(3));
    EXPECT_EQ(count("*"), "3");
}

} // namespace outbox::test

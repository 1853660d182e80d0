// Scripts: what is taken over, renewed and released, and how far a group is.
#include "scripts.hpp"

namespace outbox::test {

// --- take_over ---

TEST_F(scripts, take_over_takes_what_is_idle_and_says_how_often_it_was_tried) {
    auto first = delivered("e1", "a", "other"), second = delivered("e3", "a", "third");
    command("HSET", attempts_of(keys.stream), second, "2");
    auto fields = [](const std::string &event_id) {
        return "[event_id, " + event_id +
               ", event_type, wallet.created, aggregate_type, wallet, aggregate_id, a, version, 1, occurred_at, , headers, "
               "{}, payload, {}]";
    };
    EXPECT_EQ(take_over("me"), "[0, , [[" + first + ", " + fields("e1") + ", 2, -1], [" + second + ", " + fields("e3") +
                                   ", 2, 2]]]");
    EXPECT_EQ(pending("me"), (strings{first, second}));
    EXPECT_EQ(deliveries(first), 2);
    EXPECT_EQ(take_over("me", "60000"), "[0, , []]") << "they are not idle any more";
}

TEST_F(scripts, take_over_finds_its_own_that_never_arrived_as_well) {
    auto mine = delivered("e1");
    EXPECT_TRUE(take_over("me").starts_with("[0, , [[" + mine + ", "));
    EXPECT_EQ(deliveries(mine), 2);
}

TEST_F(scripts, take_over_leaves_what_is_not_idle_for_long_enough) {
    auto fresh = delivered("e1", "a", "other"), silent = delivered("e2", "a", "other");
    command("XCLAIM", keys.stream, "billing", "other", 0, silent, "IDLE", 60'000, "JUSTID");
    take_over("me", "30000");
    EXPECT_EQ(pending("other"), strings{fresh});
    EXPECT_EQ(pending("me"), strings{silent});
    EXPECT_LT(idle(silent), 30'000);
}

TEST_F(scripts, take_over_brings_its_own_again_after_a_lost_reply) {
    auto first = delivered("e1"), others = delivered("e2", "a", "other"), second = delivered("e3");
    auto reply = take_over("me", "0", 100, "-", true);
    EXPECT_TRUE(reply.starts_with("[0, , [[" + first + ", ")) << reply;
    EXPECT_NE(reply.find(second), std::string::npos);
    EXPECT_EQ(reply.find(others), std::string::npos);
    EXPECT_EQ(deliveries(first), 2);
    EXPECT_EQ(take_over("nobody", "0", 100, "-", true), "[0, , []]");
}

TEST_F(scripts, take_over_goes_on_page_by_page) {
    for (bool mine : {true, false}) {
        SetUp();
        strings expected, seen;
        for (int i = 0; i < 7; ++i)
            expected.push_back(emit("e" + std::to_string(i)));
        read(mine ? "me" : "other");
        std::string after = "-";
        for (int pages = 0; !after.empty(); ++pages) {
            ASSERT_LT(pages, 5);
            auto before = pending("me").size();
            auto reply = server_->command({"EVAL", detail::take_over.text, "3", keys.stream, attempts_of(keys.stream),
                                           keys.dead, "billing", "me", "0", "3", after, mine ? "1" : "0"});
            after = show(*reply->element[1]);
            for (std::size_t i = 0; i < reply->element[2]->elements; ++i)
                seen.push_back(show(*reply->element[2]->element[i]->element[0]));
            EXPECT_LE(pending("me").size(), before + 3);
        }
        EXPECT_EQ(seen, expected);
    }
}

TEST_F(scripts, take_over_makes_dead_letters_of_what_was_trimmed_away) {
    auto gone = delivered("e1", "a", "other"), stays = delivered("e2", "a", "other");
    command("HSET", attempts_of(keys.stream), gone, "2");
    command("XTRIM", keys.stream, "MAXLEN", 1);
    auto reply = take_over("me");
    EXPECT_TRUE(reply.starts_with("[1, , [[" + stays + ", ")) << reply;
    EXPECT_EQ(pending(), strings{stays});
    auto letter = ids(keys.dead).at(0);
    EXPECT_EQ(field(keys.dead, letter, "outbox_position"), gone);
    EXPECT_EQ(field(keys.dead, letter, "outbox_error"), "the entry was trimmed away before it was handled");
    EXPECT_EQ(field(keys.dead, letter, "outbox_attempts"), "2");
    EXPECT_EQ(field(keys.dead, letter, "event_id"), "no field");
    EXPECT_EQ(command("EXISTS", attempts_of(keys.stream)), "0");
    EXPECT_TRUE(redrive(letter).starts_with("(error) GONE "));
    EXPECT_EQ(discard(letter), "1");

    command("XTRIM", keys.stream, "MAXLEN", 0);
    EXPECT_EQ(take_over("me", "0", 100, "-", true), "[0, , [[" + stays + ", [], 3, -1]]]") << "its own may be in hand";
    EXPECT_EQ(pending(), strings{stays});
}

TEST_F(scripts, take_over_leaves_what_was_trimmed_away_to_a_consumer_that_is_heard_of) {
    auto others = delivered("e1", "a", "other"), mine = delivered("e2"), silent = delivered("e3", "a", "silent");
    for (const auto &[id, owner] : {std::pair(others, "other"), std::pair(mine, "me"), std::pair(silent, "silent")})
        command("XCLAIM", keys.stream, "billing", owner, 0, id, "IDLE", 60'000, "JUSTID");
    command("XTRIM", keys.stream, "MAXLEN", 0);
    ASSERT_TRUE(test::eventually([&] { return consumer_idle("silent") >= 300; }));
    command("MULTI");
    eval(detail::renew, {keys.stream}, {"billing", "other", others});
    take_over("me", "300");
    EXPECT_EQ(command("EXEC"), "[[], [1, , [[" + mine + ", [], 2, -1]]]]") << "its own may be in hand";
    EXPECT_EQ(pending(), (strings{others, mine}));
    EXPECT_EQ(field(keys.dead, ids(keys.dead).at(0), "outbox_position"), silent);
}

TEST_F(scripts, take_over_has_taken_nothing_when_it_fails) {
    auto gone = delivered("e1", "a", "other"), stays = delivered("e2", "a", "other");
    command("XTRIM", keys.stream, "MAXLEN", 1);
    run_out_of_memory();
    EXPECT_TRUE(take_over("me").starts_with("(error) OOM "));
    command("CONFIG", "SET", "maxmemory", "0");
    for (const auto &key : {keys.dead, attempts_of(keys.stream)}) {
        command("SET", key, "of a type that nobody wants");
        EXPECT_TRUE(take_over("me").starts_with("(error) WRONGTYPE ")) << key;
        command("DEL", key);
    }
    EXPECT_EQ(pending("other"), (strings{gone, stays}));
    EXPECT_EQ(command("EXISTS", keys.dead), "0");
}

// --- renew, release, reap ---

TEST_F(scripts, renew_begins_leases_anew_and_says_which_are_lost) {
    auto mine = delivered("e1"), taken = delivered("e2", "a", "other"), done = delivered("e3");
    command("XCLAIM", keys.stream, "billing", "me", 0, mine, "IDLE", 60'000, "JUSTID");
    command("XCLAIM", keys.stream, "billing", "other", 0, taken, "IDLE", 60'000, "JUSTID");
    command("XACK", keys.stream, "billing", done);
    EXPECT_EQ(eval(detail::renew, {keys.stream}, {"billing", "me", mine, taken, done}), "[" + taken + ", " + done + "]");
    EXPECT_LT(idle(mine), 30'000);
    EXPECT_EQ(deliveries(mine), 1) << "a renewal is no delivery";
    EXPECT_GE(idle(taken), 60'000);
    EXPECT_EQ(pending("other"), strings{taken});
}

TEST_F(scripts, renew_and_release_do_not_forget_what_was_trimmed_away) {
    auto id = delivered("e1");
    emit("e2");
    command("XTRIM", keys.stream, "MAXLEN", 1);
    EXPECT_EQ(eval(detail::renew, {keys.stream}, {"billing", "me", id}), "[]");
    EXPECT_EQ(pending("me"), strings{id});
    EXPECT_EQ(eval(detail::release, {keys.stream, attempts_of(keys.stream)}, {"billing", "me", id, "1"}), "1");
    EXPECT_EQ(pending("me"), strings{id});
    EXPECT_EQ(take_over("other"), "[1, , []]");
}

TEST_F(scripts, renew_does_not_forget_what_was_deleted_from_the_middle) {
    auto first = delivered("e1"), second = delivered("e2"), third = delivered("e3");
    for (const auto &id : {first, second, third})
        command("XCLAIM", keys.stream, "billing", "me", 0, id, "IDLE", 60'000, "JUSTID");
    command("XDEL", keys.stream, second);
    EXPECT_EQ(eval(detail::renew, {keys.stream}, {"billing", "me", first, second, third}), "[]");
    EXPECT_EQ(pending("me"), (strings{first, second, third}));
    EXPECT_LT(idle(first), 30'000);
    EXPECT_GE(idle(second), 60'000);
    EXPECT_LT(idle(third), 30'000);
}

TEST_F(scripts, release_lets_others_take_over_at_once) {
    auto mine = delivered("e1"), kept = delivered("e2"), others = delivered("e3", "a", "other");
    EXPECT_EQ(eval(detail::release, {keys.stream, attempts_of(keys.stream)}, {"billing", "me", mine, "2", others, "5"}),
              "1");
    EXPECT_EQ(command("HGETALL", attempts_of(keys.stream)), "[" + mine + ", 2]");
    auto reply = take_over("third", "3600000");
    EXPECT_TRUE(reply.starts_with("[0, , [[" + mine + ", ")) << reply;
    EXPECT_TRUE(reply.ends_with(", 2, 2]]]")) << reply;
    EXPECT_EQ(pending("third"), strings{mine});
    EXPECT_EQ(pending("me"), strings{kept});
}

TEST_F(scripts, reap_never_removes_a_consumer_with_something_pending) {
    auto consumers = [this] { return server_->command("XINFO", "CONSUMERS", keys.stream, "billing")->elements; };
    auto id = delivered("e1", "a", "busy");
    for (auto name : {"me", "other", "third"})
        command("XGROUP", "CREATECONSUMER", keys.stream, "billing", name);
    ASSERT_EQ(consumers(), 4u);
    EXPECT_EQ(eval(detail::reap, {keys.stream}, {"billing", "me", "3600000"}), "0");
    EXPECT_EQ(eval(detail::reap, {keys.stream}, {"billing", "me", "0"}), "2");
    EXPECT_EQ(consumers(), 2u);
    EXPECT_EQ(pending("busy"), strings{id});
    EXPECT_EQ(eval(detail::reap, {keys.stream}, {"billing", "busy", "-1"}), "0");
    EXPECT_EQ(eval(detail::reap, {keys.stream}, {"billing", "me", "-1"}), "1");
    EXPECT_EQ(eval(detail::reap, {keys.stream}, {"billing", "me", "-1"}), "0");
    EXPECT_EQ(pending("busy"), strings{id});
}

// --- watermark ---

TEST_F(scripts, watermark_is_before_the_oldest_pending_entry_or_at_the_last_delivered) {
    auto mark = [this] { return eval(detail::watermark, {keys.stream}, {"billing"}); };
    EXPECT_EQ(mark(), "[0, 0-0]");
    auto first = delivered("e1"), second = delivered("e2", "a", "other");
    emit("e3");
    EXPECT_EQ(mark(), "[1, " + first + "]");
    finish({first, "e1"});
    EXPECT_EQ(mark(), "[1, " + second + "]");
    finish({second, "e2"});
    EXPECT_EQ(mark(), "[0, " + second + "]");
}

} // namespace outbox::test

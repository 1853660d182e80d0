// Scripts: aggregates that are parked behind a dead letter, and what redriving and discarding it does.
#include "scripts.hpp"

namespace outbox::test {

TEST_F(scripts, parking_sets_aside_what_comes_after_a_dead_letter_of_the_aggregate) {
    auto first = delivered("e1"), second = delivered("e2"), free = delivered("e3", "b"), third = delivered("e4");
    command("HSET", attempts_of(keys.stream), second, "1");
    auto letter = bury_and_park(first);
    EXPECT_EQ(command("HGET", keys.parked, a), "dead " + letter);
    EXPECT_EQ(begin({second, "e2", "1", a, free, "e3", "1", "6:walletb", third, "e4", "1", a}, parking()), "[3, 0, 3]");

    auto parked = keys.parked + ":" + a;
    EXPECT_EQ(events(parked), (strings{"e2", "e4"}));
    auto entry = show(*server_->command("XRANGE", parked, "-", "+")->element[0]->element[1]);
    EXPECT_TRUE(entry.starts_with("[outbox_position, " + second + ", event_id, e2, event_type, ")) << entry;
    EXPECT_EQ(pending(), strings{free});
    EXPECT_EQ(command("HEXISTS", attempts_of(keys.stream), second), "0");
    EXPECT_EQ(command("EXISTS", keys.event + "e2"), "0");

    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[4]") << "sent again after a lost reply";
    EXPECT_EQ(events(parked).size(), 2u);
}

TEST_F(scripts, parking_does_not_touch_what_somebody_else_has) {
    auto first = delivered("e1"), second = delivered("e2");
    bury_and_park(first);
    take_over("other");
    EXPECT_EQ(begin({second, "e2", "1", a}, parking("me")), "[4]");
    EXPECT_EQ(command("EXISTS", keys.parked + ":" + a), "0");
    EXPECT_EQ(pending("other"), strings{second});
    EXPECT_EQ(begin({second, "e2", "1", a}, parking("other")), "[3]");
}

TEST_F(scripts, parking_gives_up_the_lease_of_an_attempt_before) {
    auto first = delivered("e1", "b"), second = delivered("e2");
    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[0]");
    command("HSET", keys.parked, a, "dead " + bury(first));
    EXPECT_EQ(begin({second, "e2", "2", a}, parking()), "[3]");
    EXPECT_EQ(command("EXISTS", keys.event + "e2"), "0");
}

TEST_F(scripts, an_event_that_is_done_is_not_parked) {
    auto first = delivered("e1"), second = delivered("e2");
    bury_and_park(first);
    command("SET", keys.event + "e2", "done");
    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[1]");
}

TEST_F(scripts, what_cannot_be_copied_waits_instead_of_being_parked) {
    auto first = delivered("e1"), second = delivered("e2");
    bury_and_park(first);
    command("XDEL", keys.stream, second);
    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[2]");

    strings words{"XADD", keys.stream, "*"};
    words.resize(3 + 2 * 3001, "f");
    auto wide = show(*server_->command(words));
    read();
    EXPECT_EQ(begin({wide, "e3", "1", a}, parking()), "[2]");
    EXPECT_EQ(pending(), (strings{second, wide}));
}

TEST_F(scripts, parking_acknowledges_nothing_that_it_could_not_copy) {
    auto first = delivered("e1"), second = delivered("e2");
    bury_and_park(first);
    run_out_of_memory();
    EXPECT_TRUE(begin({second, "e2", "1", a}, parking()).starts_with("(error) OOM "));
    command("CONFIG", "SET", "maxmemory", "0");
    EXPECT_EQ(pending(), strings{second});

    command("SET", keys.parked + ":" + a, "not a stream");
    EXPECT_TRUE(begin({second, "e2", "1", a}, parking()).starts_with("(error) WRONGTYPE "));
    EXPECT_EQ(pending(), strings{second});
    command("DEL", keys.parked + ":" + a);

    command("SET", attempts_of(keys.stream), "not a hash");
    EXPECT_TRUE(begin({second, "e2", "1", a}, parking()).starts_with("(error) WRONGTYPE "));
    EXPECT_EQ(pending(), strings{second});
    EXPECT_EQ(command("EXISTS", keys.parked + ":" + a), "0");
}

TEST_F(scripts, parking_ends_when_the_dead_letter_was_deleted_by_hand) {
    auto first = delivered("e1"), second = delivered("e2"), third = delivered("e3");
    auto letter = bury_and_park(first);
    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[3]");
    command("XDEL", keys.dead, letter);
    EXPECT_EQ(begin({third, "e3", "1", a}, parking()), "[2]");
    EXPECT_EQ(events(keys.redrive), strings{"e2"});
    auto redriven = ids(keys.redrive).at(0);
    EXPECT_EQ(command("HGET", keys.parked, a), "draining " + redriven + " " + redriven);
    EXPECT_EQ(command("EXISTS", keys.parked + ":" + a), "0");

    read("me", keys.redrive);
    EXPECT_EQ(finish({redriven, "e2"}, false, "me", keys.redrive), "1");
    EXPECT_EQ(begin({third, "e3", "1", a}, parking()), "[0]");
    EXPECT_EQ(command("EXISTS", keys.parked), "0");
}

TEST_F(scripts, parking_ends_at_once_when_nothing_was_parked) {
    auto first = delivered("e1"), second = delivered("e2");
    auto letter = bury_and_park(first);
    command("DEL", keys.dead);
    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[0]");
    EXPECT_EQ(command("EXISTS", keys.parked), "0");
}

TEST_F(scripts, a_redrive_releases_what_is_parked_in_order_and_the_rest_waits_for_it) {
    auto e1 = delivered("e1"), e2 = delivered("e2"), e3 = delivered("e3");
    auto letter = bury_and_park(e1);
    EXPECT_EQ(begin({e2, "e2", "1", a, e3, "e3", "1", a}, parking()), "[3, 3]");
    auto e4 = delivered("e4");

    auto last = redrive(letter);
    EXPECT_EQ(events(keys.redrive), (strings{"e1", "e2", "e3"}));
    auto redriven = ids(keys.redrive);
    EXPECT_EQ(redriven.back(), last);
    EXPECT_EQ(command("HGET", keys.parked, a), "draining " + redriven.front() + " " + last);
    EXPECT_EQ(command("EXISTS", keys.parked + ":" + a), "0");
    EXPECT_EQ(command("XLEN", keys.dead), "0");
    EXPECT_EQ(field(keys.redrive, redriven[0], "outbox_position"), e1);
    EXPECT_EQ(field(keys.redrive, redriven[1], "outbox_position"), e2);

    EXPECT_EQ(begin({e4, "e4", "1", a}, parking()), "[2]");
    read("me", keys.redrive);
    EXPECT_EQ(begin({redriven[0], "e1", "1", a, redriven[1], "e2", "1", a, redriven[2], "e3", "1", a}, draining()),
              "[0, 0, 0]");
    EXPECT_EQ(finish({redriven[0], "e1", redriven[1], "e2"}, true, "me", keys.redrive), "2");
    EXPECT_EQ(begin({e4, "e4", "1", a}, parking()), "[2]");
    EXPECT_EQ(finish({redriven[2], "e3"}, true, "me", keys.redrive), "1");
    EXPECT_EQ(begin({e4, "e4", "1", a}, parking()), "[0]");
    EXPECT_EQ(command("EXISTS", keys.parked), "0");
    EXPECT_EQ(command("XLEN", keys.redrive), "0");
}

TEST_F(scripts, draining_lets_older_redriven_entries_run_and_younger_ones_wait) {
    auto older = emit("e0", "a", keys.redrive);
    auto letter = bury_and_park(delivered("e1"));
    redrive(letter);
    auto younger = emit("e5", "a", keys.redrive);
    read("me", keys.redrive);
    auto redriven = ids(keys.redrive);
    ASSERT_EQ(redriven.size(), 3u);
    EXPECT_EQ(begin({older, "e0", "1", a, redriven[1], "e1", "1", a, younger, "e5", "1", a}, draining()), "[0, 0, 2]");
    finish({older, "e0"}, true, "me", keys.redrive);
    EXPECT_EQ(begin({younger, "e5", "1", a}, draining()), "[2]");
    finish({redriven[1], "e1"}, true, "me", keys.redrive);
    EXPECT_EQ(begin({younger, "e5", "1", a}, draining()), "[0]");
}

TEST_F(scripts, ids_are_compared_as_numbers_of_64_bits) {
    // As texts, and as Lua's numbers, these would be in another order.
    strings ascending{"9-9", "9-10", "10-1", "9007199254740992-1", "9007199254740993-0", "18446744073709551614-1"};
    for (const auto &id : ascending)
        command("XADD", keys.redrive, id, "f", "v");
    read("me", keys.redrive);
    for (std::size_t last = 0; last < ascending.size(); ++last) {
        command("HSET", keys.parked, a, "draining 9-9 " + ascending[last]);
        for (std::size_t i = 0; i < ascending.size(); ++i)
            EXPECT_EQ(begin({ascending[i], "", "1", a}, draining()), i <= last ? "[0]" : "[2]")
                << ascending[i] << " and " << ascending[last];
    }
}

TEST_F(scripts, a_lease_does_not_hold_up_what_is_drained) {
    // An entry started before its aggregate was parked, and failed; the same event was redriven.
    auto e1 = delivered("e1"), retried = delivered("e2");
    EXPECT_EQ(begin({retried, "e2", "1", a}, parking()), "[0]");
    auto letter = bury_and_park(e1);
    emit("e2", "a", keys.parked + ":" + a);
    redrive(letter);
    EXPECT_EQ(begin({retried, "e2", "2", a}, parking()), "[2]");
    read("me", keys.redrive);
    EXPECT_EQ(begin({ids(keys.redrive).at(1), "e2", "1", a}, draining()), "[0]");
}

TEST_F(scripts, a_second_dead_letter_while_draining_parks_the_rest_again_in_order) {
    auto e1 = delivered("e1"), e2 = delivered("e2"), e3 = delivered("e3"), e4 = delivered("e4");
    auto letter = bury_and_park(e1);
    begin({e2, "e2", "1", a, e3, "e3", "1", a}, parking());
    redrive(letter);
    read("me", keys.redrive);
    read("other", keys.redrive);
    auto redriven = ids(keys.redrive);
    EXPECT_EQ(finish({redriven[0], "e1"}, true, "me", keys.redrive), "1");

    auto second = bury_and_park(redriven[1], keys.redrive);
    EXPECT_EQ(command("HGET", keys.parked, a), "dead " + second);
    EXPECT_EQ(field(keys.dead, second, "outbox_position"), e2);
    EXPECT_EQ(begin({redriven[2], "e3", "1", a}, draining()), "[4]") << "it is parked already";
    EXPECT_EQ(begin({e4, "e4", "1", a}, parking()), "[3]");
    EXPECT_EQ(events(keys.parked + ":" + a), (strings{"e3", "e4"}));
    EXPECT_EQ(command("XLEN", keys.redrive), "0");
    EXPECT_EQ(pending("", keys.redrive), strings{});

    redrive(second);
    EXPECT_EQ(events(keys.redrive), (strings{"e2", "e3", "e4"}));
    EXPECT_EQ(field(keys.redrive, ids(keys.redrive)[1], "outbox_position"), e3);
}

TEST_F(scripts, a_dead_letter_of_the_topic_while_draining_parks_the_redriven_ones) {
    auto e1 = delivered("e1"), e2 = delivered("e2"), e3 = delivered("e3");
    auto letter = bury_and_park(e1);
    begin({e2, "e2", "1", a}, parking());
    redrive(letter);
    auto second = bury_and_park(e3);
    EXPECT_EQ(command("HGET", keys.parked, a), "dead " + second);
    EXPECT_EQ(events(keys.parked + ":" + a), (strings{"e1", "e2"}));
    EXPECT_EQ(command("XLEN", keys.redrive), "0");
}

TEST_F(scripts, a_second_dead_letter_of_a_parked_aggregate_leaves_the_first_in_charge) {
    auto e1 = delivered("e1"), e2 = delivered("e2");
    auto first = bury_and_park(e1), second = bury_and_park(e2);
    EXPECT_EQ(command("HGET", keys.parked, a), "dead " + first);
    command("XDEL", keys.dead, first);
    auto third = bury_and_park(delivered("e3"));
    EXPECT_EQ(command("HGET", keys.parked, a), "dead " + third);
    EXPECT_EQ(command("XLEN", keys.dead), "2");
}

// --- redrive, discard ---

TEST_F(scripts, redrive_moves_a_dead_letter_to_the_redrive_stream_as_it_was) {
    auto id = command("XADD", keys.stream, "*", "event_id", "e1", "outbox_error", "a field of the event's own");
    read();
    auto letter = bury(id);
    auto redriven = redrive(letter);
    EXPECT_EQ(show(*server_->command("XRANGE", keys.redrive, redriven, redriven)->element[0]->element[1]),
              "[outbox_position, " + id + ", event_id, e1, outbox_error, a field of the event's own]");
    EXPECT_EQ(command("XLEN", keys.dead), "0");
    EXPECT_EQ(command("EXISTS", keys.parked), "0");
    EXPECT_EQ(redrive(letter), "nil") << "sent again after a lost reply";
    EXPECT_EQ(discard(letter), "nil");
    EXPECT_EQ(command("XLEN", keys.redrive), "1");
}

TEST_F(scripts, discard_releases_what_is_parked_behind_a_dead_letter) {
    auto e1 = delivered("e1"), e2 = delivered("e2"), e3 = delivered("e3");
    auto letter = bury_and_park(e1);
    begin({e2, "e2", "1", a}, parking());
    EXPECT_EQ(discard(letter), "1");
    EXPECT_EQ(events(keys.redrive), strings{"e2"});
    EXPECT_EQ(begin({e3, "e3", "1", a}, parking()), "[2]");
    EXPECT_EQ(command("XLEN", keys.dead), "0");
}

TEST_F(scripts, discard_of_a_dead_letter_with_nothing_behind_it_frees_its_aggregate) {
    auto e1 = delivered("e1"), e2 = delivered("e2");
    auto letter = bury_and_park(e1);
    EXPECT_EQ(discard(letter), "1");
    EXPECT_EQ(command("EXISTS", keys.parked), "0");
    EXPECT_EQ(begin({e2, "e2", "1", a}, parking()), "[0]");
}

TEST_F(scripts, a_dead_letter_that_parks_nothing_releases_nothing) {
    auto e1 = delivered("e1"), e2 = delivered("e2"), e3 = delivered("e3");
    auto skipped = bury(e1);
    auto letter = bury_and_park(e2);
    begin({e3, "e3", "1", a}, parking());
    redrive(skipped);
    EXPECT_EQ(events(keys.redrive), strings{"e1"});
    EXPECT_EQ(command("HGET", keys.parked, a), "dead " + letter);
    EXPECT_EQ(events(keys.parked + ":" + a), strings{"e3"});
}

TEST_F(scripts, hundreds_of_parked_events_are_released_in_order) {
    auto letter = bury_and_park(delivered("e0"));
    strings expected{"e0"}, entries;
    for (int i = 1; i <= 450; ++i) {
        expected.push_back("e" + std::to_string(i));
        entries.insert(entries.end(), {emit(expected.back()), expected.back(), "1", a});
    }
    read();
    begin(entries, parking());
    EXPECT_EQ(command("XLEN", keys.parked + ":" + a), "450");
    redrive(letter);
    EXPECT_EQ(events(keys.redrive), expected);
    read("me", keys.redrive);
    auto second = bury_and_park(ids(keys.redrive).at(0), keys.redrive);
    redrive(second);
    EXPECT_EQ(events(keys.redrive), expected);
}

TEST_F(scripts, redrive_and_discard_have_done_nothing_when_they_fail) {
    auto e1 = delivered("e1"), e2 = delivered("e2");
    auto letter = bury_and_park(e1);
    begin({e2, "e2", "1", a}, parking());

    auto expect_unchanged = [&](const std::string &when) {
        EXPECT_EQ(ids(keys.dead), strings{letter}) << when;
        EXPECT_EQ(command("HGET", keys.parked, a), "dead " + letter) << when;
        EXPECT_EQ(events(keys.parked + ":" + a), strings{"e2"}) << when;
    };
    for (const auto *script : {&detail::redrive, &detail::discard}) {
        run_out_of_memory();
        EXPECT_TRUE(eval(*script, {keys.dead, keys.redrive, keys.parked}, {letter}).starts_with("(error) OOM "));
        command("CONFIG", "SET", "maxmemory", "0");
        expect_unchanged("out of memory");

        command("DEL", keys.redrive);
        command("SET", keys.redrive, "not a stream");
        EXPECT_TRUE(eval(*script, {keys.dead, keys.redrive, keys.parked}, {letter}).starts_with("(error) WRONGTYPE "));
        expect_unchanged("redrive stream");
        command("DEL", keys.redrive);

        command("RENAME", keys.parked + ":" + a, "{wallet}elsewhere");
        command("SET", keys.parked + ":" + a, "not a stream");
        EXPECT_TRUE(eval(*script, {keys.dead, keys.redrive, keys.parked}, {letter}).starts_with("(error) WRONGTYPE "));
        command("RENAME", "{wallet}elsewhere", keys.parked + ":" + a);
        expect_unchanged("parked stream");
        EXPECT_EQ(command("EXISTS", keys.redrive), "0");
    }
}

TEST_F(scripts, aggregates_may_have_any_name) {
    for (const std::string &id :
         {std::string("a:b"), std::string("with spaces"), std::string("{other}"), std::string("\0\xff\r\n", 4),
          std::string(1000, 'x'), std::string("dead 1-1"), std::string("%s")}) {
        SetUp();
        auto aggregate = "6:wallet" + id;
        auto e1 = delivered("e1", id), e2 = delivered("e2", id), e3 = delivered("e3", id);
        auto letter = bury(e1, {.aggregate = aggregate, .park = true});
        EXPECT_EQ(begin({e2, "e2", "1", aggregate}, parking()), "[3]");
        EXPECT_EQ(events(keys.parked + ":" + aggregate), strings{"e2"});
        redrive(letter);
        EXPECT_EQ(events(keys.redrive), (strings{"e1", "e2"}));
        EXPECT_EQ(begin({e3, "e3", "1", aggregate}, parking()), "[2]");
        read("me", keys.redrive);
        auto redriven = ids(keys.redrive);
        EXPECT_EQ(finish({redriven[0], "e1", redriven[1], "e2"}, true, "me", keys.redrive), "2");
        EXPECT_EQ(begin({e3, "e3", "1", aggregate}, parking()), "[0]");
        EXPECT_EQ(command("EXISTS", keys.parked, keys.parked + ":" + aggregate), "0");
    }
}

} // namespace outbox::test

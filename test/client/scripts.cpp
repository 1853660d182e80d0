// What happens atomically in Redis, each script against a real server: events that begin, are finished and are buried.
#include <algorithm>
#include <set>
#include <thread>

#include "scripts.hpp"

namespace outbox::test {

const std::map<std::string, const script *> all_scripts = {
    {"begin", &detail::begin},         {"finish", &detail::finish},       {"bury", &detail::bury},
    {"take_over", &detail::take_over}, {"renew", &detail::renew},         {"release", &detail::release},
    {"reap", &detail::reap},           {"watermark", &detail::watermark}, {"take_tokens", &detail::take_tokens},
    {"redrive", &detail::redrive},     {"discard", &detail::discard},
};

TEST_F(scripts, their_sha_is_that_of_redis) {
    std::set<std::string> distinct;
    for (const auto &[name, script] : all_scripts) {
        EXPECT_EQ(command("SCRIPT", "LOAD", script->text), script->sha) << name;
        distinct.insert(script->sha);
    }
    EXPECT_EQ(distinct.size(), all_scripts.size());
}

TEST_F(scripts, begin_with_the_code_of_redis_when_they_fail) {
    auto id = delivered("e1");
    command("SET", attempts_of(keys.stream), "not a hash");
    EXPECT_TRUE(begin({id, "e1", "1", ""}).starts_with("(error) WRONGTYPE ")) << begin({id, "e1", "1", ""});
    command("DEL", keys.stream);
    EXPECT_TRUE(eval(detail::watermark, {keys.stream}, {"billing"}).starts_with("(error) NOGROUP "));
    EXPECT_TRUE(take_over("me").starts_with("(error) NOGROUP "));
    EXPECT_TRUE(eval(detail::reap, {keys.stream}, {"billing", "me", "0"}).starts_with("(error) ERR no such key"));
}

// What the documentation of the scripts says that an ACL has to allow is enough, and touches only the topic's keys.
TEST_F(scripts, need_no_more_than_the_documented_commands) {
    command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~outbox:*", "+auth", "+del", "+get", "+hdel", "+hget",
            "+hlen", "+hset", "+set", "+time", "+xack", "+xadd", "+xclaim", "+xdel", "+xgroup", "+xinfo", "+xlen",
            "+xpending", "+xrange", "+xreadgroup", "+eval", "+evalsha");
    auto first = delivered("e1");
    auto second = delivered("e2");
    auto trimmed = delivered("e4", "c");
    auto third = delivered("e3", "b");
    read("other");
    ASSERT_EQ(command("AUTH", "worker", "secret"), "OK");

    EXPECT_EQ(begin({first, "e1", "1", a}, parking()), "[0]");
    auto letter = bury_and_park(first);
    EXPECT_TRUE(letter.find('-') != std::string::npos && letter[0] != '(') << letter;
    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[3]");
    command("XDEL", keys.stream, trimmed);
    EXPECT_EQ(eval(detail::renew, {keys.stream}, {"billing", "me", trimmed, third}), "[]");
    EXPECT_EQ(finish({trimmed, "e4"}), "1");
    EXPECT_EQ(eval(detail::release, {keys.stream, attempts_of(keys.stream)}, {"billing", "me", third, "1"}), "1");
    EXPECT_NE(take_over("other").find("e3"), std::string::npos);
    EXPECT_EQ(finish({third, "e3"}, true, "other"), "1");
    EXPECT_EQ(redrive(letter).front(), '1');
    EXPECT_EQ(eval(detail::reap, {keys.stream}, {"billing", "me", "-1"}), "1");
    EXPECT_EQ(eval(detail::watermark, {keys.stream}, {"billing"}), "[0, " + third + "]");
    EXPECT_EQ(eval(detail::take_tokens, {"outbox:{wallet}:rate:billing"}, {"1", "1", "1"}), "[1, 1000]");
    auto refused = eval(detail::take_tokens, {"another"}, {"1", "1", "1"});
    EXPECT_TRUE(refused.starts_with("(error) NOPERM ")) << refused;

    server_->restart();
}

// --- begin ---

TEST_F(scripts, begin_leases_the_event_and_writes_the_attempt) {
    auto id = delivered("e1");
    EXPECT_EQ(begin({id, "e1", "2", a}), "[0]");
    EXPECT_EQ(command("GET", keys.event + "e1"), "0/" + id);
    EXPECT_EQ(command("HGET", attempts_of(keys.stream), id), "2");
    EXPECT_GT(std::stoll(command("PTTL", keys.event + "e1")), 86'000'000);
}

TEST_F(scripts, begin_writes_no_attempt_and_no_lease_where_none_is_wanted) {
    auto id = delivered("e1");
    EXPECT_EQ(begin({id, "e1", "0", a}, {.prefix = ""}), "[0]");
    EXPECT_EQ(begin({id, "", "0", a}), "[0]");
    EXPECT_EQ(command("KEYS", "*event*"), "[]");
    EXPECT_EQ(command("EXISTS", attempts_of(keys.stream)), "0");
}

TEST_F(scripts, begin_may_be_sent_again) {
    auto id = delivered("e1");
    EXPECT_EQ(begin({id, "e1", "1", a}), "[0]");
    EXPECT_EQ(begin({id, "e1", "1", a}), "[0]");
    EXPECT_EQ(command("HGETALL", attempts_of(keys.stream)), "[" + id + ", 1]");
}

TEST_F(scripts, begin_says_done_to_a_second_entry_of_an_event_that_is_done) {
    auto first = delivered("e1");
    begin({first, "e1", "1", a});
    finish({first, "e1"});
    auto second = delivered("e1");
    EXPECT_EQ(begin({second, "e1", "1", a}), "[1]");
    EXPECT_EQ(command("GET", keys.event + "e1"), "done");
    EXPECT_EQ(command("EXISTS", attempts_of(keys.stream)), "0");
}

TEST_F(scripts, begin_lets_an_entry_wait_while_another_with_its_event_is_pending) {
    auto first = delivered("e1", "a", "other");
    auto second = delivered("e1");
    EXPECT_EQ(begin({first, "e1", "1", a}, {.consumer = "other"}), "[0]");
    EXPECT_EQ(begin({second, "e1", "1", a}), "[2]");
    EXPECT_EQ(command("GET", keys.event + "e1"), "0/" + first);

    command("XACK", keys.stream, "billing", first);
    EXPECT_EQ(begin({second, "e1", "1", a}), "[0]") << "a lease is good only while its entry is pending";
    EXPECT_EQ(command("GET", keys.event + "e1"), "0/" + second);
}

TEST_F(scripts, begin_lets_only_one_of_two_entries_in_the_same_call_start) {
    auto first = emit("e1"), second = emit("e1");
    read();
    EXPECT_EQ(begin({first, "e1", "1", a, second, "e1", "1", a}), "[0, 2]");
}

TEST_F(scripts, begin_knows_the_leases_of_entries_in_the_redrive_stream) {
    auto redriven = emit("e1", "a", keys.redrive);
    read("other", keys.redrive);
    EXPECT_EQ(begin({redriven, "e1", "1", a}, {.consumer = "other", .stream = keys.redrive}), "[0]");
    EXPECT_EQ(command("GET", keys.event + "e1"), "1/" + redriven);
    auto second = delivered("e1");
    EXPECT_EQ(begin({second, "e1", "1", a}), "[2]");
    EXPECT_EQ(finish({redriven, "e1"}, false, "other", keys.redrive), "1");
    EXPECT_EQ(begin({second, "e1", "1", a}), "[1]");

    auto third = delivered("e2");
    command("SET", keys.event + "e2", "1/" + redriven);
    command("DEL", keys.redrive);
    EXPECT_EQ(begin({third, "e2", "1", a}), "[0]") << "nothing is pending in a stream that is gone";
}

TEST_F(scripts, begin_lets_an_entry_run_again_under_its_own_lease_after_it_was_taken_over) {
    auto id = delivered("e1", "a", "other");
    EXPECT_EQ(begin({id, "e1", "1", a}, {.consumer = "other"}), "[0]");
    take_over("me");
    EXPECT_EQ(begin({id, "e1", "2", a}, {.check = true}), "[0]");
    EXPECT_EQ(begin({id, "e1", "2", a}, {.consumer = "other", .check = true}), "[4]");
    EXPECT_EQ(command("HGET", attempts_of(keys.stream), id), "2");
}

TEST_F(scripts, begin_refuses_what_is_acknowledged_already) {
    auto id = delivered("e1");
    command("XACK", keys.stream, "billing", id);
    EXPECT_EQ(begin({id, "e1", "1", a}, {.check = true}), "[4]");
    EXPECT_EQ(command("EXISTS", keys.event + "e1"), "0");
}

TEST_F(scripts, begin_asks_about_each_entry_by_itself) {
    auto done = delivered("e1"), waits = delivered("e2"), lost = delivered("e3"), runs = delivered("e4");
    auto twin = delivered("e2", "a", "other");
    begin({twin, "e2", "1", a}, {.consumer = "other"});
    command("SET", keys.event + "e1", "done");
    command("XACK", keys.stream, "billing", lost);
    EXPECT_EQ(begin({done, "e1", "1", a, waits, "e2", "1", a, lost, "e3", "1", a, runs, "e4", "1", ""}, {.check = true}),
              "[1, 2, 4, 0]");
}

TEST_F(scripts, begin_without_memory_has_done_nothing) {
    auto id = delivered("e1");
    run_out_of_memory();
    EXPECT_TRUE(begin({id, "e1", "1", a}).starts_with("(error) OOM "));
    EXPECT_EQ(command("EXISTS", keys.event + "e1"), "0");
    EXPECT_EQ(pending(), strings{id});
}

// --- finish ---

TEST_F(scripts, finish_marks_done_and_acknowledges_in_one_step) {
    auto first = delivered("e1"), second = delivered("e2"), without = delivered("");
    begin({first, "e1", "2", a, second, "e2", "1", a});
    EXPECT_EQ(finish({first, "e1", second, "e2", without, ""}), "3");
    EXPECT_EQ(command("GET", keys.event + "e1"), "done");
    auto ttl = std::stoll(command("PTTL", keys.event + "e2"));
    EXPECT_TRUE(ttl > 50'000 && ttl <= 60'000) << ttl;
    EXPECT_EQ(pending(), strings{});
    EXPECT_EQ(command("EXISTS", attempts_of(keys.stream)), "0");
    EXPECT_EQ(command("EXISTS", keys.event), "0");
    EXPECT_EQ(command("XLEN", keys.stream), "3") << "the topic's stream is only read";
    EXPECT_EQ(finish({first, "e1", second, "e2"}), "0") << "sent again after a lost reply";
}

TEST_F(scripts, finish_leaves_alone_what_it_should_own_and_does_not) {
    auto mine = delivered("e1"), taken = delivered("e2", "a", "other");
    begin({taken, "e2", "1", a}, {.consumer = "other"});
    EXPECT_EQ(finish({mine, "e1", taken, "e2"}, true), "1");
    EXPECT_EQ(command("GET", keys.event + "e2"), "0/" + taken);
    EXPECT_EQ(pending(), strings{taken});
    EXPECT_EQ(finish({taken, "e2"}, false), "1") << "not asked about ownership";
}

TEST_F(scripts, finish_deletes_from_the_redrive_stream) {
    auto id = emit("e1", "a", keys.redrive);
    read("me", keys.redrive);
    EXPECT_EQ(finish({id, "e1"}, false, "me", keys.redrive), "1");
    EXPECT_EQ(command("XLEN", keys.redrive), "0");
}

TEST_F(scripts, finish_remembers_done_events_although_redis_lost_the_stream) {
    auto id = delivered("e1");
    command("FLUSHALL");
    EXPECT_EQ(finish({id, "e1"}), "0");
    EXPECT_EQ(command("GET", keys.event + "e1"), "done");
}

TEST_F(scripts, finish_takes_thousands_of_entries) {
    strings entries;
    for (int i = 0; i < 2500; ++i) {
        auto event_id = "e" + std::to_string(i);
        entries.push_back(emit(event_id));
        entries.push_back(event_id);
    }
    EXPECT_EQ(read("me", "", 10'000), 2500u);
    EXPECT_EQ(finish(entries), "2500");
    EXPECT_EQ(pending(), strings{});
}

TEST_F(scripts, finish_acknowledges_nothing_when_it_fails) {
    auto first = delivered("e1"), second = delivered("e2");
    run_out_of_memory();
    EXPECT_TRUE(finish({first, "e1", second, "e2"}).starts_with("(error) OOM "));
    command("CONFIG", "SET", "maxmemory", "0");
    command("RPUSH", attempts_of(keys.stream), "not a hash");
    EXPECT_TRUE(finish({first, "e1", second, "e2"}).starts_with("(error) WRONGTYPE "));
    EXPECT_EQ(pending(), (strings{first, second}));
}

// --- bury ---

TEST_F(scripts, bury_keeps_the_entry_and_why_it_died) {
    auto id = command("XADD", keys.stream, "*", "event_id", "e1", std::string("bin\0\xff\r\n", 7), std::string("\0\x80", 2));
    read();
    command("HSET", attempts_of(keys.stream), id, "3");
    command("SET", keys.event + "e1", "0/" + id);
    auto letter = bury(id, {.key = keys.event + "e1"});

    auto entry = server_->command("XRANGE", keys.dead, letter, letter);
    ASSERT_EQ(entry->elements, 1u);
    const auto &fields = *entry->element[0]->element[1];
    ASSERT_EQ(fields.elements, 18u);
    for (std::size_t i = 0; i < std::size(detail::dead_letter_fields); ++i)
        EXPECT_EQ(show(*fields.element[2 * i]), detail::dead_letter_fields[i]);
    EXPECT_EQ(field(keys.dead, letter, "outbox_position"), id);
    EXPECT_EQ(field(keys.dead, letter, "outbox_stream"), keys.stream);
    EXPECT_EQ(field(keys.dead, letter, "outbox_error"), "no such wallet");
    EXPECT_EQ(field(keys.dead, letter, "outbox_attempts"), "3");
    EXPECT_EQ(field(keys.dead, letter, "outbox_consumer"), "me");
    EXPECT_EQ(field(keys.dead, letter, "outbox_aggregate"), a);
    EXPECT_EQ(field(keys.dead, letter, "outbox_died_at").substr(0, 10), letter.substr(0, 10));
    EXPECT_EQ(field(keys.dead, letter, "outbox_died_at").size(), 13u);
    EXPECT_EQ(show(*fields.element[14]), "event_id");
    EXPECT_EQ(show(*fields.element[16]), std::string("bin\0\xff\r\n", 7));
    EXPECT_EQ(show(*fields.element[17]), std::string("\0\x80", 2));

    EXPECT_EQ(pending(), strings{});
    EXPECT_EQ(command("EXISTS", attempts_of(keys.stream), keys.event + "e1", keys.parked), "0");
    EXPECT_EQ(bury(id), "nil") << "sent again after a lost reply";
    EXPECT_EQ(command("XLEN", keys.dead), "1");
}

TEST_F(scripts, bury_leaves_alone_what_somebody_else_has) {
    auto id = delivered("e1", "a", "other");
    EXPECT_EQ(bury_and_park(id), "nil");
    EXPECT_EQ(pending("other"), strings{id});
    EXPECT_EQ(command("EXISTS", keys.dead, keys.parked), "0");
}

TEST_F(scripts, bury_leaves_the_lease_of_another_entry) {
    auto id = delivered("e1");
    command("SET", keys.event + "e1", "0/1-1");
    bury(id, {.key = keys.event + "e1"});
    EXPECT_EQ(command("GET", keys.event + "e1"), "0/1-1");
}

TEST_F(scripts, bury_keeps_what_it_knows_of_an_entry_that_was_trimmed_away) {
    auto id = delivered("e1");
    command("XTRIM", keys.stream, "MAXLEN", 0);
    auto letter = bury_and_park(id);
    EXPECT_EQ(field(keys.dead, letter, "outbox_position"), id);
    EXPECT_EQ(field(keys.dead, letter, "event_id"), "no field");
    EXPECT_EQ(pending(), strings{});
}

TEST_F(scripts, bury_copies_3000_pairs_and_says_so_when_there_are_more) {
    for (int pairs : {3000, 3001, 20'000}) {
        strings words{"XADD", keys.stream, "*"};
        words.resize(3 + 2 * static_cast<std::size_t>(pairs), "f");
        auto id = show(*server_->command(words));
        read();
        auto letter = bury(id);
        ASSERT_NE(letter[0], '(') << letter;
        EXPECT_EQ(field(keys.dead, letter, "f"), pairs == 3000 ? "f" : "no field");
        EXPECT_EQ(field(keys.dead, letter, "outbox_error"),
                  pairs == 3000 ? "no such wallet"
                                : "no such wallet (the entry has too many fields to be copied, and is still in the stream)");
        EXPECT_EQ(pending(), strings{});
        EXPECT_EQ(redrive(letter).starts_with("(error) GONE "), pairs > 3000);
    }
    // What was copied once can be copied again.
    auto redriven = ids(keys.redrive).at(0);
    read("me", keys.redrive);
    auto letter = bury(redriven, {.stream = keys.redrive});
    EXPECT_EQ(field(keys.dead, letter, "f"), "f");
}

TEST_F(scripts, bury_of_a_redriven_entry_keeps_its_first_position) {
    auto id = delivered("e1");
    redrive(bury(id));
    read("me", keys.redrive);
    auto redriven = ids(keys.redrive).at(0);
    auto letter = bury(redriven, {.stream = keys.redrive});
    EXPECT_EQ(field(keys.dead, letter, "outbox_position"), id);
    EXPECT_EQ(field(keys.dead, letter, "outbox_stream"), keys.redrive);
    auto entry = show(*server_->command("XRANGE", keys.dead, letter, letter)->element[0]->element[1]);
    EXPECT_EQ(entry.find("outbox_position"), entry.rfind("outbox_position")) << "once is enough";
    EXPECT_EQ(command("XLEN", keys.redrive), "0");
    EXPECT_EQ(pending("", keys.redrive), strings{});
}

TEST_F(scripts, bury_without_an_aggregate_parks_nothing) {
    bury(delivered("e1", ""), {.aggregate = "", .park = true});
    EXPECT_EQ(command("EXISTS", keys.parked), "0");
}

TEST_F(scripts, bury_has_done_nothing_when_it_fails) {
    auto id = delivered("e1");
    run_out_of_memory();
    EXPECT_TRUE(bury_and_park(id).starts_with("(error) OOM ")) << bury_and_park(id);
    command("CONFIG", "SET", "maxmemory", "0");

    for (auto key : {keys.dead, keys.parked, keys.parked + ":" + a, attempts_of(keys.stream), keys.event + "e1"}) {
        command("DEL", key);
        command("SADD", key, "of a type that nobody wants");
        auto result = bury(id, {.park = true, .key = keys.event + "e1"});
        EXPECT_TRUE(result.starts_with("(error) WRONGTYPE ")) << key << ": " << result;
        command("DEL", key);
        EXPECT_EQ(command("EXISTS", keys.dead, keys.parked), "0") << key;
        EXPECT_EQ(pending("me"), strings{id}) << key;
    }
    EXPECT_NE(bury_and_park(id)[0], '(');
}

// --- at the same time ---

// Two consumers race for the same entries by every means; each event starts under one lease and ends in one place.
TEST_F(scripts, two_connections_agree_about_every_entry) {
    constexpr int count = 300;
    for (int i = 0; i < count; ++i)
        emit("e" + std::to_string(i), std::to_string(i % 7));
    read("nobody");
    auto all = pending();
    ASSERT_EQ(all.size(), static_cast<std::size_t>(count));

    auto consume = [&](const std::string &name, int &finished, int &buried) {
        test::redis_server *server = server_.get();
        std::unique_ptr<redisContext, test::free_redis> connection(redisConnectUnix(server->socket_path().c_str()));
        auto call = [&](const script &script, const strings &script_keys, const strings &arguments) {
            strings words{"EVAL", script.text, std::to_string(script_keys.size())};
            words.insert(words.end(), script_keys.begin(), script_keys.end());
            words.insert(words.end(), arguments.begin(), arguments.end());
            std::vector<const char *> texts;
            std::vector<std::size_t> sizes;
            for (const auto &word : words) {
                texts.push_back(word.data());
                sizes.push_back(word.size());
            }
            return redis_reply(static_cast<redisReply *>(
                redisCommandArgv(connection.get(), static_cast<int>(words.size()), texts.data(), sizes.data())));
        };
        for (int round = 0; round < 3; ++round)
            for (int i = 0; i < count; ++i) {
                const auto &id = all[static_cast<std::size_t>(i)];
                auto event_id = "e" + std::to_string(i);
                call(detail::take_over, {keys.stream, attempts_of(keys.stream), keys.dead},
                     {"billing", name, "0", "1", i == 0 ? "-" : all[static_cast<std::size_t>(i) - 1], "0"});
                auto verdict = call(detail::begin, begin_keys(keys.stream),
                                    {"billing", name, keys.event, "60000", "0", "1", id, event_id, "1", ""});
                if (show(*verdict) != "[0]")
                    continue;
                if (i % 3 == 0)
                    buried += call(detail::bury,
                                   {keys.stream, attempts_of(keys.stream), keys.dead, keys.parked, keys.redrive},
                                   {"billing", name, id, "", "1", "", "0", keys.event + event_id})
                                  ->type != REDIS_REPLY_NIL;
                else
                    finished += show(*call(detail::finish, {keys.stream, attempts_of(keys.stream)},
                                           {"billing", name, keys.event, "60000", "0", "1", id, event_id})) == "1";
            }
    };
    int finished[2] = {}, buried[2] = {};
    std::thread one([&] { consume("one", finished[0], buried[0]); });
    std::thread two([&] { consume("two", finished[1], buried[1]); });
    one.join();
    two.join();
    for (const auto &name : {"one", "two"}) // what the other snatched in the last round
        for (const auto &id : pending(name))
            finished[0] += finish({id, "e" + std::to_string(std::find(all.begin(), all.end(), id) - all.begin())}, true,
                                  name) == "1";
    EXPECT_EQ(finished[0] + finished[1] + buried[0] + buried[1], count);
    EXPECT_EQ(events(keys.dead).size(), static_cast<std::size_t>(buried[0] + buried[1]));
    EXPECT_EQ(pending(), strings{});
    EXPECT_EQ(command("EXISTS", attempts_of(keys.stream)), "0");
}

} // namespace outbox::test

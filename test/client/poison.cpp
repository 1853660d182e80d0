// What can never be handled: handlers that take their process with them each time, and entries that are no events. Each ends
// in the dead letters, once and with the reason; nothing beside it does.
#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "workers.hpp"

namespace outbox::test {

namespace {

using fields = std::vector<std::pair<std::string, std::string>>;

std::string append_fields(redis_server &redis, const fields &all) {
    std::vector<std::string> words{"XADD", stream, "*"};
    for (const auto &[name, value] : all)
        words.insert(words.end(), {name, value});
    redis_reply reply = redis.command(words);
    return reply->type == REDIS_REPLY_STRING ? std::string(reply->str) : throw std::runtime_error("XADD was refused");
}

fields good_fields(std::uint64_t n, const std::string &aggregate = {}) {
    return {{"event_id", event_id(n)},   {"event_type", "wallet.created"}, {"aggregate_type", "wallet"},
            {"aggregate_id", aggregate}, {"version", "1"},                 {"occurred_at", "2026-11-21T08:55:15.964060Z"},
            {"headers", ""},             {"payload", "{\"n\": " + std::to_string(n) + "}"}};
}

fields with(fields all, const std::string &name, const std::string &value) {
    for (auto &[key, content] : all)
        if (key == name)
            content = value;
    return all;
}

fields without(fields all, const std::string &name) {
    std::erase_if(all, [&](auto &one) { return one.first == name; });
    return all;
}

} // namespace

struct crash {
    const char *kind;
    bool from_outside; // the handler does not end by itself
    guard how;
};

class Crashing : public ::testing::TestWithParam<crash> {};

// Each group is a case of its own, and all run at the same time: a process for each, started again when it has died.
TEST_P(Crashing, handler_gets_its_attempts_and_then_one_dead_letter_and_takes_nobody_with_it) {
    redis_server redis;
    const std::uint64_t poison = 6, all = 40;
    const std::string action = std::string("\"do\": \"") + GetParam().kind + "\"";
    std::string position;
    for (std::uint64_t n = 1; n <= all; ++n) {
        // 7 and 8 are behind it in its aggregate
        std::string aggregate = n >= poison && n <= 8 ? "poisoned" : n % 3 == 0 ? "" : std::to_string(n % 5);
        append_event(redis, n, aggregate, n == poison ? action : "");
        if (n == poison)
            position = redis.command("XINFO", "STREAM", stream)->element[7]->str;
    }

    struct group {
        std::string name;
        std::size_t attempts;
        std::unique_ptr<journal> notes;
        std::unique_ptr<service> process;
    };
    std::vector<group> groups;
    for (auto [attempts, concurrency] : {std::pair{1u, 1u}, {2u, 1u}, {3u, 1u}, {2u, 4u}, {3u, 4u}}) {
        group one{"group-" + std::to_string(attempts) + "-" + std::to_string(concurrency), attempts, nullptr, nullptr};
        one.notes = std::make_unique<journal>(redis, one.name);
        auto words = words_for(GetParam().how, {});
        words.insert(words.end(), {"group=" + one.name, "max_attempts=" + std::to_string(attempts),
                                   "concurrency=" + std::to_string(concurrency), "claim_idle=700"});
        one.process = std::make_unique<service>(redis, *one.notes, words);
        groups.push_back(std::move(one));
    }

    for (group &one : groups) {
        SCOPED_TRACE(one.name);
        ASSERT_TRUE(eventually(
            [&] {
                for (group &other : groups) {
                    worker &process = (*other.process)[0];
                    for (const auto &line : other.notes->lines("start", poison))
                        if (GetParam().from_outside && line.pid == process.pid())
                            process.kill9();
                    other.process->keep();
                }
                std::set<std::uint64_t> ended;
                for (const auto &line : one.notes->lines())
                    if (line.what == "end")
                        ended.insert(line.n);
                return ended.size() == all - 1 && count_dead_letters(redis, one.name) > 0 &&
                       pending(redis, stream, one.name) == 0;
            },
            60s))
            << one.notes->log();
        EXPECT_EQ(one.notes->count("start", poison), one.attempts) << one.notes->log();

        auto letters = dead_letters(redis.url(), "wallet", one.name).list();
        ASSERT_EQ(letters.size(), 1u) << one.notes->log();
        EXPECT_EQ(letters[0].position, position);
        EXPECT_EQ(letters[0].stream, stream);
        EXPECT_EQ(letters[0].field("event_id"), event_id(poison));
        EXPECT_EQ(letters[0].attempts, static_cast<int>(one.attempts));
        EXPECT_NE(letters[0].error.find("did not come back from " + std::to_string(one.attempts)), std::string::npos)
            << letters[0].error;
        EXPECT_EQ(redis.command("EXISTS", stream + ":attempts:" + one.name)->integer, 0) << "attempts are forgotten";
        std::vector<int> numbers;
        for (const auto &line : one.notes->lines("start", poison))
            numbers.push_back(line.attempt);
        std::vector<int> expected(one.attempts);
        std::iota(expected.begin(), expected.end(), 1);
        EXPECT_EQ(numbers, expected) << "the handler sees which attempt it is";
    }
}

INSTANTIATE_TEST_SUITE_P(Handlers, Crashing,
                         ::testing::Values(crash{"exit", false, guard::none}, crash{"segv", false, guard::redis},
                                           crash{"loop", true, guard::redis}),
                         [](const auto &info) { return std::string(info.param.kind); });

// With a single attempt a handler that has started is not started again, whoever is to blame for its end.
TEST(Crash, with_a_single_attempt_takes_those_that_run_beside_it_and_none_that_waits) {
    redis_server redis;
    journal journal(redis);
    append_event(redis, 1, "", R"("do": "exit", "beside": 4)");
    for (std::uint64_t n = 2; n <= 30; ++n)
        append_event(redis, n, "", n <= 4 ? R"("ms": 60000)" : "");
    service service(redis, journal, {"max_attempts=1", "concurrency=4"});
    ASSERT_TRUE(eventually([&] {
        service.keep();
        return count_dead_letters(redis) >= 4 && is_through(redis, stream, "billing");
    })) << journal.log();
    EXPECT_EQ(count_dead_letters(redis), 4u) << journal.log();
    for (std::uint64_t n = 1; n <= 30; ++n) {
        EXPECT_EQ(journal.count("start", n), 1u) << n;
        EXPECT_EQ(journal.count("end", n), n <= 4 ? 0u : 1u) << n;
    }
}

// A service whose processes have names that outlive them finds its own entries again when it starts.
TEST(Crash, of_a_process_that_comes_back_under_its_name_counts_as_any_other) {
    redis_server redis;
    std::vector<std::pair<std::unique_ptr<journal>, std::unique_ptr<service>>> groups;
    for (const char *attempts : {"1", "2", "3"}) {
        auto notes = std::make_unique<journal>(redis, attempts);
        auto process = std::make_unique<service>(
            redis, *notes,
            std::vector<std::string>{"name=pod-0", "concurrency=1", std::string("group=") + attempts,
                                     std::string("max_attempts=") + attempts});
        groups.emplace_back(std::move(notes), std::move(process));
    }
    append_event(redis, 1, "a", "\"do\": \"exit\"");
    append_event(redis, 2, "a");
    append_event(redis, 3, "b");
    for (std::size_t attempts = 1; attempts <= 3; ++attempts) {
        auto &[notes, process] = groups[attempts - 1];
        std::string group = std::to_string(attempts);
        ASSERT_TRUE(eventually([&] {
            for (auto &one : groups)
                one.second->keep();
            return notes->count("end", 2) > 0 && notes->count("end", 3) > 0 && pending(redis, stream, group) == 0;
        })) << notes->log();
        EXPECT_EQ(notes->count("start", 1), attempts) << notes->log();
        EXPECT_EQ(count_dead_letters(redis, group), 1u) << notes->log();
        EXPECT_EQ(notes->count("start", 2), 1u);
    }
}

// Several such events, and several processes: more than one of them may be in hands when a process dies.
TEST(Crash, of_many_events_leaves_every_other_event_handled) {
    redis_server redis;
    journal journal(redis);
    const std::uint64_t all = 60;
    auto is_poison = [](std::uint64_t n) { return n % 20 == 3; };
    for (std::uint64_t n = 1; n <= all; ++n)
        append_event(redis, n, n % 2 == 0 ? "" : std::to_string(n % 7), is_poison(n) ? "\"do\": \"exit\"" : "");
    service service(redis, journal, {"max_attempts=3", "concurrency=4", "claim_idle=8000"}, 2);
    ASSERT_TRUE(eventually([&] {
        service.keep();
        return count_dead_letters(redis) >= 3 && is_through(redis, stream, "billing");
    })) << journal.log();
    EXPECT_EQ(count_dead_letters(redis), 3u) << journal.log();
    for (std::uint64_t n = 1; n <= all; ++n) {
        EXPECT_EQ(journal.count("end", n) > 0, !is_poison(n)) << n;
        if (is_poison(n)) {
            EXPECT_LE(journal.count("start", n), 3u) << n;
        }
    }
}

// Entries

class Poison : public ::testing::TestWithParam<idempotency> {
  protected:
    // Runs a consumer on what was appended until it is finished with that.
    void consume(std::size_t good, std::size_t bad, on_poison poisoned = on_poison::skip) {
        consumer_options options = quick_options(redis_);
        options.idempotency = GetParam();
        options.on_poison = poisoned;
        options.topics = {"wallet"};
        running_consumer consumer(options, [this](class consumer &to) {
            to.on("*", [this](const event &event) { handled_.take(event.payload().at("n").dump()); });
        });
        ASSERT_TRUE(eventually([&] {
            return handled_.count() >= good && count_dead_letters(redis_) >= bad && is_through(redis_, stream, "billing");
        })) << handled_.count() << " handled, " << count_dead_letters(redis_) << " dead";
        EXPECT_TRUE(consumer.stop());
        EXPECT_EQ(handled_.count(), good);
        EXPECT_EQ(count_dead_letters(redis_), bad);
        EXPECT_EQ(consumer->stats().handled, good);
        EXPECT_EQ(consumer->stats().dead_lettered, bad);
        EXPECT_EQ(consumer->stats().acknowledged, good) << "silently";
    }

    std::vector<dead_letter> letters() { return dead_letters(redis_.url(), "wallet", "billing").list(1000); }

    redis_server redis_;
    notes handled_;
};

TEST_P(Poison, entries_go_to_the_dead_letters_with_their_fields_and_the_reason_while_their_neighbours_flow) {
    const fields good = good_fields(1, "a");
    struct bad {
        fields all;
        std::string reason;
    };
    std::vector<bad> cases;
    for (const auto &[name, value] : good)
        cases.push_back({without(good, name), "the field \"" + name + "\" is missing"});
    std::string junk;
    for (int byte = 0; byte < 256; ++byte)
        junk += static_cast<char>(byte);
    for (const char *id : {"", "1", "01900000-0000-7000-8000-00000000000", "01900000-0000-7000-8000-0000000000011",
                           "01900000-0000-7000-8000-00000000000g", "01900000_0000_7000_8000_000000000001"})
        cases.push_back({with(good, "event_id", id), "is not a UUID"});
    cases.push_back({with(good, "event_id", junk), "is not a UUID"});
    for (const char *version : {"", "0", "-1", "1.0", " 1", "1 ", "one", "2147483648", "99999999999999999999999999", "+1"})
        cases.push_back({with(good, "version", version), "is not a number from 1 on"});
    for (const char *type : {"", ".", "wallet", "wallet..created", ".wallet", "wallet.created.", "wallet created", "w\xc3\xa4llet.created",
                             "*", "wallet.*", "wallet.created\n", "{wallet}.created"})
        cases.push_back({with(good, "event_type", type), "is not an event type"});
    cases.push_back({with(good, "event_type", junk), "is not an event type"});
    cases.push_back({with(good, "event_type", std::string(100'000, 'x') + "!"), "is not an event type"});
    cases.push_back({with(good, "payload", ""), "the payload is empty"});
    for (const char *json : {"{", "{\"n\": }", "nul", "{} {}", "{'n': 1}", "\xff\xfe", "{\"n\": \"\xc3\x28\"}", "\"\\ud800\"", "[1,]", "01"})
        cases.push_back({with(good, "payload", json), "the payload is not JSON"});
    cases.push_back({with(good, "payload", std::string("{\"n\": 1}\0", 9)), "the payload is not JSON"});
    cases.push_back({with(good, "payload", junk), "the payload is not JSON"});
    cases.push_back({with(good, "payload", std::string(2000, '[') + std::string(2000, ']')), "nested deeper than"});
    cases.push_back({with(good, "payload", std::string(100'000, '[')), "nested deeper than"});
    for (const char *headers : {"{", "[]", "1", "\"x\"", "null", "{\"a\": }", "{}x"})
        cases.push_back({with(good, "headers", headers), "the headers are not"});
    cases.push_back({{{"", ""}}, "is missing"});
    cases.push_back({{{junk, junk}}, "is missing"});
    cases.push_back({{{"n", "1"}}, "is missing"});
    cases.push_back({{{"event_id", event_id(1)}, {"event_id", event_id(2)}}, "is missing"});
    // the first of two fields with one name is the one that counts
    fields twice = with(good, "version", "0");
    twice.insert(twice.end(), {{"version", "1"}, {"x", "\r\n$5\r\n"}});
    cases.push_back({twice, "is not a number from 1 on"});
    // names of what a dead letter says about itself
    fields pretender = {{"outbox_position", "5-5"}, {"outbox_error", "none"}, {"outbox_attempts", "-1"}, {"outbox_position", "6-6"}};
    cases.push_back({pretender, "is missing"});

    std::vector<std::string> positions;
    std::uint64_t n = 1000;
    for (const bad &one : cases) {
        append_fields(redis_, good_fields(++n, "a"));
        positions.push_back(append_fields(redis_, one.all));
    }
    append_fields(redis_, good_fields(++n, "a"));
    consume(cases.size() + 1, cases.size());
    for (std::uint64_t i = 1001; i <= n; ++i)
        EXPECT_EQ(handled_.count(std::to_string(i)), 1u) << i;

    std::map<std::string, dead_letter> by_position;
    for (dead_letter &letter : letters())
        by_position[letter.position] = letter;
    for (std::size_t i = 0; i < cases.size(); ++i) {
        ASSERT_TRUE(by_position.contains(positions[i])) << cases[i].reason;
        const dead_letter &letter = by_position[positions[i]];
        EXPECT_EQ(letter.fields, cases[i].all) << cases[i].reason;
        EXPECT_NE(letter.error.find(cases[i].reason), std::string::npos) << letter.error << ", not " << cases[i].reason;
        EXPECT_LT(letter.error.size(), 500u);
        EXPECT_EQ(letter.stream, stream);
        EXPECT_FALSE(letter.consumer.empty());
    }
}

TEST_P(Poison, strange_entries_that_are_events_are_handled) {
    fields more = good_fields(1);
    more.insert(more.begin(), {"unknown", "1"});
    more.emplace_back("payload", "{\"n\": 99}"); // the first counts
    more.emplace_back("event_id", "junk");
    more.emplace_back("", "");
    append_fields(redis_, more);
    fields many = good_fields(2);
    for (int i = 0; i < 4992; ++i)
        many.emplace_back("field " + std::to_string(i), std::string(1, static_cast<char>(i)));
    append_fields(redis_, many);
    fields turned = good_fields(3);
    std::reverse(turned.begin(), turned.end());
    append_fields(redis_, turned);
    append_fields(redis_, with(good_fields(4), "payload", "{\"n\": 4, \"text\": \"" + std::string(10'000'000, 'x') + "\"}"));
    append_fields(redis_, with(good_fields(5), "aggregate_id", std::string(1000, '\0') + "\r\n {}:"));
    append_fields(redis_, with(good_fields(6), "occurred_at", "yesterday"));
    append_fields(redis_, with(good_fields(7), "version", "2147483647"));
    append_fields(redis_, with(good_fields(8), "event_id", "01900000-ABCD-7000-8000-00000000000F"));
    consume(8, 0);
    for (int n = 1; n <= 8; ++n)
        EXPECT_EQ(handled_.count(std::to_string(n)), 1u) << n;
}

TEST_P(Poison, entries_of_many_megabytes_keep_them_in_the_dead_letters) {
    fields big = with(good_fields(1, "a"), "payload", "{\"n\": " + std::string(10'000'000, ' ') + "x}");
    append_fields(redis_, big);
    append_fields(redis_, good_fields(2, "a"));
    fields bigger = with(good_fields(3, "a"), "event_type", std::string(10'000'000, '\n'));
    append_fields(redis_, bigger);
    append_fields(redis_, good_fields(4, "a"));
    consume(2, 2);
    std::vector<dead_letter> dead = letters();
    std::sort(dead.begin(), dead.end(), [](auto &a, auto &b) { return a.position < b.position; });
    EXPECT_TRUE(dead.at(0).fields == big);
    EXPECT_NE(dead.at(0).error.find("not JSON (byte 1000000"), std::string::npos) << dead.at(0).error;
    EXPECT_TRUE(dead.at(1).fields == bigger);
}

// Redis' scripts can pass on about 3,000 fields.
TEST_P(Poison, entries_of_thousands_of_fields_are_named_in_the_dead_letters_and_stay_in_the_stream) {
    fields many = without(good_fields(1, "a"), "event_id");
    while (many.size() < 2990)
        many.emplace_back("field", std::to_string(many.size()));
    append_fields(redis_, many);
    append_fields(redis_, good_fields(2, "a"));
    fields more = many;
    while (more.size() < 5000)
        more.emplace_back("field", std::to_string(more.size()));
    std::string position = append_fields(redis_, more);
    append_fields(redis_, good_fields(3, "a"));
    consume(2, 2);
    std::vector<dead_letter> dead = letters();
    EXPECT_EQ(dead.at(0).fields, many);
    EXPECT_EQ(dead.at(1).position, position);
    EXPECT_TRUE(dead.at(1).fields.empty());
    EXPECT_NE(dead.at(1).error.find("\"event_id\" is missing"), std::string::npos) << dead.at(1).error;
    EXPECT_NE(dead.at(1).error.find("too many fields"), std::string::npos) << dead.at(1).error;
    redis_reply left = redis_.command("XRANGE", stream, position, position);
    ASSERT_EQ(left->elements, 1u);
    EXPECT_EQ(left->element[0]->element[1]->elements, 10'000u);
    EXPECT_THROW(dead_letters(redis_.url(), "wallet", "billing").redrive(dead.at(1).id), reply_error);
}

TEST_P(Poison, noise_between_events_hurts_none_of_them) {
    const auto seed = std::random_device{}();
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    auto noise = [&](std::size_t most) {
        std::string text(random() % most, ' ');
        for (char &c : text)
            c = static_cast<char>(random());
        return text;
    };
    std::map<std::string, fields> expected;
    for (std::uint64_t n = 1; n <= 100; ++n) {
        append_fields(redis_, good_fields(n, std::to_string(n % 3)));
        fields broken = good_fields(n, std::to_string(n % 3));
        // at least one that the event cannot do without
        broken[random() % 2] = {broken[random() % 2].first, noise(40) + "!"};
        for (std::size_t i = random() % 4; i > 0; --i)
            broken[random() % broken.size()] = {noise(20), noise(200)};
        std::shuffle(broken.begin(), broken.end(), random);
        expected[append_fields(redis_, broken)] = broken;
    }
    consume(100, 100);
    for (const dead_letter &letter : letters())
        EXPECT_EQ(letter.fields, expected[letter.position]) << letter.error;
    std::vector<std::string> all = handled_.all();
    for (std::uint64_t aggregate = 0; aggregate < 3; ++aggregate) {
        std::vector<std::uint64_t> order;
        for (const std::string &n : all)
            if (std::stoull(n) % 3 == aggregate)
                order.push_back(std::stoull(n));
        EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
    }
}

TEST_P(Poison, an_entry_that_is_no_event_parks_its_aggregate_where_that_is_asked_for) {
    append_fields(redis_, with(good_fields(1, "a"), "version", "0"));
    append_fields(redis_, good_fields(2, "a"));
    append_fields(redis_, good_fields(3, "b"));
    append_fields(redis_, without(good_fields(4, "b"), "aggregate_id"));
    append_fields(redis_, good_fields(5, "b"));
    consumer_options options = quick_options(redis_);
    options.idempotency = GetParam();
    options.on_poison = on_poison::park_aggregate;
    running_consumer consumer(options, [this](class consumer &to) {
        to.on("wallet.*", [this](const event &event) { handled_.take(event.payload().at("n").dump()); });
    });
    ASSERT_TRUE(eventually([&] { return handled_.count() == 2 && pending(redis_, stream, "billing") == 0; }));
    EXPECT_EQ(handled_.all(), (std::vector<std::string>{"3", "5"}));
    dead_letters dead(redis_.url(), "wallet", "billing");
    auto letters = dead.list();
    ASSERT_EQ(letters.size(), 2u);
    auto parking = letters[0].field("version") == "0" ? letters[0] : letters[1];
    EXPECT_EQ(parking.parked, 1u);
    EXPECT_TRUE(dead.discard(parking.id));
    EXPECT_TRUE(eventually([&] { return handled_.count("2") == 1; }));
}

TEST(Unhandled, an_event_without_a_handler_is_a_dead_letter_where_that_is_asked_for) {
    redis_server redis;
    append(redis, {.id = event_id(1), .type = "wallet.renamed"});
    append(redis, {.id = event_id(2)});
    consumer_options options = quick_options(redis);
    options.on_unhandled = on_unhandled::dead_letter;
    notes handled;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(std::string(event.id())); });
    });
    ASSERT_TRUE(eventually([&] { return handled.count() == 1 && pending(redis, stream, "billing") == 0; }));
    auto letters = dead_letters(redis.url(), "wallet", "billing").list();
    ASSERT_EQ(letters.size(), 1u);
    EXPECT_EQ(letters[0].field("event_type"), "wallet.renamed");
    EXPECT_EQ(letters[0].error, "no handler is for wallet.renamed");
    EXPECT_EQ(letters[0].attempts, 0);
}

INSTANTIATE_TEST_SUITE_P(Entries, Poison, ::testing::Values(idempotency::none, idempotency::redis),
                         [](const auto &info) { return info.param == idempotency::none ? "none" : "redis"; });

} // namespace outbox::test

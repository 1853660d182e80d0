// What happens atomically in Redis: each script against a real server.
#include "src/scripts.hpp"

#include <array>
#include <chrono>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "servers.hpp"
#include "src/keys.hpp"

namespace outbox {
namespace {

using detail::script;
using test::redis_reply;
using test::redis_server;
using strings = std::vector<std::string>;

// [0, [5-1, nil]]; an error as "(error) WRONGTYPE …".
std::string show(const redisReply &reply) {
    switch (reply.type) {
    case REDIS_REPLY_INTEGER: return std::to_string(reply.integer);
    case REDIS_REPLY_NIL: return "nil";
    case REDIS_REPLY_ERROR: return "(error) " + std::string(reply.str, reply.len);
    case REDIS_REPLY_ARRAY: {
        std::string result = "[";
        for (std::size_t i = 0; i < reply.elements; ++i)
            result += (i > 0 ? ", " : "") + show(*reply.element[i]);
        return result + "]";
    }
    default: return {reply.str, reply.len};
    }
}

const std::map<std::string, const script *> all_scripts = {
    {"begin", &detail::begin},         {"finish", &detail::finish},       {"bury", &detail::bury},
    {"take_over", &detail::take_over}, {"renew", &detail::renew},         {"release", &detail::release},
    {"reap", &detail::reap},           {"watermark", &detail::watermark}, {"take_tokens", &detail::take_tokens},
    {"redrive", &detail::redrive},     {"discard", &detail::discard},
};

class scripts : public testing::Test {
  protected:
    static void SetUpTestSuite() { server_ = std::make_unique<redis_server>(); }
    static void TearDownTestSuite() { server_.reset(); }

    void SetUp() override {
        command("FLUSHALL");
        command("CONFIG", "SET", "maxmemory", "0");
        command("XGROUP", "CREATE", keys.stream, "billing", "0", "MKSTREAM");
        command("XGROUP", "CREATE", keys.redrive, "billing", "0", "MKSTREAM");
    }
    void TearDown() override { command("CONFIG", "SET", "maxmemory", "0"); }

    template <typename... Words> static std::string command(const Words &...words) {
        return show(*server_->command(words...));
    }

    static std::string eval(const script &script, const strings &keys, const strings &arguments) {
        strings words{"EVAL", script.text, std::to_string(keys.size())};
        words.insert(words.end(), keys.begin(), keys.end());
        words.insert(words.end(), arguments.begin(), arguments.end());
        return show(*server_->command(words));
    }

    // An event in the topic's stream, or another; its ID.
    std::string emit(const std::string &event_id, const std::string &aggregate_id = "a", std::string stream = "") {
        return command("XADD", stream.empty() ? keys.stream : stream, "*", "event_id", event_id, "event_type",
                       "wallet.created", "aggregate_type", "wallet", "aggregate_id", aggregate_id, "version", "1",
                       "occurred_at", "", "headers", "{}", "payload", "{}");
    }

    // A consumer reads everything that is new; how much that was.
    std::size_t read(const std::string &consumer = "me", std::string stream = "", int count = 1000) {
        if (stream.empty())
            stream = keys.stream;
        auto reply = server_->command("XREADGROUP", "GROUP", "billing", consumer, "COUNT", count, "STREAMS", stream, ">");
        return reply->type == REDIS_REPLY_ARRAY ? reply->element[0]->element[1]->elements : 0;
    }

    // An entry that this consumer has.
    std::string delivered(const std::string &event_id, const std::string &aggregate_id = "a",
                          const std::string &consumer = "me") {
        auto id = emit(event_id, aggregate_id);
        read(consumer);
        return id;
    }

    std::string attempts_of(const std::string &stream) const {
        return detail::topic_keys::attempts(stream, "billing");
    }
    strings begin_keys(const std::string &stream) const {
        return {stream, attempts_of(stream), keys.parked, keys.stream, keys.redrive, keys.dead};
    }

    struct beginning {
        std::string consumer = "me";
        std::string prefix = "outbox:{wallet}:event:billing:";
        bool park = false, check = false;
        std::string stream = "";
        std::string ttl = "60000";
    };
    // Of entries {id, event id, attempt, aggregate key}, one after the other.
    std::string begin(const strings &entries, beginning how) const {
        strings arguments{"billing", how.consumer, how.prefix, how.ttl, how.park ? "1" : "0", how.check ? "1" : "0"};
        arguments.insert(arguments.end(), entries.begin(), entries.end());
        return eval(detail::begin, begin_keys(how.stream.empty() ? keys.stream : how.stream), arguments);
    }
    std::string begin(const strings &entries) const { return begin(entries, beginning()); }
    static beginning parking(std::string consumer = "me") {
        beginning how;
        how.consumer = std::move(consumer);
        how.park = true;
        return how;
    }
    beginning draining(std::string consumer = "me") const {
        auto how = parking(std::move(consumer));
        how.stream = keys.redrive;
        return how;
    }

    std::string finish(const strings &entries, bool fenced = false, const std::string &consumer = "me",
                       std::string stream = "") const {
        bool drop = stream == keys.redrive;
        if (stream.empty())
            stream = keys.stream;
        strings arguments{"billing", consumer, keys.event, "60000", drop ? "1" : "0", fenced ? "1" : "0"};
        arguments.insert(arguments.end(), entries.begin(), entries.end());
        return eval(detail::finish, {stream, attempts_of(stream)}, arguments);
    }

    struct burial {
        std::string consumer = "me";
        std::string aggregate = "6:walleta";
        bool park = false;
        std::string stream = "";
        std::string key = "";
        std::string error = "no such wallet";
    };
    std::string bury(const std::string &id, burial how) const {
        auto stream = how.stream.empty() ? keys.stream : how.stream;
        return eval(detail::bury, {stream, attempts_of(stream), keys.dead, keys.parked, keys.redrive},
                    {"billing", how.consumer, id, how.error, "3", how.aggregate, how.park ? "1" : "0", how.key});
    }
    std::string bury(const std::string &id) const { return bury(id, burial()); }
    std::string bury_and_park(const std::string &id, std::string stream = "") const {
        burial how;
        how.park = true;
        how.stream = std::move(stream);
        return bury(id, how);
    }

    std::string take_over(const std::string &consumer, const std::string &min_idle = "0", int count = 100,
                          const std::string &after = "-", bool mine = false, std::string stream = "") const {
        if (stream.empty())
            stream = keys.stream;
        return eval(detail::take_over, {stream, attempts_of(stream), keys.dead},
                    {"billing", consumer, min_idle, std::to_string(count), after, mine ? "1" : "0"});
    }
    std::string redrive(const std::string &id) const {
        return eval(detail::redrive, {keys.dead, keys.redrive, keys.parked}, {id});
    }
    std::string discard(const std::string &id) const {
        return eval(detail::discard, {keys.dead, keys.redrive, keys.parked}, {id});
    }

    // IDs that are pending, of one consumer or of all.
    strings pending(const std::string &consumer = "", std::string stream = "") const {
        if (stream.empty())
            stream = keys.stream;
        strings words{"XPENDING", stream, "billing", "-", "+", "1000"};
        if (!consumer.empty())
            words.push_back(consumer);
        auto reply = server_->command(words);
        strings result;
        for (std::size_t i = 0; i < reply->elements; ++i)
            result.emplace_back(reply->element[i]->element[0]->str);
        return result;
    }
    long long idle(const std::string &id, std::string stream = "") const {
        if (stream.empty())
            stream = keys.stream;
        return server_->command("XPENDING", stream, "billing", id, id, 1)->element[0]->element[2]->integer;
    }
    // Since the consumer was heard of, in ms.
    long long consumer_idle(const std::string &name) const {
        auto rows = server_->command("XINFO", "CONSUMERS", keys.stream, "billing");
        for (std::size_t i = 0; i < rows->elements; ++i)
            if (const redisReply &row = *rows->element[i]; show(*row.element[1]) == name)
                return row.element[5]->integer;
        return -1;
    }
    long long deliveries(const std::string &id) const {
        return server_->command("XPENDING", keys.stream, "billing", id, id, 1)->element[0]->element[3]->integer;
    }

    // The event ids in a stream, in order.
    strings events(const std::string &stream) const {
        auto reply = server_->command("XRANGE", stream, "-", "+");
        strings result;
        for (std::size_t i = 0; i < reply->elements; ++i) {
            const auto &fields = *reply->element[i]->element[1];
            for (std::size_t f = 0; f + 1 < fields.elements; f += 2)
                if (show(*fields.element[f]) == "event_id")
                    result.push_back(show(*fields.element[f + 1]));
        }
        return result;
    }
    strings ids(const std::string &stream) const {
        auto reply = server_->command("XRANGE", stream, "-", "+");
        strings result;
        for (std::size_t i = 0; i < reply->elements; ++i)
            result.emplace_back(reply->element[i]->element[0]->str);
        return result;
    }
    std::string field(const std::string &stream, const std::string &id, const std::string &name) const {
        auto reply = server_->command("XRANGE", stream, id, id);
        if (reply->elements == 0)
            return "no entry";
        const auto &fields = *reply->element[0]->element[1];
        for (std::size_t f = 0; f + 1 < fields.elements; f += 2)
            if (show(*fields.element[f]) == name)
                return show(*fields.element[f + 1]);
        return "no field";
    }

    // No memory for commands that need some.
    static void run_out_of_memory() { command("CONFIG", "SET", "maxmemory", "1"); }

    static std::unique_ptr<redis_server> server_;
    const detail::topic_keys keys{"wallet", "billing"};
    const std::string a = "6:walleta";
};
std::unique_ptr<redis_server> scripts::server_;

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
            "+xpending", "+xrange", "+eval", "+evalsha");
    auto first = delivered("e1");
    auto second = delivered("e2");
    auto third = delivered("e3", "b");
    read("other");
    ASSERT_EQ(command("AUTH", "worker", "secret"), "OK");

    EXPECT_EQ(begin({first, "e1", "1", a}, parking()), "[0]");
    auto letter = bury_and_park(first);
    EXPECT_TRUE(letter.find('-') != std::string::npos && letter[0] != '(') << letter;
    EXPECT_EQ(begin({second, "e2", "1", a}, parking()), "[3]");
    EXPECT_EQ(eval(detail::renew, {keys.stream}, {"billing", "me", third}), "[]");
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

// --- begin, parking ---

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

// --- take_tokens ---

class tokens : public scripts {
  protected:
    // Granted, and ms until the next.
    std::array<long long, 2> take(const std::string &rate, const std::string &burst, const std::string &wanted) {
        auto reply = server_->command({"EVAL", detail::take_tokens.text, "1", key, rate, burst, wanted});
        if (reply->type != REDIS_REPLY_ARRAY)
            throw std::runtime_error(show(*reply));
        return {reply->element[0]->integer, reply->element[1]->integer};
    }
    const std::string key = "outbox:{wallet}:rate:billing";
};

TEST_F(tokens, come_in_a_burst_and_then_at_the_rate) {
    // one in a thousand seconds, so that none comes while this is tried
    EXPECT_EQ(take("0.001", "5", "3")[0], 3);
    auto rest = take("0.001", "5", "10");
    EXPECT_EQ(rest[0], 2);
    EXPECT_TRUE(rest[1] > 900'000 && rest[1] <= 1'000'000) << rest[1];
    EXPECT_EQ(take("0.001", "5", "1")[0], 0);
    auto ttl = std::stoll(command("PTTL", key));
    EXPECT_TRUE(ttl > 4'900'000 && ttl <= 5'000'001) << ttl;
}

TEST_F(tokens, hold_the_rate_over_a_second) {
    constexpr int rate = 200, burst = 10;
    int granted = 0;
    double lost = 0; // what nobody asked for in time, on a machine that had something else to do
    auto begin = std::chrono::steady_clock::now();
    auto seconds = [](auto duration) { return std::chrono::duration<double>(duration).count(); };
    auto asked = begin, now = begin;
    while (now - begin < std::chrono::seconds(1)) {
        auto before = std::exchange(asked, now);
        auto [some, wait] = take("200", "10", "3");
        granted += static_cast<int>(some);
        EXPECT_LE(wait, 1000 / rate + 1);
        now = std::chrono::steady_clock::now();
        lost += std::max(0.0, seconds(now - before) * rate - burst + 1);
    }
    auto elapsed = seconds(now - begin);
    EXPECT_GE(granted, 0.97 * rate * elapsed - lost);
    EXPECT_LE(granted, rate * elapsed + burst + 1);
}

TEST_F(tokens, of_a_fractional_rate_come_too) {
    EXPECT_EQ(take("0.0025", "1", "1"), (std::array<long long, 2>{1, 400'000}));
    EXPECT_EQ(take("0.0025", "1", "1")[0], 0);
}

TEST_F(tokens, come_one_by_one_at_least) {
    EXPECT_EQ(take("3", "0", "5")[0], 1);
}

TEST_F(tokens, all_of_a_burst_are_there_whatever_the_rate) {
    for (auto rate : {"3", "7", "0.3", "1234.5", "100000"}) {
        command("DEL", key);
        EXPECT_EQ(take(rate, "49", "49")[0], 49) << rate;
    }
}

TEST_F(tokens, are_held_up_by_a_clock_that_jumps_back_for_no_longer_than_the_burst) {
    // As if an hour ago the clock had been an hour ahead.
    auto time = server_->command("TIME");
    auto ahead = std::to_string(std::stoll(show(*time->element[0])) + 3600) + "000000";
    command("SET", key, ahead, "PX", "3600000");
    auto begin = std::chrono::steady_clock::now();
    auto first = take("20", "4", "1");
    EXPECT_EQ(first[0], 0);
    EXPECT_LE(first[1], 50);
    while (take("20", "4", "1")[0] == 0)
        ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
    EXPECT_LE(std::stoll(command("PTTL", key)), 201);
}

TEST_F(tokens, are_shared_by_two_connections) {
    redisContext *other = redisConnectUnix(server_->socket_path().c_str());
    int granted = 0;
    std::thread taker([&] {
        for (int i = 0; i < 300; ++i) {
            test::redis_reply reply(static_cast<redisReply *>(redisCommand(
                other, "EVAL %s 1 %s 0.001 100 1", detail::take_tokens.text.c_str(), key.c_str())));
            granted += static_cast<int>(reply->element[0]->integer);
        }
    });
    int here = 0;
    for (int i = 0; i < 300; ++i)
        here += static_cast<int>(take("0.001", "100", "1")[0]);
    taker.join();
    redisFree(other);
    EXPECT_EQ(granted + here, 100);
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

} // namespace
} // namespace outbox

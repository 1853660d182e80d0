// Several processes that share a group, and what is left of the promises when they are killed with -9, or stopped for longer
// than their lease and then go on.
#include <algorithm>
#include <cstdlib>
#include <random>
#include <set>
#include <sstream>
#include <thread>
#include <tuple>

#include "workers.hpp"

namespace outbox::test {

class Killed : public ::testing::TestWithParam<std::tuple<std::size_t, guard>> {};

// The events of an aggregate are 1, 9, 17, …: n modulo 8.
TEST_P(Killed, at_random_and_started_again_a_group_handles_every_event_and_keeps_the_order) {
    auto [processes, how] = GetParam();
    const char *said = std::getenv("OUTBOX_TEST_ROUNDS");
    const std::uint64_t rounds = said != nullptr ? std::stoull(said) : 10, each = 40, aggregates = 8;
    const auto seed = std::random_device{}();
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);

    redis_server redis;
    journal journal(redis);
    std::optional<effects> inbox;
    if (how == guard::inbox)
        inbox.emplace();
    std::vector<std::string> words = words_for(how, inbox);
    words.insert(words.end(), {"claim_idle=4000", "prefetch=20"});
    service service(redis, journal, words, processes);

    for (std::uint64_t round = 0; round < rounds; ++round) {
        std::size_t before = journal.lines().size();
        for (std::uint64_t n = 1 + round * each; n <= (round + 1) * each; ++n)
            append_event(redis, n, std::to_string(n % aggregates), "\"ms\": " + std::to_string(random() % 4));
        // anywhere in the work
        std::size_t target = before + random() % (2 * each);
        eventually([&] { return journal.lines().size() >= target; }, 1s);
        worker &victim = service[random() % processes];
        victim.kill9();
        journal.note_kill(victim.pid());
        service.keep();
    }

    const std::uint64_t all = rounds * each;
    ASSERT_TRUE(eventually(
        [&] {
            service.keep();
            std::set<std::uint64_t> ended;
            for (auto &line : journal.lines())
                if (line.what == "end")
                    ended.insert(line.n);
            return ended.size() == all && pending(redis, stream, "billing") == 0;
        },
        120s))
        << journal.log();
    EXPECT_EQ(count_dead_letters(redis), 0u);

    // An event starts when all before it in its aggregate have ended, and while no other handler of it is at work.
    std::map<std::uint64_t, std::uint64_t> done; // of an aggregate: the last one that has ended
    std::map<std::uint64_t, pid_t> at_work;      // of an aggregate: the process that handles one of its events
    for (const auto &line : journal.lines()) {
        std::uint64_t aggregate = line.n % aggregates;
        if (line.what == "kill") {
            std::erase_if(at_work, [&](auto &one) { return one.second == line.pid; });
        } else if (line.what == "start") {
            EXPECT_LE(line.n, done.contains(aggregate) ? done[aggregate] + aggregates : aggregates) << "too early";
            EXPECT_FALSE(at_work.contains(aggregate)) << line.n << " beside another of its aggregate";
            at_work[aggregate] = line.pid;
        } else {
            done[aggregate] = std::max(done[aggregate], line.n);
            at_work.erase(aggregate);
        }
    }
    if (HasFailure())
        std::fputs(journal.log().c_str(), stderr);
    if (how != guard::inbox)
        return;
    std::map<std::uint64_t, std::uint64_t> last;
    std::vector<std::uint64_t> happened = inbox->all();
    for (std::uint64_t n : happened) {
        EXPECT_GT(n, last[n % aggregates]) << "out of order, or twice";
        last[n % aggregates] = n;
    }
    EXPECT_EQ(happened.size(), all);
}

INSTANTIATE_TEST_SUITE_P(Consumers, Killed,
                         ::testing::Combine(::testing::Values(2u, 4u), ::testing::Values(guard::redis, guard::inbox)),
                         [](const auto &info) {
                             return std::to_string(std::get<0>(info.param)) + "_with_" + name_of(std::get<1>(info.param));
                         });

class Zombie : public ::testing::TestWithParam<guard> {
  protected:
    Zombie() {
        if (GetParam() == guard::inbox)
            inbox_.emplace();
        redis_.command("XGROUP", "CREATE", stream, "billing", "0", "MKSTREAM");
    }

    std::unique_ptr<worker> start(int concurrency, const std::string &more = "claim_idle=600") {
        auto words = words_for(GetParam(), inbox_);
        words.push_back(more);
        words.push_back("concurrency=" + std::to_string(concurrency));
        return std::make_unique<worker>(redis_, journal_, words);
    }

    // Events that a process has in its hands: in a handler, in the queue of its threads, behind others of their aggregate.
    void append_some(const std::string &first) {
        append_event(redis_, 1, "a", first);
        for (std::uint64_t n = 2; n <= 4; ++n)
            append_event(redis_, n, "a");
        for (std::uint64_t n = 5; n <= 20; ++n)
            append_event(redis_, n, n % 2 == 0 ? "" : std::to_string(n));
    }

    bool all_are_settled(std::uint64_t events) {
        for (std::uint64_t n = 1; n <= events; ++n)
            if (journal_.count("end", n) == 0)
                return false;
        return pending(redis_, stream, "billing") == 0;
    }

    bool is_all_read() {
        redis_reply groups = redis_.command("XINFO", "GROUPS", stream), about = redis_.command("XINFO", "STREAM", stream);
        return std::string_view(groups->element[0]->element[7]->str) == about->element[7]->str;
    }

    std::vector<std::uint64_t> started_by(const worker &one) {
        std::vector<std::uint64_t> all;
        for (auto &line : journal_.lines())
            if (line.pid == one.pid() && line.what == "start")
                all.push_back(line.n);
        return all;
    }

    void expect_effects_once(std::uint64_t events) {
        if (GetParam() != guard::inbox)
            return;
        std::vector<std::uint64_t> happened = inbox_->all(), aggregate;
        std::copy_if(happened.begin(), happened.end(), std::back_inserter(aggregate), [](auto n) { return n <= 4; });
        EXPECT_EQ(aggregate, (std::vector<std::uint64_t>{1, 2, 3, 4})) << "in order";
        std::sort(happened.begin(), happened.end());
        EXPECT_EQ(happened.size(), events);
        EXPECT_EQ(std::unique(happened.begin(), happened.end()), happened.end()) << "twice";
    }

    redis_server redis_;
    journal journal_{redis_};
    std::optional<effects> inbox_;
};

TEST_P(Zombie, stopped_in_a_handler_finishes_it_and_leaves_the_rest_to_those_who_took_it_over) {
    append_some("\"do\": \"stop\", \"upto\": 1");
    auto zombie = start(1);
    ASSERT_TRUE(eventually([&] { return zombie->is_stopped(); }));
    const auto before = started_by(*zombie);
    auto other = start(4);
    // With an inbox the zombie's transaction has the first event's id: whoever else handles it waits for that.
    ASSERT_TRUE(eventually([&] {
        return is_all_read() && pending(redis_, stream, "billing") == (GetParam() == guard::inbox ? 4 : 0);
    })) << journal_.log();
    zombie->signal(SIGCONT);
    ASSERT_TRUE(eventually([&] {
        return all_are_settled(20) && journal_.lines("end", 1).size() == (GetParam() == guard::inbox ? 1u : 2u);
    })) << journal_.log();
    // It goes on like any other.
    // (Nobody is stopped with the event's transaction open: that would be waited for.)
    other->signal(SIGSTOP);
    ASSERT_TRUE(eventually([&] { return other->is_stopped(); }));
    append_event(redis_, 21, "");
    ASSERT_TRUE(eventually([&] { return all_are_settled(21); })) << journal_.log();
    auto after = started_by(*zombie);
    after.erase(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(before.size()));
    EXPECT_TRUE(std::find(after.begin(), after.end(), 21) != after.end());
    for (std::uint64_t n : started_by(*other))
        EXPECT_TRUE(std::find(after.begin(), after.end(), n) == after.end()) << n << " is not its own any more";
    if (GetParam() != guard::inbox) {
        EXPECT_EQ(after, std::vector<std::uint64_t>{21}) << "the other one was through with all of it";
    }
    for (std::uint64_t n = 2; n <= 20; ++n)
        if (std::find(before.begin(), before.end(), n) == before.end()) {
            EXPECT_EQ(journal_.count("start", n), 1u) << n;
        }
    expect_effects_once(21);
    EXPECT_EQ(count_dead_letters(redis_), 0u);
}

TEST_P(Zombie, killed_in_a_handler_leaves_all_of_it_to_others) {
    append_some("\"do\": \"stop\", \"upto\": 1");
    auto zombie = start(1);
    ASSERT_TRUE(eventually([&] { return zombie->is_stopped(); }));
    auto other = start(4);
    ASSERT_TRUE(eventually([&] { return journal_.count("end", 20) == 1; })) << journal_.log();
    zombie->kill9();
    ASSERT_TRUE(eventually([&] { return all_are_settled(20); })) << journal_.log();
    expect_effects_once(20);
}

TEST_P(Zombie, acknowledges_nothing_that_another_process_is_at_work_on) {
    if (GetParam() == guard::inbox)
        GTEST_SKIP() << "the inbox lets no second handler begin";
    append_event(redis_, 1, "a", R"("do": "stop", "upto": 1, "then": "gate")");
    append_event(redis_, 2, "a");
    // long enough for neither to lose what it has while the machine stands still for a moment
    auto zombie = start(2, "claim_idle=3000");
    ASSERT_TRUE(eventually([&] { return zombie->is_stopped(); }));
    auto other = start(2, "claim_idle=3000");
    ASSERT_TRUE(eventually([&] { return journal_.count("start", 1) == 2; })) << journal_.log();
    zombie->signal(SIGCONT);
    ASSERT_TRUE(eventually([&] { return journal_.count("end", 1) == 1; })) << journal_.log();
    // What it has to say about the event has arrived when a later word of its has: an event of its own is acknowledged.
    std::uint64_t last = 2;
    auto has_ended_one = [&] {
        auto lines = journal_.lines();
        return std::any_of(lines.begin(), lines.end(),
                           [&](auto &line) { return line.what == "end" && line.n > 2 && line.pid == zombie->pid(); });
    };
    ASSERT_TRUE(eventually([&] {
        if (has_ended_one())
            return true;
        append_event(redis_, ++last, ""); // for one of them
        return eventually([&] { return journal_.count("end", last) >= 1; }) && has_ended_one();
    })) << journal_.log();
    ASSERT_TRUE(eventually([&] { return journal_.count("end", last) >= 1 && pending(redis_, stream, "billing") == 2; }))
        << journal_.log();
    redis_reply held = redis_.command("XPENDING", stream, "billing", "-", "+", 10);
    ASSERT_EQ(held->elements, 2u) << "1 and, behind it, 2";
    EXPECT_EQ(journal_.count("start", 2), 0u);
    if (GetParam() == guard::redis) {
        redis_reply mark = redis_.command("GET", stream + ":event:billing:" + event_id(1));
        ASSERT_EQ(mark->type, REDIS_REPLY_STRING);
        EXPECT_NE(std::string(mark->str), "done");
    }
    journal_.open_gate();
    ASSERT_TRUE(eventually([&] { return all_are_settled(last); })) << journal_.log();
    EXPECT_EQ(journal_.count("start", 1), 2u);
    EXPECT_EQ(journal_.count("start", 2), 1u);
}

TEST_P(Zombie, stopped_between_the_read_and_the_handler_starts_nothing_that_others_have_handled) {
    auto zombie = start(4);
    ASSERT_TRUE(eventually([&] {
        redis_reply clients = redis_.command("CLIENT", "LIST");
        return std::string(clients->str).find("cmd=xreadgroup") != std::string::npos;
    })) << journal_.log();
    // Redis hands the entries to its read, as long as that waits: the reply is in the socket.
    std::uint64_t count = 0;
    ASSERT_TRUE(eventually([&] {
        zombie->signal(SIGSTOP);
        if (!eventually([&] { return zombie->is_stopped(); }))
            return false;
        ++count;
        append_event(redis_, count, "", "\"do\": \"\"");
        if (pending(redis_, stream, "billing") > 0)
            return true;
        zombie->signal(SIGCONT);
        eventually([&] { return journal_.count("end", count) == 1 && pending(redis_, stream, "billing") == 0; });
        return false;
    }));
    ASSERT_EQ(journal_.count("start", count), 0u);
    auto other = start(4);
    ASSERT_TRUE(eventually([&] { return all_are_settled(count); })) << journal_.log();
    EXPECT_EQ(journal_.lines("start", count).at(0).pid, other->pid());
    zombie->signal(SIGCONT);
    // the next one is its own
    other->signal(SIGSTOP);
    append_event(redis_, count + 1, "");
    append_event(redis_, count + 2, "");
    ASSERT_TRUE(eventually([&] { return all_are_settled(count + 2); })) << journal_.log();
    EXPECT_EQ(journal_.count("start", count), 1u);
    EXPECT_EQ(count_dead_letters(redis_), 0u);
}

INSTANTIATE_TEST_SUITE_P(Consumers, Zombie, ::testing::Values(guard::none, guard::redis, guard::inbox),
                         [](const auto &info) { return name_of(info.param); });

// One entry goes from hand to hand between two others, as when one takes over from the other; it is always pending.
// What was answered while it was stopped is in its socket.
TEST(Stopped, for_longer_than_the_response_timeout_it_reads_what_is_there_and_keeps_its_connections) {
    redis_server redis;
    journal journal(redis);
    worker one(redis, journal, {"response_timeout=2000", "claim_idle=60000"});
    auto connections = [&] {
        std::istringstream clients(redis.command({"CLIENT", "LIST", "TYPE", "normal"})->str);
        std::set<std::string> ids;
        for (std::string line; std::getline(clients, line);)
            if (line.find("name=") != line.npos && line.find("-" + std::to_string(one.pid()) + "-") != line.npos)
                ids.insert(line.substr(0, line.find(' ')));
        return ids;
    };
    append_event(redis, 1, "");
    ASSERT_TRUE(eventually([&] { return journal.count("end", 1) == 1; })) << journal.log();
    auto before = connections();
    ASSERT_EQ(before.size(), 2u);
    one.signal(SIGSTOP);
    ASSERT_TRUE(eventually([&] { return one.is_stopped(); }));
    append_event(redis, 2, "");
    std::this_thread::sleep_for(2500ms); // longer than it waits for an answer
    one.signal(SIGCONT);
    ASSERT_TRUE(eventually([&] { return journal.count("end", 2) == 1 && pending(redis, stream, "billing") == 0; })) << journal.log();
    EXPECT_EQ(connections(), before) << journal.log();
}

TEST(Order, an_entry_that_moves_between_other_consumers_holds_back_what_is_behind_it) {
    redis_server redis;
    redis.command("XGROUP", "CREATE", stream, "billing", "0", "MKSTREAM");
    std::string first = append(redis, {.id = event_id(1), .aggregate_id = "a"});
    for (const char *name : {"this", "that"})
        redis.command("XREADGROUP", "GROUP", "billing", name, "COUNT", "1", "STREAMS", stream, ">");
    append(redis, {.id = event_id(2), .aggregate_id = "a"});
    append(redis, {.id = event_id(3)});

    notes handled;
    consumer_options options = quick_options(redis);
    options.claim_idle = 60s;
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(std::string(event.id())); });
    });
    ASSERT_TRUE(eventually([&] { return handled.count(event_id(3)) == 1; }));
    for (int i = 0; i < 20'000; ++i)
        redis.command("XCLAIM", stream, "billing", i % 2 == 0 ? "that" : "this", "0", first, "JUSTID");
    EXPECT_EQ(handled.count(event_id(2)), 0u) << "before the first of its aggregate was finished";
    redis.command("XACK", stream, "billing", first);
    EXPECT_TRUE(eventually([&] { return handled.count(event_id(2)) == 1; }));
}

} // namespace outbox::test

// A Redis that answers with errors: an outage is waited for, costs no attempt and little else, and is over by itself when its
// cause is gone; what is wrong with one key stops nobody who does not need it.
#include <ctime>
#include <fstream>
#include <future>
#include <set>

#include <arpa/inet.h>
#include <sys/stat.h>

#include "consumers.hpp"

namespace outbox::test {

static const std::string wallets = "outbox:{wallet}";
static const std::string orders = "outbox:{order}";

static std::string number(const event &event) { return event.payload().at("n").dump(); }

static std::set<std::string> distinct(const notes &handled) {
    auto all = handled.all();
    return {all.begin(), all.end()};
}

static double cpu_seconds() {
    timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

// Commands that the server has executed; 0 if it does not say.
static long long commands(redis_server &redis) {
    redis_reply reply = redis.command({"INFO", "stats"});
    if (reply->type != REDIS_REPLY_STRING)
        return 0;
    std::string stats(reply->str, reply->len), name = "total_commands_processed:";
    return std::stoll(stats.substr(stats.find(name) + name.size()));
}

// A node of a cluster, with a port for the others that it can have: by itself it takes one that may be somebody else's.
static const std::vector<std::string> cluster_node{"cluster-enabled yes", "cluster-node-timeout 500", "cluster-port PORT"};

// Outages: the whole server is of no use. Each is met by a consumer that starts, and by one that is at work.
class Outage : public ::testing::Test {
  protected:
    static consumer_options options_for(const redis_server &redis) {
        auto options = quick_options(redis);
        options.reconnect_min = 50ms;
        options.reconnect_max = 500ms;
        options.response_timeout = options.connect_timeout = 1s;
        return options;
    }

    struct outage {
        std::string says; // the log, in the end
        std::function<void()> begin, end;
    };

    // What half a second of it costs.
    static void expect_it_costs_little(redis_server &redis, const running_consumer &consumer) {
        auto lines = consumer.log().count();
        auto before = commands(redis);
        auto cpu = cpu_seconds();
        auto begun = std::chrono::steady_clock::now();
        ASSERT_TRUE(eventually([&] { return std::chrono::steady_clock::now() - begun > 500ms; }));
        lines = consumer.log().count() - lines;
        cpu = cpu_seconds() - cpu;
        auto after = commands(redis);
        // of which it may have become more, on a machine that had something else to do
        std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
        const double halves = took.count() / 0.5;
        EXPECT_LE(static_cast<double>(lines), 10 * halves) << ::testing::PrintToString(consumer.log().all());
        EXPECT_LE(cpu, 0.25 * halves);
        if (before > 0 && after > 0) {
            EXPECT_LE(static_cast<double>(after - before), 150 * halves);
        }
    }

    void is_waited_for_at_the_start(redis_server &redis, consumer_options options, const outage &outage) {
        notes handled;
        append_many(redis, 1, 10, 3);
        outage.begin();
        running_consumer consumer(options, [&](class consumer &to) {
            to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
        });
        ASSERT_TRUE(eventually([&] { return consumer.log().contain(outage.says); }))
            << ::testing::PrintToString(consumer.log().all());
        expect_it_costs_little(redis, consumer);
        EXPECT_EQ(handled.count(), 0u);
        outage.end();
        ASSERT_TRUE(eventually([&] { return distinct(handled).size() == 10 && pending(redis, wallets, "billing") == 0; }))
            << ::testing::PrintToString(consumer.log().all());
        expect_no_harm(redis, consumer, handled, 10);
    }

    void is_waited_for_in_the_middle(redis_server &redis, consumer_options options, const outage &outage) {
        notes handled;
        gate hold;
        running_consumer consumer(options, [&](class consumer &to) {
            to.on("wallet.created", [&](const event &event) {
                handled.take(number(event));
                if (number(event) != "1")
                    hold.pass();
            });
        });
        append_many(redis, 1, 1, 0);
        ASSERT_TRUE(eventually([&] { return consumer->stats().acknowledged == 1; }));
        append_many(redis, 2, 10, 0);
        ASSERT_TRUE(eventually([&] { return consumer->stats().held == 10 && hold.waiting() == 4; }));
        outage.begin();
        hold.open();
        ASSERT_TRUE(eventually([&] { return consumer.log().contain(outage.says); }))
            << ::testing::PrintToString(consumer.log().all());
        expect_it_costs_little(redis, consumer);
        EXPECT_EQ(consumer->stats().acknowledged, 1u);
        if (auto left = pending(redis, wallets, "billing"); left >= 0) {
            EXPECT_EQ(left, 10);
        }
        outage.end();
        ASSERT_TRUE(eventually([&] { return distinct(handled).size() == 11 && pending(redis, wallets, "billing") == 0; }))
            << ::testing::PrintToString(consumer.log().all());
        expect_no_harm(redis, consumer, handled, 11);
        append_many(redis, 12, 5, 0);
        ASSERT_TRUE(eventually([&] { return handled.count() == 16 && pending(redis, wallets, "billing") == 0; }));
    }

    static void expect_no_harm(redis_server &redis, running_consumer &consumer, const notes &handled, std::size_t events) {
        EXPECT_EQ(handled.count(), events);
        auto stats = consumer->stats();
        EXPECT_EQ(stats.failed, 0u);
        EXPECT_EQ(stats.retried, 0u);
        EXPECT_EQ(stats.dead_lettered, 0u);
        EXPECT_EQ(stats.lost_leases, 0u);
        EXPECT_TRUE(eventually([&] { return consumer->stats().acknowledged == events && consumer->stats().held == 0; }));
        redis_reply others = redis.command({"EXISTS", wallets + ":attempts:billing", wallets + ":dlq:billing"});
        EXPECT_EQ(others->integer, 0);
    }

    // Each is a server of its own.
    void is_waited_for(const std::vector<std::string> &configuration, const std::function<outage(redis_server &)> &make) {
        {
            SCOPED_TRACE("at the start");
            redis_server redis(configuration);
            is_waited_for_at_the_start(redis, options_for(redis), make(redis));
        }
        if (HasFatalFailure())
            return;
        SCOPED_TRACE("in the middle");
        redis_server redis(configuration);
        is_waited_for_in_the_middle(redis, options_for(redis), make(redis));
    }

    static std::function<void()> set(redis_server &redis, const std::string &name, const std::string &value) {
        return [&redis, name, value] {
            redis_reply reply = redis.command({"CONFIG", "SET", name, value});
            ASSERT_STREQ(reply->str, "OK");
        };
    }

    static void kill_connections(redis_server &redis) { redis.command({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}); }
};

TEST_F(Outage, out_of_memory_is_waited_for) {
    is_waited_for({}, [](redis_server &redis) {
        return outage{"OOM", set(redis, "maxmemory", "1"), set(redis, "maxmemory", "0")};
    });
}

TEST_F(Outage, a_primary_that_became_a_replica_is_waited_for) {
    is_waited_for({}, [](redis_server &redis) {
        return outage{"READONLY", [&] { redis.command({"REPLICAOF", "127.0.0.1", "1"}); },
                      [&] { redis.command({"REPLICAOF", "NO", "ONE"}); }};
    });
}

TEST_F(Outage, a_replica_without_its_primary_is_waited_for) {
    is_waited_for({"replica-serve-stale-data no"}, [](redis_server &redis) {
        return outage{"MASTERDOWN", [&] { redis.command({"REPLICAOF", "127.0.0.1", "1"}); },
                      [&] { redis.command({"REPLICAOF", "NO", "ONE"}); }};
    });
}

TEST_F(Outage, a_server_that_cannot_save_is_waited_for) {
    is_waited_for({"save 3600 1000000"}, [](redis_server &redis) {
        auto dump = redis.directory() + "/dump.rdb";
        auto save_fails = [&redis](bool fails) {
            return eventually([&] {
                redis.command({"BGSAVE"});
                redis_reply reply = redis.command({"INFO", "persistence"});
                std::string_view about(reply->str, reply->len);
                return about.find(fails ? "rdb_last_bgsave_status:err" : "rdb_last_bgsave_status:ok") != about.npos &&
                       about.find("rdb_bgsave_in_progress:0") != about.npos;
            });
        };
        return outage{"MISCONF",
                      [=] {
                          mkdir(dump.c_str(), 0700);
                          mkdir((dump + "/full").c_str(), 0700);
                          ASSERT_TRUE(save_fails(true));
                      },
                      [=] {
                          std::filesystem::remove_all(dump);
                          ASSERT_TRUE(save_fails(false));
                      }};
    });
}

TEST_F(Outage, too_few_replicas_are_waited_for) {
    is_waited_for({}, [](redis_server &redis) {
        return outage{"NOREPLICAS", set(redis, "min-replicas-to-write", "1"), set(redis, "min-replicas-to-write", "0")};
    });
}

TEST_F(Outage, a_server_that_wants_a_password_is_waited_for) {
    is_waited_for({}, [](redis_server &redis) {
        return outage{"NOAUTH",
                      [&] {
                          redis.command({"CONFIG", "SET", "requirepass", "secret"});
                          kill_connections(redis);
                      },
                      set(redis, "requirepass", "")};
    });
}

TEST_F(Outage, too_many_clients_are_waited_for) {
    is_waited_for({}, [](redis_server &redis) {
        return outage{"max number of clients",
                      [&] {
                          redis.command({"CONFIG", "SET", "maxclients", "1"});
                          kill_connections(redis);
                      },
                      set(redis, "maxclients", "1000")};
    });
}

TEST_F(Outage, a_script_that_runs_for_ever_is_waited_for) {
    is_waited_for({"busy-reply-threshold 20"}, [](redis_server &redis) {
        auto runner = std::make_shared<std::thread>();
        return outage{"BUSY",
                      [&redis, runner] {
                          *runner = std::thread([path = redis.socket_path()] {
                              std::unique_ptr<redisContext, free_redis> connection(redisConnectUnix(path.c_str()));
                              redis_reply(static_cast<redisReply *>(redisCommand(connection.get(), "EVAL %s 0", "while true do end")));
                          });
                          ASSERT_TRUE(eventually([&] {
                              redis_reply reply = redis.command({"PING"});
                              return std::string_view(reply->str).starts_with("BUSY");
                          }));
                      },
                      [&redis, runner] {
                          redis.command({"SCRIPT", "KILL"});
                          runner->join();
                      }};
    });
}

TEST_F(Outage, a_cluster_that_is_down_is_waited_for) {
    redis_server redis(cluster_node);
    auto serves = [&redis] {
        redis.command({"CLUSTER", "ADDSLOTSRANGE", "0", "16383"});
        ASSERT_TRUE(eventually([&] {
            redis_reply reply = redis.command({"CLUSTER", "INFO"});
            return std::string_view(reply->str, reply->len).find("cluster_state:ok") != std::string_view::npos;
        }));
    };
    {
        running_consumer consumer(options_for(redis), [](class consumer &to) { to.on("wallet.created", [](const event &) {}); });
        ASSERT_TRUE(eventually([&] { return consumer.log().contain("CLUSTERDOWN"); }));
        expect_it_costs_little(redis, consumer);
        serves();
        ASSERT_TRUE(eventually([&] { return pending(redis, wallets, "billing") == 0; }));
    }
    is_waited_for_in_the_middle(
        redis, options_for(redis), {"CLUSTERDOWN", [&] { redis.command({"CLUSTER", "DELSLOTSRANGE", "0", "16383"}); }, serves});
}

// The file is read at every connect, so a password may be changed while the consumer runs; also one that is not there yet.
class Password : public Outage {
  protected:
    redis_server redis;
    std::string file = redis.directory() + "/password";

    consumer_options options() {
        auto options = options_for(redis);
        options.redis_password_file = file;
        return options;
    }
    void write(const std::string &password) const { std::ofstream(file) << password << "\n"; }
    void require(const std::string &password) {
        redis.command({"CONFIG", "SET", "requirepass", password});
        kill_connections(redis);
    }

    outage wrong_password() {
        write("old");
        redis.command({"CONFIG", "SET", "requirepass", "old"});
        return {"WRONGPASS", [this] { require("new"); }, [this] { write("new"); }};
    }
    outage no_file() {
        write("any");
        redis.command({"CONFIG", "SET", "requirepass", "any"});
        return {"password file",
                [this] {
                    std::filesystem::remove(file);
                    kill_connections(redis);
                },
                [this] { write("any"); }};
    }
};

TEST_F(Password, a_wrong_one_is_waited_for_at_the_start) { is_waited_for_at_the_start(redis, options(), wrong_password()); }
TEST_F(Password, a_new_one_is_waited_for_in_the_middle) { is_waited_for_in_the_middle(redis, options(), wrong_password()); }
TEST_F(Password, a_file_that_is_missing_is_waited_for_at_the_start) { is_waited_for_at_the_start(redis, options(), no_file()); }
TEST_F(Password, a_file_that_is_gone_is_waited_for_in_the_middle) { is_waited_for_in_the_middle(redis, options(), no_file()); }

TEST_F(Password, is_read_anew_and_never_logged) {
    write("first-secret");
    redis.command({"CONFIG", "SET", "requirepass", "first-secret"});
    notes handled;
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    append_many(redis, 1, 3, 0);
    ASSERT_TRUE(eventually([&] { return handled.count() == 3; }));
    require("second-secret");
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("WRONGPASS"); }));
    write("second-secret");
    append_many(redis, 4, 3, 0);
    ASSERT_TRUE(eventually([&] { return handled.count() == 6; }));
    EXPECT_FALSE(consumer.log().contain("secret"));
}

TEST_F(Outage, a_server_that_is_loading_is_waited_for) {
    // until it is told to be quick
    std::vector<std::string> slow{"key-load-delay 20000", "loading-process-events-interval-bytes 1024"};
    redis_server redis(slow);
    notes handled;
    gate hold;
    running_consumer consumer(options_for(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) {
            hold.pass();
            handled.take(number(event));
        });
    });
    append_many(redis, 1, 10, 0);
    ASSERT_TRUE(eventually([&] { return consumer->stats().held == 10 && hold.waiting() == 4; }));
    for (int i = 0; i < 700; ++i)
        redis.command("SET", "filler:" + std::to_string(i), std::string(100, 'x'));
    redis_reply saved = redis.command({"SAVE"}); // which also has who has what
    ASSERT_STREQ(saved->str, "OK");
    hold.open();
    auto before = std::chrono::steady_clock::now();
    auto noticed = std::async(std::launch::async, [&] {
        EXPECT_TRUE(eventually([&] { return consumer.log().contain("LOADING"); }));
        EXPECT_TRUE(eventually([&] {
            std::unique_ptr<redisContext, free_redis> connection(redisConnectUnix(redis.socket_path().c_str()));
            redis_reply reply(static_cast<redisReply *>(redisCommand(connection.get(), "CONFIG SET key-load-delay 0")));
            return reply != nullptr && reply->type == REDIS_REPLY_STATUS;
        }));
    });
    redis.restart(); // returns when it is through
    noticed.get();
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - before;
    EXPECT_LE(static_cast<double>(consumer.log().count()), 5 + 10 * took.count());
    ASSERT_TRUE(eventually([&] { return distinct(handled).size() == 10 && pending(redis, wallets, "billing") == 0; }));
    expect_no_harm(redis, consumer, handled, 10);
}

// Not supported, but no reason to spin or to lose anything.
TEST_F(Outage, streams_that_are_on_another_node_are_waited_for) {
    redis_server redis(cluster_node), other(cluster_node);
    auto id = [](redis_server &node) {
        redis_reply reply = node.command({"CLUSTER", "MYID"});
        return std::string(reply->str, reply->len);
    };
    redis_reply slot = redis.command({"CLUSTER", "KEYSLOT", wallets});
    long long at = slot->integer;
    redis.command("CLUSTER", "ADDSLOTSRANGE", 0, at - 1, at + 1, 16383);
    other.command("CLUSTER", "ADDSLOTS", at);
    redis.command("CLUSTER", "MEET", "127.0.0.1", other.port(), other.more_port());
    ASSERT_TRUE(eventually([&] {
        redis_reply reply = redis.command({"XLEN", wallets});
        return reply->type == REDIS_REPLY_ERROR && std::string_view(reply->str).starts_with("MOVED");
    }));
    notes handled;
    running_consumer consumer(options_for(redis), [&](class consumer &to) {
        to.on("wallet.created", [&](const event &event) { handled.take(number(event)); });
    });
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("MOVED"); }));
    expect_it_costs_little(redis, consumer);
    std::string gone = id(other);
    other.kill9();
    redis.command("CLUSTER", "FORGET", gone);
    redis.command("CLUSTER", "ADDSLOTS", at);
    ASSERT_TRUE(eventually([&] {
        redis_reply reply = redis.command({"XLEN", wallets});
        return reply->type == REDIS_REPLY_INTEGER;
    }));
    append_many(redis, 1, 10, 3);
    ASSERT_TRUE(eventually([&] { return handled.count() == 10 && pending(redis, wallets, "billing") == 0; }));
}

TEST_F(Outage, topics_on_several_slots_of_a_cluster_are_refused_without_spinning) {
    redis_server redis(cluster_node);
    redis.command({"CLUSTER", "ADDSLOTSRANGE", "0", "16383"});
    ASSERT_TRUE(eventually([&] {
        redis_reply reply = redis.command({"XLEN", wallets});
        return reply->type == REDIS_REPLY_INTEGER;
    }));
    auto options = options_for(redis);
    options.topics = {"order", "wallet"};
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("*", [](const event &) {});
    });
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("CROSSSLOT"); }));
    expect_it_costs_little(redis, consumer);
}

// One key is of no use; the others are.
class BrokenKey : public ::testing::Test {
  protected:
    redis_server redis;
    notes handled;

    consumer_options options() {
        auto options = quick_options(redis);
        options.topics = {"wallet", "order"};
        options.reconnect_max = 1s;
        return options;
    }
    auto handler() {
        return [this](class consumer &to) {
            to.on("*", [this](const event &event) { handled.take(std::string(event.topic()) + " " + number(event)); });
        };
    }
    void append_to(const std::string &topic, std::uint64_t n) {
        append(redis, {.id = event_id(n), .type = topic + ".created", .aggregate_id = std::to_string(n),
                       .payload = "{\"n\": " + std::to_string(n) + "}"});
    }
    // What is there is replaced by a text.
    void poison(const std::string &key) {
        redis.command({"DEL", key});
        redis.command({"SET", key, "no stream"});
    }
    void mend(const std::string &key) { redis.command({"DEL", key}); }
    bool done(const std::string &stream) { return pending(redis, stream, "billing") == 0; }
};

TEST_F(BrokenKey, a_topic_whose_key_is_no_stream_at_the_start_stops_no_other_topic) {
    poison(orders);
    running_consumer consumer(options(), handler());
    for (std::uint64_t n = 1; n <= 10; ++n)
        append_to("wallet", n);
    ASSERT_TRUE(eventually([&] { return handled.count() == 10 && done(wallets); }));
    EXPECT_TRUE(consumer.log().contain("WRONGTYPE"));
    EXPECT_LE(consumer.log().count(), 20u) << ::testing::PrintToString(consumer.log().all());
    mend(orders);
    append_to("order", 11);
    ASSERT_TRUE(eventually([&] { return handled.count("order 11") == 1 && done(orders); }));
    EXPECT_EQ(handled.count(), 11u);
}

TEST_F(BrokenKey, a_topic_whose_key_becomes_no_stream_stops_no_other_topic) {
    running_consumer consumer(options(), handler());
    append_to("order", 1);
    append_to("wallet", 2);
    ASSERT_TRUE(eventually([&] { return handled.count() == 2 && done(orders) && done(wallets); }));
    poison(orders);
    for (std::uint64_t n = 3; n <= 12; ++n)
        append_to("wallet", n);
    ASSERT_TRUE(eventually([&] { return handled.count() == 12 && done(wallets); }));
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("WRONGTYPE"); }));
    for (std::uint64_t n = 13; n <= 22; ++n)
        append_to("wallet", n);
    ASSERT_TRUE(eventually([&] { return handled.count() == 22 && done(wallets); }));
    mend(orders);
    append_to("order", 23);
    ASSERT_TRUE(eventually([&] { return handled.count("order 23") == 1 && done(orders); }));
}

TEST_F(BrokenKey, a_topic_that_the_user_may_not_read_stops_no_other_topic) {
    auto may = [this](const std::string &keys) {
        redis_reply reply = redis.command({"ACL", "SETUSER", "service", "reset", "on", ">secret", "+@all", keys});
        ASSERT_STREQ(reply->str, "OK");
    };
    may("~" + wallets + "*");
    auto options = this->options();
    options.redis_url = "unix://service:secret@" + redis.socket_path();
    append_to("order", 1);
    append_to("wallet", 2);
    running_consumer consumer(options, handler());
    ASSERT_TRUE(eventually([&] { return handled.count("wallet 2") == 1 && done(wallets); }));
    may("~*");
    ASSERT_TRUE(eventually([&] { return handled.count("order 1") == 1 && done(orders); }));
    may("~" + wallets + "*");
    append_to("order", 3);
    for (std::uint64_t n = 4; n <= 13; ++n)
        append_to("wallet", n);
    ASSERT_TRUE(eventually([&] { return handled.count() >= 12 && done(wallets); }));
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("NOPERM"); }));
    may("~*");
    ASSERT_TRUE(eventually([&] { return handled.count("order 3") == 1 && done(orders); }));
    EXPECT_EQ(handled.count(), 13u);
    EXPECT_EQ(consumer->stats().dead_lettered, 0u);
}

TEST_F(BrokenKey, a_redrive_stream_that_is_none_stops_no_topic) {
    poison(wallets + ":redrive:billing");
    running_consumer consumer(options(), handler());
    append_to("wallet", 1);
    append_to("order", 2);
    ASSERT_TRUE(eventually([&] { return handled.count() == 2 && done(wallets) && done(orders); }));
    mend(wallets + ":redrive:billing");
    append_to("wallet", 3);
    ASSERT_TRUE(eventually([&] { return handled.count() == 3 && pending(redis, wallets + ":redrive:billing", "billing") == 0; }));
}

TEST_F(BrokenKey, dead_letters_that_are_no_stream_keep_what_is_to_die_and_nothing_else) {
    const std::string dead = wallets + ":dlq:billing";
    poison(dead);
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("*", [&](const event &event) {
            handled.take(number(event));
            if (event.aggregate_id() == "1")
                throw reject("never");
        });
    });
    append_to("wallet", 1);
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("WRONGTYPE"); }));
    for (std::uint64_t n = 2; n <= 10; ++n)
        append_to("wallet", n);
    ASSERT_TRUE(eventually([&] { return handled.count() == 10 && pending(redis, wallets, "billing") == 1; }));
    mend(dead);
    ASSERT_TRUE(eventually([&] { return done(wallets); }));
    auto letters = dead_letters(redis.url(), "wallet", "billing").list();
    ASSERT_EQ(letters.size(), 1u);
    EXPECT_EQ(letters[0].error, "never");
    EXPECT_EQ(letters[0].attempts, 1);
    EXPECT_EQ(handled.count(), 10u);
    EXPECT_TRUE(eventually([&] { return consumer->stats().dead_lettered == 1; })); // the answer may be on its way
}

TEST_F(BrokenKey, attempts_that_cannot_be_written_down_are_not_made_until_they_can) {
    const std::string attempts = wallets + ":attempts:billing";
    running_consumer consumer(options(), [&](class consumer &to) {
        to.on("*", [&](const event &event) {
            handled.take(number(event) + " in attempt " + std::to_string(event.attempt()));
            if (event.attempt() == 1)
                throw std::runtime_error("again");
        });
    });
    poison(attempts);
    append_to("wallet", 1);
    append_to("order", 2);
    ASSERT_TRUE(eventually([&] { return handled.count("2 in attempt 2") == 1 && done(orders); }));
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("WRONGTYPE"); }));
    EXPECT_TRUE(eventually([&] { return handled.count("1 in attempt 1") == 1; }));
    EXPECT_EQ(handled.count("1 in attempt 2"), 0u);
    mend(attempts);
    ASSERT_TRUE(eventually([&] { return handled.count("1 in attempt 2") == 1 && done(wallets); }));
    EXPECT_EQ(handled.count(), 4u);
    EXPECT_EQ(consumer->stats().dead_lettered, 0u);
}

TEST_F(BrokenKey, a_mark_that_is_none_keeps_its_own_event_and_no_other) {
    const std::string mark = wallets + ":event:billing:" + event_id(5);
    redis.command({"RPUSH", mark, "no mark"});
    for (std::uint64_t n = 1; n <= 10; ++n)
        append_to("wallet", n);
    running_consumer consumer(options(), handler());
    ASSERT_TRUE(eventually([&] { return handled.count() == 9 && pending(redis, wallets, "billing") == 1; }));
    EXPECT_EQ(handled.count("wallet 5"), 0u);
    EXPECT_TRUE(consumer.log().contain("WRONGTYPE"));
    mend(mark);
    ASSERT_TRUE(eventually([&] { return handled.count("wallet 5") == 1 && done(wallets); }));
}

// What a consumer has pending and not in its hands is looked at when it connects; it must not be forgotten if that fails.
TEST_F(BrokenKey, what_could_not_be_taken_over_is_when_the_key_is_mended) {
    for (std::uint64_t n = 1; n <= 10; ++n)
        append_to("wallet", n);
    auto options = this->options();
    options.name = "again";
    options.claim_idle = 300ms;
    redis.command({"XGROUP", "CREATE", wallets, "billing", "0"});
    redis.command({"XREADGROUP", "GROUP", "billing", "again", "COUNT", "10", "STREAMS", wallets, ">"});
    poison(wallets + ":attempts:billing");
    running_consumer consumer(options, handler());
    ASSERT_TRUE(eventually([&] { return consumer.log().contain("WRONGTYPE"); }));
    append_to("order", 11);
    ASSERT_TRUE(eventually([&] { return handled.count() == 1 && done(orders); }));
    mend(wallets + ":attempts:billing");
    ASSERT_TRUE(eventually([&] { return handled.count() == 11 && done(wallets); }));
}

// README and scripts.hpp say which commands a consumer needs.
TEST_F(BrokenKey, a_user_who_may_do_only_what_is_needed_is_enough) {
    redis.command({"ACL", "SETUSER", "service", "reset", "on", ">secret", "~outbox:*", "-@all", "+del", "+get", "+hdel", "+hget",
                   "+hlen", "+hset", "+set", "+time", "+xack", "+xadd", "+xclaim", "+xdel", "+xgroup", "+xinfo", "+xlen",
                   "+xpending", "+xrange", "+xreadgroup", "+eval", "+evalsha"});
    auto options = this->options();
    options.redis_url = "unix://service:secret@" + redis.socket_path();
    options.rate_limit = 1000;
    options.inbox.clear();
    running_consumer consumer(options, [&](class consumer &to) {
        to.on("*", [&](const event &event) {
            handled.take(number(event));
            if (event.aggregate_id() == "5" && event.attempt() == 1)
                throw std::runtime_error("again");
            if (event.aggregate_id() == "6")
                throw reject("never");
        });
    });
    for (std::uint64_t n = 1; n <= 10; ++n)
        append_to("wallet", n);
    redis.command({"XGROUP", "CREATE", wallets, "billing", "0", "MKSTREAM"});
    ASSERT_TRUE(eventually([&] { return handled.count() == 11 && done(wallets); }));
    EXPECT_TRUE(consumer.stop());
    EXPECT_EQ(consumer->stats().dead_lettered, 1u);
    EXPECT_TRUE(names(redis, wallets, "billing").empty());
    for (const auto &line : consumer.log().all())
        EXPECT_EQ(line.find("NOPERM"), line.npos) << line;
}

} // namespace outbox::test

// The inbox against a real server: a handler's effects and its event's id are committed together or not at all, whatever the
// handler, the connection and the server do meanwhile.
#include <atomic>
#include <optional>
#include <thread>

#include <sys/socket.h>
#include <sys/un.h>

#include <gtest/gtest.h>

#include <outbox/emit.hpp>
#include <outbox/error.hpp>
#include <outbox/inbox.hpp>

#include "src/inbox.hpp"
#include "test/client/servers.hpp"

namespace outbox::test {
namespace {

using detail::inbox_connection;
using detail::inbox_unavailable;
using result = inbox_connection::result;

const event one_event({.id = "01a1fd51-24fc-713f-8abb-bbffb042aade",
                       .type = "wallet.created",
                       .aggregate_type = "",
                       .aggregate_id = "",
                       .occurred_at = "",
                       .headers = "",
                       .payload = "{}"},
                      "wallet", "1-0", 1, nullptr);

// What a handler would do: one effect.
void effect(transaction &tx) { session::sql(tx.connection(), "INSERT INTO effect DEFAULT VALUES"); }

class Inbox : public testing::Test {
  protected:
    Inbox() {
        inbox::create_schema(session_.get());
        session_.sql("CREATE TABLE effect (at timestamptz DEFAULT now())");
    }

    result run(const std::function<void(transaction &)> &handler) { return connection_.run("billing", one_event, handler); }

    // As another process would.
    result run_elsewhere() { return inbox_connection(database_.conninfo()).run("billing", one_event, effect); }

    // Effects and ids that are committed.
    std::string effects() { return session_.sql("SELECT count(*) FROM effect"); }
    std::string ids() { return session_.sql("SELECT count(*) FROM outbox_inbox.event"); }

    // What run() says of it; empty if it is content.
    std::string complaint(const std::function<void(transaction &)> &handler) {
        try {
            run(handler);
        } catch (const connection_error &) {
            ADD_FAILURE() << "the connection is not the trouble";
        } catch (const error &why) {
            return why.what();
        }
        return "";
    }

    // Whether a backend of this database comes to wait for such a thing.
    bool somebody_waits_for(const std::string &what) {
        return eventually([&] {
            return session_.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                                "AND wait_event = '" + what + "'") != "0";
        });
    }

    database database_;
    session session_ = database_.connect();
    inbox_connection connection_{database_.conninfo()};
};

TEST_F(Inbox, AnEventIsHandledOnceByEachGroup) {
    EXPECT_EQ(run(effect), result::handled);
    EXPECT_EQ(run([](transaction &) { FAIL() << "called for a duplicate"; }), result::duplicate);
    EXPECT_EQ(run_elsewhere(), result::duplicate);
    EXPECT_EQ(effects(), "1");
    EXPECT_EQ(connection_.run("mail", one_event, effect), result::handled);
    EXPECT_EQ(effects(), "2");
}

TEST_F(Inbox, WhatAHandlerDidBeforeItThrewIsUndone) {
    struct own_exception {};
    EXPECT_THROW(run([](transaction &tx) {
                     effect(tx);
                     throw own_exception();
                 }),
                 own_exception);
    EXPECT_EQ(effects() + ids(), "00");
    EXPECT_EQ(run(effect), result::handled);
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, EventsThatAHandlerEmitsAreAmongItsEffects) {
    EXPECT_THROW(run([](transaction &tx) {
                     emit(tx.connection(), {.type = "billing.opened"});
                     throw std::runtime_error("no");
                 }),
                 std::runtime_error);
    EXPECT_EQ(run([](transaction &tx) { emit(tx.connection(), {.type = "billing.opened"}); }), result::handled);
    EXPECT_EQ(session_.sql("SELECT count(*) FROM outbox.stored_event"), "1");
}

TEST_F(Inbox, TheSecondOfTwoWithTheSameEventWaitsAndFindsItDone) {
    std::optional<result> second;
    std::thread zombie;
    EXPECT_EQ(run([&](transaction &tx) {
                  effect(tx);
                  zombie = std::thread([&] { second = run_elsewhere(); });
                  EXPECT_TRUE(somebody_waits_for("transactionid"));
              }),
              result::handled);
    zombie.join();
    EXPECT_EQ(second, result::duplicate);
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, TheSecondOfTwoWithTheSameEventHandlesItIfTheFirstFails) {
    std::optional<result> second;
    std::thread zombie;
    EXPECT_THROW(run([&](transaction &tx) {
                     effect(tx);
                     zombie = std::thread([&] { second = run_elsewhere(); });
                     EXPECT_TRUE(somebody_waits_for("transactionid"));
                     throw std::runtime_error("no");
                 }),
                 std::runtime_error);
    zombie.join();
    EXPECT_EQ(second, result::handled);
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, ManyAtOnceHandleItOnce) {
    std::atomic<int> handled = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&] { handled += run_elsewhere() == result::handled; });
    for (auto &thread : threads)
        thread.join();
    EXPECT_EQ(handled, 1);
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, AHandlerThatEndsTheTransactionIsAnError) {
    for (std::string end : {"ROLLBACK", "ROLLBACK; BEGIN", "ROLLBACK AND CHAIN"}) {
        auto why = complaint([&](transaction &tx) {
            session::sql(tx.connection(), end);
            // in a transaction that began without the event's id
            if (PQtransactionStatus(tx.connection()) == PQTRANS_INTRANS)
                effect(tx);
        });
        EXPECT_NE(why.find("the handler ended the transaction"), why.npos) << end << ": " << why;
        EXPECT_EQ(effects() + ids(), "00") << end;
    }
    for (std::string end : {"COMMIT", "COMMIT; BEGIN", "COMMIT AND CHAIN"}) {
        auto why = complaint([&](transaction &tx) { session::sql(tx.connection(), end); });
        EXPECT_NE(why.find("the handler ended the transaction"), why.npos) << end << ": " << why;
        EXPECT_EQ(ids(), "1") << "committed by the handler, and nobody can take that back";
        session_.sql("TRUNCATE outbox_inbox.event");
    }
    EXPECT_EQ(run(effect), result::handled);
}

TEST_F(Inbox, AHandlerThatIgnoresAFailedStatementIsAnError) {
    auto why = complaint([](transaction &tx) {
        effect(tx);
        PQclear(PQexec(tx.connection(), "SELECT 1/0"));
    });
    EXPECT_NE(why.find("a statement of the handler failed"), why.npos) << why;
    EXPECT_EQ(effects() + ids(), "00");
    EXPECT_EQ(run(effect), result::handled);
}

TEST_F(Inbox, AHandlerThatLeavesAStatementUnfinishedIsAnError) {
    const std::vector<std::function<void(PGconn *)>> ways = {
        [](PGconn *connection) { ASSERT_EQ(PQsendQuery(connection, "SELECT 1"), 1); },
        [](PGconn *connection) { ASSERT_EQ(PQenterPipelineMode(connection), 1); },
        [](PGconn *connection) { PQclear(PQexec(connection, "COPY effect FROM STDIN")); },
    };
    for (const auto &way : ways) {
        auto why = complaint([&](transaction &tx) {
            effect(tx);
            way(tx.connection());
        });
        EXPECT_NE(why.find("unfinished"), why.npos) << why;
        EXPECT_THROW(run([&](transaction &tx) {
                         way(tx.connection());
                         throw std::runtime_error("no");
                     }),
                     std::runtime_error);
        EXPECT_TRUE(eventually([&] { return effects() + ids() == "00"; }));
    }
    EXPECT_EQ(run(effect), result::handled);
}

TEST_F(Inbox, SavepointsAreTheHandlersOwnBusiness) {
    EXPECT_EQ(run([](transaction &tx) {
                  effect(tx);
                  session::sql(tx.connection(), "SAVEPOINT a");
                  effect(tx);
                  PQclear(PQexec(tx.connection(), "SELECT 1/0"));
                  session::sql(tx.connection(), "ROLLBACK TO a");
              }),
              result::handled);
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, AConnectionThatBreaksInTheHandlerLeavesNothing) {
    auto terminate = [&](transaction &tx) {
        effect(tx);
        session_.sql("SELECT pg_terminate_backend(" + std::to_string(PQbackendPID(tx.connection())) + ", 60000)");
    };
    EXPECT_THROW(run(terminate), connection_error) << "noticed by COMMIT";
    EXPECT_THROW(run([&](transaction &tx) {
                     terminate(tx);
                     PQclear(PQexec(tx.connection(), "SELECT 1"));
                 }),
                 connection_error)
        << "noticed in the handler, which does not care";
    EXPECT_THROW(run([&](transaction &tx) {
                     terminate(tx);
                     effect(tx);
                 }),
                 std::runtime_error)
        << "noticed by the handler: its own exception";
    EXPECT_EQ(effects() + ids(), "00");
    EXPECT_EQ(run(effect), result::handled) << "on a new connection";
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, AConnectionThatBreaksInCommitLeavesTheEventToItsRedelivery) {
    session_.sql("CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                 "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60); RETURN NULL; END $$;"
                 "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED "
                 "FOR EACH ROW EXECUTE FUNCTION die()");
    EXPECT_THROW(run(effect), connection_error);
    EXPECT_EQ(effects() + ids(), "00");
    session_.sql("DROP TRIGGER die ON effect");
    EXPECT_EQ(run(effect), result::handled);
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, ACommitThatIsNeverConfirmedIsFoundByTheRedelivery) {
    // The server waits for a standby that does not exist, with the transaction committed already. That it waits although the
    // database does not ask for it shows that nothing weaker is good enough for the inbox.
    session_.sql("ALTER DATABASE " + database_.name() + " SET synchronous_commit = 'local'");
    session_.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    session_.sql("SELECT pg_reload_conf()");
    // commits wait once the checkpointer has read it, which it does before a checkpoint
    ASSERT_TRUE(eventually([&] { return session_.sql("SHOW synchronous_standby_names") == "nobody"; }));
    session_.sql("CHECKPOINT");
    std::atomic<int> backend = 0;
    std::thread thread([&] {
        EXPECT_THROW(run([&](transaction &tx) {
                         effect(tx);
                         backend = PQbackendPID(tx.connection());
                     }),
                     connection_error);
    });
    EXPECT_TRUE(eventually([&] {
        return session_.sql("SELECT wait_event FROM pg_stat_activity WHERE pid = " + std::to_string(backend)) == "SyncRep";
    }));
    session_.sql("SELECT pg_terminate_backend(" + std::to_string(backend) + ")");
    thread.join();
    session_.sql("ALTER SYSTEM RESET synchronous_standby_names");
    session_.sql("SELECT pg_reload_conf()");
    EXPECT_EQ(run(effect), result::duplicate);
    EXPECT_EQ(effects() + ids(), "11");
}

TEST_F(Inbox, AConnectionThatBrokeBetweenEventsIsNoTrouble) {
    int backend = 0;
    connection_.run("mail", one_event, [&](transaction &tx) { backend = PQbackendPID(tx.connection()); });
    session_.sql("SELECT pg_terminate_backend(" + std::to_string(backend) + ", 60000)");
    EXPECT_EQ(run(effect), result::handled);
    EXPECT_EQ(effects() + ids(), "12");
}

TEST_F(Inbox, WithoutAServerNoHandlerIsCalled) {
    auto &server = servers::instance().postgres;
    run(effect);
    server.stop();
    auto handler = [](transaction &) { FAIL() << "called without an inbox"; };
    for (int i = 0; i < 2; ++i)
        EXPECT_THROW(run(handler), inbox_unavailable);
    server.start();
    EXPECT_EQ(run(handler), result::duplicate);
}

TEST_F(Inbox, AnInboxThatRefusesIsNotTheEventsFault) {
    auto handler = [](transaction &) { FAIL() << "called without an inbox"; };
    session_.sql("ALTER SCHEMA outbox_inbox RENAME TO elsewhere");
    try {
        run(handler);
        ADD_FAILURE() << "nothing was thrown";
    } catch (const inbox_unavailable &why) {
        EXPECT_NE(std::string(why.what()).find("create_schema"), std::string::npos) << why.what();
    }
    session_.sql("ALTER SCHEMA elsewhere RENAME TO outbox_inbox");
    EXPECT_EQ(run(effect), result::handled) << "on the same connection";

    inbox_connection impatient(database_.conninfo() + " options='-c lock_timeout=50'");
    session_.sql("BEGIN; LOCK outbox_inbox.event");
    EXPECT_THROW(impatient.run("billing", one_event, handler), inbox_unavailable);
    session_.sql("COMMIT");
}

TEST_F(Inbox, ACommitThatFailsIsAnError) {
    session_.sql("CREATE TABLE single (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)");
    auto twice = [](transaction &tx) { session::sql(tx.connection(), "INSERT INTO single VALUES (1), (1)"); };
    try {
        run(twice);
        ADD_FAILURE() << "nothing was thrown";
    } catch (const reply_error &why) {
        EXPECT_EQ(why.code(), "23505");
    }
    EXPECT_EQ(ids(), "0");
    EXPECT_EQ(run(effect), result::handled);
}

TEST_F(Inbox, TheTransactionDoesNotDependOnTheDatabasesDefaults) {
    session_.sql("ALTER DATABASE " + database_.name() + " SET default_transaction_isolation = 'serializable'");
    session_.sql("ALTER DATABASE " + database_.name() + " SET default_transaction_read_only = on");
    session_.sql("ALTER DATABASE " + database_.name() + " SET client_encoding = 'LATIN1'");
    EXPECT_EQ(run([](transaction &tx) {
                  effect(tx);
                  EXPECT_EQ(session::sql(tx.connection(), "SHOW transaction_isolation"), "read committed");
                  EXPECT_EQ(session::sql(tx.connection(), "SHOW client_encoding"), "UTF8");
              }),
              result::handled);
}

TEST_F(Inbox, ACommitIsDurableWhateverElseIsAskedFor) {
    // Notes what holds in COMMIT.
    session_.sql("CREATE TABLE noted (durability text);"
                 "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                 "INSERT INTO noted VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;"
                 "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED "
                 "FOR EACH ROW EXECUTE FUNCTION note()");
    for (auto [asked, given] : {std::pair{"off", "on"},
                                {"local", "on"},
                                {"remote_write", "on"},
                                {"on", "on"},
                                {"remote_apply", "remote_apply"}}) {
        run([&, asked = asked](transaction &tx) {
            session::sql(tx.connection(), std::string("SET LOCAL synchronous_commit = ") + asked);
            effect(tx);
        });
        EXPECT_EQ(session_.sql("SELECT durability FROM noted"), given) << asked;
        session_.sql("TRUNCATE noted, outbox_inbox.event");
    }
}

TEST_F(Inbox, TheSearchPathIsTheHandlers) {
    session_.sql("CREATE SCHEMA trap; CREATE FUNCTION trap.equal(text, text) RETURNS bool LANGUAGE sql AS 'SELECT 1/0 = 1';"
                 "CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.equal);"
                 "CREATE OPERATOR trap.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.equal);"
                 "CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT 1/0 = 1; SELECT now()'");
    session_.sql("ALTER DATABASE " + database_.name() + " SET search_path = trap, pg_catalog, public");
    session trapped = database_.connect();
    inbox::create_schema(trapped.get());
    EXPECT_EQ(run(effect), result::handled);
    EXPECT_EQ(run(effect), result::duplicate);
    detail::save_position(trapped.get(), "billing", "wallet", "1-0");
    EXPECT_EQ(detail::load_position(trapped.get(), "billing", "wallet"), "1-0");
    EXPECT_EQ(inbox::purge(trapped.get(), std::chrono::seconds(0)), 1);
}

// the connection string

TEST(InboxConninfo, APasswordIsNeverQuoted) {
    for (std::string bad : {"host=db password=s3 cret", "host=db password=s3cret port=s3cret", "postgresql://u:s3@cret@db/x",
                            "postgresql://u:s3/cret@db/x", "postgresql://u:s3cret@db:s3cret/x", "s3cret", "postgresql://[s3cret"}) {
        try {
            inbox_connection connection(bad);
            ADD_FAILURE() << bad;
        } catch (const std::invalid_argument &why) {
            EXPECT_EQ(std::string(why.what()).find("cret"), std::string::npos) << why.what();
        }
    }
    for (std::string good : {"", "host=db password='s3@c/ret' dbname=a@b", "postgresql://u:s3%40cret@db,db2:5432,5433/x"})
        EXPECT_NO_THROW(detail::check_conninfo(good)) << good;
    try {
        inbox_connection("postgresql://u:s3cret@/x?host=/nonexistent").connection();
        ADD_FAILURE() << "connected";
    } catch (const connection_error &why) {
        std::string words = why.what();
        EXPECT_EQ(words.find("s3cret"), words.npos) << words;
        EXPECT_NE(words.find("/nonexistent"), words.npos) << words;
        EXPECT_EQ(words.find('\n'), words.npos) << words;
    }
}

TEST(InboxConninfo, AServerThatSaysNothingIsNotWaitedForWithoutEnd) {
    auto directory = (std::filesystem::temp_directory_path() / "outbox-silent-XXXXXX").string();
    ASSERT_NE(mkdtemp(directory.data()), nullptr);
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    (directory + "/.s.PGSQL.5432").copy(address.sun_path, sizeof address.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
    ASSERT_EQ(listen(listener, 5), 0);

    auto begin = std::chrono::steady_clock::now();
    EXPECT_THROW(inbox_connection("host=" + directory).connection(), connection_error);
    EXPECT_THROW(inbox_connection("connect_timeout=2 host=" + directory).connection(), connection_error);
    auto took = std::chrono::steady_clock::now() - begin;
    EXPECT_GE(took, std::chrono::seconds(5)) << "5 s by default, and 2";
    EXPECT_LT(took, std::chrono::seconds(60));
    close(listener);
    std::filesystem::remove_all(directory);
}

// the tables

class InboxSchema : public testing::Test {
  protected:
    database database_;
    session session_ = database_.connect();
};

TEST_F(InboxSchema, ItMayBeCreatedByManyAtOnceAndAgain) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&] {
            session mine = database_.connect();
            EXPECT_NO_THROW(inbox::create_schema(mine.get()));
        });
    for (auto &thread : threads)
        thread.join();
    EXPECT_NO_THROW(inbox::create_schema(session_.get()));
    EXPECT_EQ(session_.sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'outbox_inbox'::regnamespace"), "5");
}

TEST_F(InboxSchema, WhatIsMissingIsAdded) {
    inbox::create_schema(session_.get());
    session_.sql("DROP TABLE outbox_inbox.position; DROP INDEX outbox_inbox.event_handled_at");
    inbox::create_schema(session_.get());
    EXPECT_EQ(session_.sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'outbox_inbox'::regnamespace"), "5");
}

TEST_F(InboxSchema, OnlyTheFirstTimeNeedsTheRightToCreateIt) {
    session_.sql("CREATE ROLE service");
    session_.sql("SET ROLE service");
    try {
        inbox::create_schema(session_.get());
        ADD_FAILURE() << "created without the right";
    } catch (const reply_error &refused) {
        EXPECT_EQ(refused.code(), "42501");
    }
    session_.sql("RESET ROLE");
    inbox::create_schema(session_.get());
    session_.sql("SET ROLE service");
    EXPECT_NO_THROW(inbox::create_schema(session_.get()));
    session_.sql("RESET ROLE");
    session_.sql("DROP ROLE service");
}

TEST_F(InboxSchema, ItBelongsToATransactionThatIsOpen) {
    session_.sql("BEGIN");
    inbox::create_schema(session_.get());
    session_.sql("ROLLBACK");
    EXPECT_EQ(session_.sql("SELECT to_regnamespace('outbox_inbox') IS NULL"), "t");
}

class InboxPositions : public InboxSchema {
  protected:
    InboxPositions() { inbox::create_schema(session_.get()); }

    void save(std::string_view position) { detail::save_position(session_.get(), "billing", "wallet", position); }
    std::optional<std::string> load() { return detail::load_position(session_.get(), "billing", "wallet"); }
};

TEST_F(InboxPositions, TheyGoForwardByNumberAndNeverBack) {
    EXPECT_EQ(load(), std::nullopt);
    std::string highest;
    for (std::string next : {"9-9", "9-10", "9-18446744073709551615", "10-0", "1795251315972-3",
                             "18446744073709551615-18446744073709551615"}) {
        save(next);
        EXPECT_EQ(load(), next);
        if (!highest.empty())
            save(highest);
        EXPECT_EQ(load(), next) << "after " << highest;
        highest = next;
    }
}

TEST_F(InboxPositions, EachGroupHasItsOwnForEachTopic) {
    save("5-0");
    EXPECT_EQ(detail::load_position(session_.get(), "billing", "order"), std::nullopt);
    EXPECT_EQ(detail::load_position(session_.get(), "mail", "wallet"), std::nullopt);
    detail::save_position(session_.get(), "mail", "wallet", "3-0");
    EXPECT_EQ(load(), "5-0");
}

TEST_F(InboxPositions, OnlyAPositionIsSaved) {
    for (std::string bad : {"", "5", "5-", "-5", "5-x", "18446744073709551616-0"})
        EXPECT_THROW(save(bad), std::invalid_argument) << bad;
    EXPECT_EQ(load(), std::nullopt);
}

class InboxPurge : public InboxSchema {
  protected:
    InboxPurge() { inbox::create_schema(session_.get()); }

    void handled(int events, const std::string &ago) {
        session_.sql("INSERT INTO outbox_inbox.event (group_name, event_id, handled_at) "
                     "SELECT 'billing', gen_random_uuid(), now() - interval '" +
                     ago + "' FROM generate_series(1, " + std::to_string(events) + ")");
    }
    std::string left() { return session_.sql("SELECT count(*) FROM outbox_inbox.event"); }
};

TEST_F(InboxPurge, ItTakesWhatIsOlderAndLeavesTheRest) {
    handled(12'000, "2 days"); // some chunks, and all of one moment
    handled(100, "25 hours");
    handled(7, "23 hours");
    EXPECT_EQ(inbox::purge(session_.get(), std::chrono::hours(24)), 12'100);
    EXPECT_EQ(left(), "7");
    EXPECT_EQ(inbox::purge(session_.get(), std::chrono::hours(24)), 0);
    EXPECT_EQ(inbox::purge(session_.get(), std::chrono::seconds(0)), 7);
}

TEST_F(InboxPurge, SeveralAtOnceTakeEachRowOnce) {
    handled(30'000, "2 days");
    std::atomic<std::int64_t> purged = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            session mine = database_.connect();
            purged += inbox::purge(mine.get(), std::chrono::hours(24));
        });
    for (auto &thread : threads)
        thread.join();
    EXPECT_EQ(left(), "0");
    EXPECT_EQ(purged, 30'000);
}

TEST_F(InboxPurge, ItIsNoPartOfATransaction) {
    EXPECT_THROW(inbox::purge(session_.get(), std::chrono::seconds(-1)), std::invalid_argument);
    session_.sql("BEGIN");
    EXPECT_THROW(inbox::purge(session_.get(), std::chrono::seconds(0)), std::invalid_argument);
}

} // namespace
} // namespace outbox::test

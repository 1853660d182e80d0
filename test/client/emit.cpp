// outbox::emit against a real server: what is recorded, what is refused, and what a handler's emits carry.
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <outbox/emit.hpp>
#include <outbox/error.hpp>

#include "test/client/servers.hpp"

namespace outbox::test {
namespace {

using nlohmann::json;
using namespace std::string_literals;

class Emit : public testing::Test {
  protected:
    // The recorded events, in the order in which they will be published.
    std::vector<std::vector<std::string>> recorded(const std::string &columns) {
        return session_.rows("SELECT " + columns + " FROM outbox.stored_event ORDER BY seq");
    }

    json recorded_headers(const std::string &id) {
        auto text = session_.sql("SELECT headers FROM outbox.stored_event WHERE event_id = '" + id + "'");
        return text.empty() ? json() : json::parse(text);
    }

    // The SQLSTATE that it is refused with.
    template <typename Event> std::string refusal(const Event &event) {
        try {
            emit(session_.get(), event);
        } catch (const reply_error &refused) {
            return refused.code();
        }
        return "none";
    }

    database database_;
    session session_ = database_.connect();
    PGconn *connection_ = session_.get();
};

// An event as a handler would see it.
event being_handled(std::string_view headers = "") {
    return {{.id = "01a1fd51-24fc-713f-8abb-bbffb042aade",
             .type = "order.placed",
             .aggregate_type = "",
             .aggregate_id = "",
             .occurred_at = "",
             .headers = headers,
             .payload = "{}"},
            "order",
            "1-0",
            1,
            nullptr};
}

TEST_F(Emit, AnEventIsPublishedAsItWasGiven) {
    auto id = emit(connection_, {.type = "wallet.created",
                                 .payload = {{"wallet_id", "b67b7c40"}, {"owner", "Zo\u00eb \U0001f99a"}},
                                 .aggregate_id = "b67b7c40",
                                 .aggregate_type = "wallet",
                                 .version = 3,
                                 .headers = {{"tenant", "a"}},
                                 .topic = "money",
                                 .occurred_at = "2026-11-21T08:55:15.964060+01:00",
                                 .id = "01a1fd51-24fc-713f-8abb-bbffb042aade"});
    EXPECT_EQ(id, "01a1fd51-24fc-713f-8abb-bbffb042aade");
    EXPECT_EQ(session_.sql("SELECT outbox.flush()"), "t");
    auto entries = servers::instance().redis.command("XREVRANGE", "outbox:{money}", "+", "-", "COUNT", 1);
    ASSERT_EQ(entries->elements, 1u);
    std::vector<std::string> fields;
    const redisReply *texts = entries->element[0]->element[1];
    for (std::size_t i = 0; i < texts->elements; ++i)
        fields.emplace_back(texts->element[i]->str, texts->element[i]->len);
    EXPECT_EQ(fields, (std::vector<std::string>{
                          "event_id", id, "event_type", "wallet.created", "aggregate_type", "wallet", "aggregate_id", "b67b7c40",
                          "version", "3", "occurred_at", "2026-11-21T07:55:15.964060Z", "headers", R"({"tenant": "a"})",
                          "payload", "{\"owner\":\"Zo\u00eb \U0001f99a\",\"wallet_id\":\"b67b7c40\"}"}));
}

TEST_F(Emit, WhatIsLeftEmptyIsLeftToTheDatabase) {
    for (const json &headers : {json(), json::object()}) {
        auto id = emit(connection_, {.type = "wallet.created", .payload = json::object(), .headers = headers});
        EXPECT_EQ(session_.sql("SELECT (aggregate_id IS NULL AND aggregate_type IS NULL AND topic IS NULL AND headers IS NULL "
                               "AND occurred_at BETWEEN now() - interval '1 minute' AND now() AND version = 1)::text "
                               "FROM outbox.stored_event WHERE event_id = '" +
                               id + "'"),
                  "true");
    }
}

TEST_F(Emit, AnEventGoesWithItsTransaction) {
    session_.sql("BEGIN");
    emit(connection_, {.type = "wallet.created"});
    emit(connection_, std::vector<new_event>{{.type = "wallet.created"}, {.type = "wallet.closed"}});
    session_.sql("ROLLBACK");
    EXPECT_TRUE(recorded("event_type").empty());
}

TEST_F(Emit, ABatchKeepsItsOrder) {
    std::vector<new_event> events;
    for (int i = 0; i < 2000; ++i)
        events.push_back({.type = "wallet.changed", .payload = i, .aggregate_id = i % 3 == 0 ? "" : std::to_string(i)});
    auto ids = emit(connection_, events);
    auto rows = recorded("event_id, payload, aggregate_id");
    ASSERT_EQ(ids.size(), events.size());
    ASSERT_EQ(rows.size(), events.size());
    for (std::size_t i = 0; i < events.size(); ++i)
        ASSERT_EQ(rows[i], (std::vector<std::string>{ids[i], std::to_string(i), events[i].aggregate_id}));
}

TEST_F(Emit, AnEventWaitsUntilItIsDueAndCanBeTakenBack) {
    const std::string far = "2034-05-06T07:08:09Z";
    auto id = emit(connection_, {.type = "wallet.created", .payload = 1, .deliver_at = far});
    auto ids = emit(connection_, std::vector<new_event>{{.type = "wallet.created", .payload = 2, .deliver_at = far},
                                                        {.type = "wallet.created", .payload = 3},
                                                        {.type = "wallet.created", .payload = 4, .deliver_at = "2001-01-01T00:00:00Z"}});
    auto waiting = [this] {
        return session_.rows("SELECT event_id, payload FROM outbox.delayed_event WHERE deliver_at = '2034-05-06 07:08:09+00' ORDER BY seq");
    };
    EXPECT_EQ(waiting(), (std::vector<std::vector<std::string>>{{id, "1"}, {ids[0], "2"}}));
    EXPECT_EQ(recorded("event_id, payload"), (std::vector<std::vector<std::string>>{{ids[1], "3"}, {ids[2], "4"}}))
        << "without a time, or with one that has passed, at once";
    session_.sql("BEGIN");
    EXPECT_TRUE(cancel(connection_, id));
    session_.sql("ROLLBACK");
    EXPECT_EQ(waiting().size(), 2u) << "taken back with the transaction";
    EXPECT_TRUE(cancel(connection_, id));
    EXPECT_FALSE(cancel(connection_, id));
    EXPECT_FALSE(cancel(connection_, ids[1])) << "what is not delayed is there for good";
    EXPECT_EQ(waiting(), (std::vector<std::vector<std::string>>{{ids[0], "2"}}));
    EXPECT_THROW(cancel(connection_, "no uuid"), reply_error);
}

TEST_F(Emit, ADedupeKeyIsForOneEvent) {
    auto id = emit(connection_, {.type = "wallet.created", .payload = 1, .dedupe_key = "a 'quoted' key"});
    EXPECT_EQ(emit(connection_, {.type = "wallet.created", .payload = 2, .dedupe_key = "a 'quoted' key"}), id);
    auto ids = emit(connection_, std::vector<new_event>{{.type = "wallet.created", .payload = 3, .dedupe_key = "a 'quoted' key"},
                                                        {.type = "wallet.created", .payload = 4, .dedupe_key = "another"},
                                                        {.type = "wallet.created", .payload = 5, .dedupe_key = "another"},
                                                        {.type = "wallet.created", .payload = 6}});
    EXPECT_EQ(ids[0], id);
    EXPECT_EQ(ids[1], ids[2]);
    EXPECT_EQ(recorded("event_id, payload"),
              (std::vector<std::vector<std::string>>{{id, "1"}, {ids[1], "4"}, {ids[3], "6"}}));
}

TEST_F(Emit, ABatchIsEmittedWholeOrNotAtAll) {
    std::vector<new_event> events(10, {.type = "wallet.created"});
    events.back().type = "nothing";
    EXPECT_EQ(refusal(events), "22023");
    EXPECT_TRUE(recorded("event_type").empty());
}

TEST_F(Emit, AnEmptyBatchIsNothing) {
    EXPECT_TRUE(emit(connection_, std::span<const new_event>()).empty());
}

TEST_F(Emit, TextsAreNeverTakenForSql) {
    const std::string hostile = R"(a'b"c\d{},NULL,$1'); DROP TABLE x; -- )";
    const new_event event{.type = "wallet.created",
                          .payload = {{"text", hostile}},
                          .aggregate_id = hostile,
                          .aggregate_type = "NULL",
                          .headers = {{"text", hostile}}};
    emit(connection_, event);
    emit(connection_, std::vector<new_event>{event, event});
    auto rows = recorded("aggregate_id, aggregate_type, payload::json->>'text', headers::json->>'text'");
    EXPECT_EQ(rows, (std::vector<std::vector<std::string>>(3, {hostile, "NULL", hostile, hostile})));
}

TEST_F(Emit, WhatTheDatabaseRefusesCarriesItsSqlstate) {
    const std::vector<std::pair<new_event, std::string>> cases = {
        {{.type = "wallet"}, "22023"},
        {{.type = ""}, "22023"},
        {{.type = "wallet.created", .version = 0}, "22023"},
        {{.type = "wallet.created", .headers = {{"nested", {1, 2}}}}, "22023"},
        {{.type = "wallet.created", .headers = {1, 2}}, "22023"},
        {{.type = "wallet.created", .headers = json::array()}, "22023"},
        {{.type = "wallet.created", .topic = "a b"}, "22023"},
        {{.type = "wallet.created", .id = "no uuid"}, "22P02"},
        {{.type = "wallet.created", .occurred_at = "yesterday, more or less"}, "22007"},
        {{.type = "wallet.created", .deliver_at = "some day"}, "22007"},
        {{.type = "wallet.created", .deliver_at = "infinity"}, "22008"},
        {{.type = "wallet.created", .dedupe_key = std::string(257, 'k')}, "54000"},
        {{.type = "wallet.created", .payload = std::string(2'000'000, 'x')}, "54000"},
        {{.type = "wallet.created", .aggregate_id = "a\0b"s}, "22021"},
        {{.type = "wallet.created", .aggregate_id = "a\xff"}, "22021"},
    };
    const event outer = being_handled();
    for (bool in_handler : {false, true}) {
        std::optional<handling> scope;
        if (in_handler)
            scope.emplace(outer);
        for (const auto &[event, code] : cases) {
            EXPECT_EQ(refusal(event), code) << event.type;
            EXPECT_EQ(refusal(std::vector<new_event>{event}), code) << event.type;
        }
    }
    EXPECT_TRUE(recorded("event_type").empty());

    session_.sql("BEGIN READ ONLY");
    EXPECT_EQ(refusal(new_event{.type = "wallet.created"}), "25006");
    EXPECT_EQ(refusal(new_event{.type = "wallet.created"}), "25P02") << "in the transaction that this aborted";
    EXPECT_EQ(refusal(std::vector<new_event>{{.type = "wallet.created"}}), "25P02");
}

TEST_F(Emit, JsonThatIsNoUtf8IsRefusedBeforeTheTransactionIsHarmed) {
    session_.sql("BEGIN");
    const new_event bad_payload{.type = "wallet.created", .payload = {{"name", "\xff"}}};
    const new_event bad_headers{.type = "wallet.created", .headers = {{"name", "\xff"}}};
    for (const auto &event : {bad_payload, bad_headers}) {
        EXPECT_THROW(emit(connection_, event), std::invalid_argument);
        EXPECT_THROW(emit(connection_, std::vector<new_event>{{.type = "wallet.created"}, event}), std::invalid_argument);
    }
    emit(connection_, {.type = "wallet.closed"});
    session_.sql("COMMIT");
    EXPECT_EQ(recorded("event_type"), (std::vector<std::vector<std::string>>{{"wallet.closed"}}));
}

TEST_F(Emit, AConnectionThatWouldGarbleTheTextIsRefused) {
    PQsetClientEncoding(connection_, "LATIN1");
    EXPECT_THROW(emit(connection_, {.type = "wallet.created"}), std::invalid_argument);
    PQsetClientEncoding(connection_, "SQL_ASCII");
    emit(connection_, {.type = "wallet.created", .payload = "\u20ac"});
    PQsetClientEncoding(connection_, "UTF8");
    EXPECT_EQ(recorded("payload"), (std::vector<std::vector<std::string>>{{"\"\u20ac\""}}));
}

TEST_F(Emit, AConnectionThatIsNotReadyIsRefused) {
    const new_event event{.type = "wallet.created"};
    EXPECT_THROW(emit(nullptr, event), std::invalid_argument);

    ASSERT_EQ(PQsendQuery(connection_, "SELECT 1"), 1);
    EXPECT_THROW(emit(connection_, event), std::invalid_argument);
    while (PGresult *result = PQgetResult(connection_))
        PQclear(result);

    ASSERT_EQ(PQenterPipelineMode(connection_), 1);
    EXPECT_THROW(emit(connection_, event), std::invalid_argument);
    EXPECT_THROW(emit(connection_, std::span(&event, 1)), std::invalid_argument);
    ASSERT_EQ(PQexitPipelineMode(connection_), 1);

    emit(connection_, event);
}

TEST_F(Emit, ABrokenConnectionIsAConnectionError) {
    database_.connect().sql("SELECT pg_terminate_backend(" + std::to_string(PQbackendPID(connection_)) + ", 10000)");
    EXPECT_THROW(emit(connection_, {.type = "wallet.created"}), connection_error) << "as it is noticed";
    EXPECT_THROW(emit(connection_, {.type = "wallet.created"}), connection_error) << "and from then on";
    session_ = database_.connect();
    EXPECT_TRUE(recorded("event_type").empty());
}

TEST_F(Emit, InAHandlerItCarriesTheContextOfTheEventBeingHandled) {
    event first = being_handled();
    event later = being_handled(R"({"correlation_id": "42", "traceparent": "00-a-b-01", "tracestate": "x=1", "tenant": "t"})");
    {
        handling scope(first);
        EXPECT_EQ(recorded_headers(emit(connection_, {.type = "wallet.created"})),
                  (json{{"causation_id", first.id()}, {"correlation_id", first.id()}}));
    }
    {
        handling scope(later);
        const json context = {
            {"causation_id", later.id()}, {"correlation_id", "42"}, {"traceparent", "00-a-b-01"}, {"tracestate", "x=1"}};
        json with_own = context;
        with_own["own"] = 1;
        auto ids = emit(connection_, std::vector<new_event>{{.type = "wallet.created"},
                                                            {.type = "wallet.created", .headers = {{"own", 1}}}});
        EXPECT_EQ(recorded_headers(ids[0]), context);
        EXPECT_EQ(recorded_headers(ids[1]), with_own);
    }
    EXPECT_EQ(recorded_headers(emit(connection_, {.type = "wallet.created"})), json());
}

TEST_F(Emit, WhatAnEventSaysItselfWinsOverTheContext) {
    event outer = being_handled(R"({"correlation_id": "42", "traceparent": "00-a-b-01", "tracestate": "x=1"})");
    handling scope(outer);
    const json own = {{"causation_id", "mine"}, {"correlation_id", "mine"}, {"traceparent", "00-c-d-01"}};
    EXPECT_EQ(recorded_headers(emit(connection_, {.type = "wallet.created", .headers = own})), own)
        << "a trace of its own does not get the state of the other one";
}

TEST_F(Emit, ScopesNestAndAreOfTheirThread) {
    event outer = being_handled(R"({"correlation_id": "outer"})"), inner = being_handled(R"({"correlation_id": "inner"})");
    auto correlation = [this] {
        return recorded_headers(emit(connection_, {.type = "wallet.created"}))["correlation_id"];
    };
    handling scope(outer);
    {
        handling nested(inner);
        EXPECT_EQ(correlation(), "inner");
    }
    EXPECT_EQ(correlation(), "outer");
    std::thread([&] { EXPECT_EQ(correlation(), json()); }).join();
}

} // namespace
} // namespace outbox::test

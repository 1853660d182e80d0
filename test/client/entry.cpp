#include "src/entry.hpp"

#include "test/client/replies.hpp"

#include <outbox/error.hpp>

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

using namespace outbox::detail;
using namespace std::string_literals;
using outbox::event;
using outbox::malformed;

namespace {

using pairs = std::vector<std::pair<std::string, std::string>>;

pairs contract() {
    return {{"event_id", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"},
            {"event_type", "wallet.created"},
            {"aggregate_type", "wallet"},
            {"aggregate_id", "42"},
            {"version", "3"},
            {"occurred_at", "2026-11-21T08:55:15.964060Z"},
            {"headers", "{\"correlation_id\": \"c\"}"},
            {"payload", "{\"wallet_id\": 42}"}};
}

pairs with(const std::string &name, const std::string &value) {
    pairs fields = contract();
    for (auto &field : fields)
        if (field.first == name)
            field.second = value;
    return fields;
}

// The entry as it comes from Redis, and what was decoded from it.
struct entry {
    explicit entry(const pairs &fields) {
        std::string bytes = "*" + std::to_string(2 * fields.size()) + "\r\n";
        for (const auto &[name, value] : fields)
            bytes += outbox::test::bulk(name) + outbox::test::bulk(value);
        reply = connection.read(bytes);
        result = decode(*reply);
    }

    outbox::test::reader connection;
    outbox::test::reader::reply reply;
    decoded result;
};

void expect_contract(const decoded &result) {
    EXPECT_EQ(result.reason, "");
    EXPECT_EQ(result.fields.id, "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    EXPECT_EQ(result.fields.type, "wallet.created");
    EXPECT_EQ(result.fields.aggregate_type, "wallet");
    EXPECT_EQ(result.fields.aggregate_id, "42");
    EXPECT_EQ(result.fields.version, 3);
    EXPECT_EQ(result.fields.occurred_at, "2026-11-21T08:55:15.964060Z");
    EXPECT_EQ(result.fields.headers, "{\"correlation_id\": \"c\"}");
    EXPECT_EQ(result.fields.payload, "{\"wallet_id\": 42}");
}

TEST(Entry, the_eight_fields_make_an_event) {
    entry entry(contract());
    expect_contract(entry.result);
    EXPECT_EQ(entry.result.first_position, "");
}

TEST(Entry, fields_are_views_into_the_reply) {
    entry entry(contract());
    EXPECT_EQ(entry.result.fields.payload.data(), entry.reply->element[15]->str);
}

TEST(Entry, a_redriven_entry_says_where_it_was_at_first) {
    pairs fields = contract();
    fields.insert(fields.begin(), {"outbox_position", "5-1"});
    entry entry(fields);
    expect_contract(entry.result);
    EXPECT_EQ(entry.result.first_position, "5-1");
}

TEST(Entry, order_does_not_matter_and_unknown_fields_are_ignored) {
    pairs fields = contract();
    pairs mixed = {{"", ""}, {"event_idx", "x"}, {"outbox_position", "5-1"}};
    for (auto field = fields.rbegin(); field != fields.rend(); ++field) {
        mixed.push_back(*field);
        mixed.emplace_back("more of " + field->first, "y");
    }
    entry entry(mixed);
    expect_contract(entry.result);
    EXPECT_EQ(entry.result.first_position, "5-1");
}

TEST(Entry, the_first_of_two_alike_counts) {
    pairs fields = contract();
    fields.emplace_back("payload", "\"second\"");
    fields.emplace_back("event_id", "x");
    fields.insert(fields.begin() + 1, {"event_id", "y"});
    expect_contract(entry(fields).result);

    fields.emplace_back("outbox_position", "1-1");
    fields.emplace_back("outbox_position", "2-2");
    EXPECT_EQ(entry(fields).result.first_position, "1-1");
}

TEST(Entry, a_missing_field_is_named) {
    for (std::size_t i = 0; i < 8; ++i) {
        pairs fields = contract();
        std::string name = fields[i].first;
        fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(i));
        EXPECT_EQ(entry(fields).result.reason, "the field \"" + name + "\" is missing");
    }
    EXPECT_EQ(entry(pairs()).result.reason, "the field \"event_id\" is missing");
    EXPECT_EQ(entry(pairs{{"hello", "world"}}).result.reason, "the field \"event_id\" is missing");
}

TEST(Entry, a_malformed_entry_still_has_the_fields_that_were_found) {
    pairs fields = contract();
    fields.erase(fields.begin() + 1);
    entry entry(fields);
    EXPECT_NE(entry.result.reason, "");
    EXPECT_EQ(entry.result.fields.id, "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    EXPECT_EQ(entry.result.fields.payload, "{\"wallet_id\": 42}");
    EXPECT_EQ(entry.result.fields.version, 3);
}

TEST(Entry, absent_is_an_empty_string) {
    for (const char *name : {"aggregate_type", "aggregate_id", "occurred_at", "headers"})
        EXPECT_EQ(entry(with(name, "")).result.reason, "") << name;
}

TEST(Entry, the_id_is_a_uuid) {
    EXPECT_EQ(entry(with("event_id", "017F22E2-79B0-7CC3-98C4-DC0C0C07398F")).result.reason, "");
    for (const std::string &id :
         {""s, "x"s, "017f22e279b07cc398c4dc0c0c07398f"s, "017f22e2-79b0-7cc3-98c4-dc0c0c07398"s,
          "017f22e2-79b0-7cc3-98c4-dc0c0c07398ff"s, "017f22e2-79b0-7cc3-98c4-dc0c0c07398g"s,
          "017f22e2--79b07cc3-98c4-dc0c0c07398f"s, "{17f22e2-79b0-7cc3-98c4-dc0c0c07398}"s})
        EXPECT_EQ(entry(with("event_id", id)).result.reason,
                  "the event_id \"" + id + "\" is not a UUID");
}

TEST(Entry, the_type_is_an_event_type) {
    for (const std::string &type : {""s, "wallet"s, "wallet."s, "a b.c"s, "a.*"s})
        EXPECT_EQ(entry(with("event_type", type)).result.reason,
                  "the event_type \"" + type + "\" is not an event type");
}

TEST(Entry, the_version_is_a_number_from_1_on) {
    EXPECT_EQ(entry(with("version", "2147483647")).result.fields.version, 2147483647);
    for (const std::string &version :
         {""s, "0"s, "-1"s, "x"s, "1x"s, " 1"s, "+1"s, "1.0"s, "2147483648"s}) {
        entry entry(with("version", version));
        EXPECT_EQ(entry.result.reason, "the version \"" + version + "\" is not a number from 1 on");
        EXPECT_EQ(entry.result.fields.version, 1);
    }
}

TEST(Entry, the_payload_is_not_empty) {
    EXPECT_EQ(entry(with("payload", "")).result.reason, "the payload is empty");
}

TEST(Entry, a_reason_is_short_and_printable) {
    std::string reason =
        entry(with("event_type", "a\r\nb" + std::string(10'000'000, '\x1b'))).result.reason;
    EXPECT_LT(reason.size(), 500u);
    for (char c : reason)
        EXPECT_TRUE(c >= ' ' && c <= '~');
    EXPECT_NE(reason.find("a\\x0d\\x0ab"), std::string::npos);
}

TEST(Entry, what_is_no_list_of_strings_is_malformed) {
    outbox::test::reader connection;
    for (const char *bytes : {"$-1\r\n", ":1\r\n", "*1\r\n$8\r\nevent_id\r\n", "*2\r\n*0\r\n:3\r\n",
                              "*2\r\n$8\r\nevent_id\r\n*0\r\n"})
        EXPECT_NE(decode(*connection.read(bytes)).reason, "") << bytes;
}

// JSON

TEST(EntryJson, headers_are_an_object_or_empty_and_the_payload_is_anything) {
    for (const char *payload :
         {"{}", "[]", "null", "1", "\"x\"", " {\"a\": [1, 2.5e3, {\"b\": \"\\u00e9\"}]} "})
        EXPECT_EQ(check_json({.headers = "", .payload = payload}), "") << payload;
    for (const char *headers : {"", "{}", " {\"a\": {\"b\": [null]}} "})
        EXPECT_EQ(check_json({.headers = headers, .payload = "1"}), "") << headers;
    for (const char *headers : {"[]", "null", "1", "-1", "1.5", "true", "\"x\"", "[{}]"})
        EXPECT_EQ(check_json({.headers = headers, .payload = "1"}),
                  "the headers are not a JSON object")
            << headers;
}

TEST(EntryJson, what_is_not_json_says_where) {
    EXPECT_EQ(check_json({.payload = "{\"a\": nope}"}), "the payload is not JSON (byte 8)");
    EXPECT_EQ(check_json({.headers = "{]", .payload = "1"}), "the headers are not JSON (byte 2)");
    for (const std::string &payload : {""s, " "s, "{"s, "{} {}"s, "{'a': 1}"s, "[1,]"s, "\"\xff\""s,
                                       "nul"s, "01"s, "1e400"s, "{}\0"s, "\0"s, "\"\n\""s})
        EXPECT_TRUE(check_json({.payload = payload}).starts_with("the payload is not JSON (byte "))
            << payload;
}

TEST(EntryJson, no_reason_quotes_the_payload) {
    EXPECT_EQ(check_json({.payload = "{\"password\": \"secret"}).find("secret"), std::string::npos);
}

TEST(EntryJson, what_nests_too_deep_for_a_stack_is_refused) {
    auto nested = [](std::size_t levels) {
        return std::string(levels, '[') + std::string(levels, ']');
    };
    EXPECT_EQ(check_payload(nested(1000)), "");
    EXPECT_EQ(check_payload(nested(1001)), "the payload is nested deeper than 1000 levels");
    EXPECT_EQ(check_payload(nested(1'000'000)), "the payload is nested deeper than 1000 levels");
    EXPECT_EQ(check_headers("{\"a\":" + nested(1000) + "}"),
              "the headers are nested deeper than 1000 levels");
    std::string wide = "[";
    for (int i = 0; i < 5000; ++i)
        wide += "{\"a\":[]},";
    EXPECT_EQ(check_payload(wide + "1]"), "");
}

// times

using std::chrono::microseconds;

TEST(EntryTime, is_rfc_3339_in_utc) {
    const struct {
        const char *text;
        long long unix_us;
    } table[] = {
        {"1970-01-01T00:00:00Z", 0},
        {"2026-11-21T08:55:15.964060Z", 1795251315964060},
        {"2026-11-21T08:55:15.96406Z", 1795251315964060},
        {"2026-11-21T08:55:15.964060999Z", 1795251315964060},
        {"2026-11-21T08:55:15.9Z", 1795251315900000},
        {"1969-12-31T23:59:59.999999Z", -1},
        {"0001-01-01T00:00:00.000000Z", -62135596800000000},
        {"9999-12-31T23:59:59.999999Z", 253402300799999999},
        {"2024-02-29T00:00:00Z", 1709164800000000},
    };
    for (const auto &row : table) {
        std::chrono::sys_time<microseconds> time;
        ASSERT_TRUE(parse_time(row.text, time)) << row.text;
        EXPECT_EQ(time.time_since_epoch().count(), row.unix_us) << row.text;
    }
}

TEST(EntryTime, anything_else_is_no_time) {
    for (const char *text : {"",
                             "Z",
                             "2026-11-21",
                             "2026-11-21T08:55:15",
                             "2026-11-21 08:55:15Z",
                             "2026-11-21T08:55:15+00:00",
                             "2026-11-21T08:55:15z",
                             "2026-11-21T08:55:15.Z",
                             "2026-11-21T08:55:15.1234567890Z",
                             "2026-11-21T08:55:15.12x4Z",
                             "2026-11-21T08:55:15,5Z",
                             "2026-02-29T00:00:00Z",
                             "2026-13-01T00:00:00Z",
                             "2026-00-01T00:00:00Z",
                             "2026-01-00T00:00:00Z",
                             "2026-04-31T00:00:00Z",
                             "2026-11-21T24:00:00Z",
                             "2026-11-21T08:60:15Z",
                             "2026-11-21T08:55:60Z",
                             "+026-11-21T08:55:15Z",
                             "2026-11-21T08:55:1Z",
                             "02026-11-21T08:55:15Z",
                             "2026-11-21T08:55:15ZZ",
                             " 2026-11-21T08:55:15Z",
                             "2026-11-21T08:55:-1Z"}) {
        std::chrono::sys_time<microseconds> time;
        EXPECT_FALSE(parse_time(text, time)) << text;
    }
}

// aggregates

TEST(EntryAggregate, its_key_is_unmistakable) {
    auto key = [](std::string_view type, std::string_view id) {
        return aggregate_key({.aggregate_type = type, .aggregate_id = id});
    };
    EXPECT_EQ(key("wallet", "42"), "6:wallet42");
    EXPECT_NE(key("a", "bc"), key("ab", "c"));
    EXPECT_NE(key("", "1:a"), key("a", "1"));
    EXPECT_EQ(key("wallet", ""), "");
    EXPECT_NE(key("", "42"), "");
}

TEST(EntryAggregate, its_hash_tells_type_from_id) {
    EXPECT_EQ(aggregate_hash("wallet", ""), 0u);
    EXPECT_NE(aggregate_hash("", "42"), 0u);
    EXPECT_EQ(aggregate_hash("wallet", "42"), aggregate_hash("wallet"s, "42"s));
    EXPECT_NE(aggregate_hash("a", "bc"), aggregate_hash("ab", "c"));
    EXPECT_NE(aggregate_hash("a", "b"), aggregate_hash("b", "a"));
    EXPECT_NE(aggregate_hash("a", "a"), aggregate_hash("b", "b"));
}

// what a handler sees

event made(event::fields fields) {
    fields.id = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
    return {fields, "wallet", "5-0", 1, nullptr};
}

template <typename F> std::string why(F function) {
    try {
        function();
    } catch (const malformed &error) {
        return error.what();
    }
    return {};
}

TEST(Event, json_is_parsed_once) {
    event event = made({.headers = "{\"a\": 1}", .payload = "{\"wallet_id\": 42}"});
    EXPECT_EQ(event.payload().at("wallet_id"), 42);
    EXPECT_EQ(&event.payload(), &event.payload());
    EXPECT_EQ(&event.headers(), &event.headers());
    outbox::event copy = event;
    EXPECT_EQ(&copy.payload(), &event.payload());
}

TEST(Event, what_is_malformed_says_so) {
    EXPECT_EQ(why([] { made({.payload = "{"}).payload(); }), "the payload is not JSON (byte 2)");
    EXPECT_EQ(why([] { made({.headers = "[]"}).headers(); }), "the headers are not a JSON object");
    EXPECT_EQ(why([] { made({.headers = "{"}).header("a"); }), "the headers are not JSON (byte 2)");
    EXPECT_EQ(why([] { made({.headers = "3"}).correlation_id(); }),
              "the headers are not a JSON object");
    EXPECT_EQ(why([] { made({.occurred_at = "yesterday\n"}).occurred_at(); }),
              "occurred_at \"yesterday\\x0a\" is not a time in RFC 3339 and UTC");
}

TEST(Event, a_header_is_a_string_or_json_text) {
    event event = made({.headers = R"({"s": "text", "n": 1, "o": {"a": [true]}, "z": null})"});
    EXPECT_EQ(event.header("s"), "text");
    EXPECT_EQ(event.header("n"), "1");
    EXPECT_EQ(event.header("o"), "{\"a\":[true]}");
    EXPECT_EQ(event.header("z"), "null");
    EXPECT_EQ(event.header("x"), std::nullopt);
    EXPECT_EQ(made({}).header("x"), std::nullopt);
    EXPECT_EQ(made({}).headers(), nlohmann::json::object());
}

TEST(Event, one_without_a_correlation_starts_one) {
    EXPECT_EQ(made({.headers = R"({"correlation_id": "c"})"}).correlation_id(), "c");
    EXPECT_EQ(made({.headers = R"({"correlation_id": 7})"}).correlation_id(), "7");
    for (const char *headers :
         {"", "{}", R"({"correlation_id": null})", R"({"correlation_id": ""})"})
        EXPECT_EQ(made({.headers = headers}).correlation_id(),
                  "017f22e2-79b0-7cc3-98c4-dc0c0c07398f")
            << headers;
}

TEST(Event, its_time_is_a_time) {
    EXPECT_EQ(made({.occurred_at = "1970-01-01T00:00:01.5Z"}).occurred_at().time_since_epoch(),
              microseconds(1'500'000));
}

TEST(Event, it_keeps_the_memory_that_it_looks_at) {
    auto text = std::make_shared<std::string>("{\"a\": \"" + std::string(1000, 'x') + "\"}");
    event::fields fields;
    fields.payload = *text;
    event one(fields, "wallet", "5-0", 1, text);
    text.reset();
    event two = one;
    EXPECT_EQ(two.payload_text().size(), 1009u);
    EXPECT_EQ(two.payload().at("a").get<std::string>(), std::string(1000, 'x'));
}

} // namespace

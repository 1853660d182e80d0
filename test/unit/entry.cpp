#include "bgworker/entry.hpp"

#include "test/unit/resp_parser.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

using namespace outbox;
using outbox_test::command;
using outbox_test::parse_commands;

namespace {

constexpr unsigned char some_id[16] = {0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0, 0x7c, 0xc3,
                                       0x98, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f};
constexpr char some_id_text[] = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";

entry_fields some_entry() {
    entry_fields fields = {};
    fields.topic = "wallet";
    fields.at = {1790000000000, 3};
    fields.must_exist = false;
    fields.event_id = some_id;
    fields.event_type = "wallet.created";
    fields.aggregate_type = "wallet";
    fields.aggregate_id = "b67b7c40";
    fields.version = 2;
    fields.occurred_at_us = INT64_C(1645557742123456);
    fields.headers = "{\"traceparent\": \"00-1\"}";
    fields.payload = "{\"wallet_id\":\"b67b7c40\"}";
    return fields;
}

command encoded(const entry_fields &fields) {
    std::string text, answers;
    append_entry(text, answers, fields);
    std::vector<command> commands;
    EXPECT_TRUE(parse_commands(text, commands)) << text;
    return commands.size() == 1 ? commands[0] : command();
}

// -- the stream contract

TEST(entry, has_the_eight_fields_in_their_order) {
    EXPECT_EQ(encoded(some_entry()),
              (command{"XADD", "outbox:{wallet}", "1790000000000-3", "event_id", some_id_text, "event_type", "wallet.created",
                       "aggregate_type", "wallet", "aggregate_id", "b67b7c40", "version", "2", "occurred_at",
                       "2022-02-22T19:22:22.123456Z", "headers", "{\"traceparent\": \"00-1\"}", "payload",
                       "{\"wallet_id\":\"b67b7c40\"}"}));
}

TEST(entry, what_is_absent_is_an_empty_string) {
    entry_fields fields = some_entry();
    fields.aggregate_type = fields.aggregate_id = fields.headers = {};
    command sent = encoded(fields);
    ASSERT_EQ(sent.size(), 19u);
    EXPECT_EQ(sent[7], "aggregate_type");
    EXPECT_EQ(sent[8], "");
    EXPECT_EQ(sent[10], "");
    EXPECT_EQ(sent[16], "");
}

TEST(entry, does_not_create_a_stream_that_must_exist) {
    entry_fields fields = some_entry();
    command plain = encoded(fields);
    fields.must_exist = true;
    command careful = encoded(fields);
    ASSERT_EQ(careful.size(), 20u);
    EXPECT_EQ(careful[2], "NOMKSTREAM");
    careful.erase(careful.begin() + 2);
    EXPECT_EQ(careful, plain);
}

TEST(entry, is_safe_for_any_bytes) {
    using namespace std::string_view_literals;
    entry_fields fields = some_entry();
    fields.aggregate_id = "x\r\n*1\r\n$8\r\nFLUSHALL\r\n"sv;
    fields.aggregate_type = "\0\xff"sv;
    fields.payload = "\"\\u0000\r\n\xf0\x9f\x92\xb8\""sv;
    command sent = encoded(fields);
    ASSERT_EQ(sent.size(), 19u);
    EXPECT_EQ(sent[8], fields.aggregate_type);
    EXPECT_EQ(sent[10], fields.aggregate_id);
    EXPECT_EQ(sent[18], fields.payload);
}

TEST(entry, key_holds_topics_of_any_length) {
    for (std::size_t length : {1, 9, 90, 91, 92, 100}) {
        entry_fields fields = some_entry();
        std::string topic(length, 't');
        fields.topic = topic;
        EXPECT_EQ(encoded(fields)[1], "outbox:{" + topic + "}");
    }
}

TEST(entry, version_is_any_integer) {
    entry_fields fields = some_entry();
    for (std::int32_t version : {1, 10, INT32_MAX, INT32_MIN}) {
        fields.version = version;
        EXPECT_EQ(encoded(fields)[12], std::to_string(version));
    }
}

TEST(entry, commands_that_read_back) {
    std::string text;
    append_xrange(text, "wallet", "(5-1", "+", 100, {});
    append_xinfo(text, "a.b", {});
    std::vector<command> commands;
    ASSERT_TRUE(parse_commands(text, commands));
    EXPECT_EQ(commands, (std::vector<command>{{"XRANGE", "outbox:{wallet}", "(5-1", "+", "COUNT", "100"},
                                              {"XINFO", "STREAM", "outbox:{a.b}"}}));
}

// -- times

std::string rfc3339(std::int64_t unix_us) {
    char text[28];
    std::memset(text, '#', sizeof text);
    std::size_t length = print_rfc3339(unix_us, text);
    EXPECT_LT(length, sizeof text);
    EXPECT_EQ(text[length], '#') << "wrote more than it says";
    return std::string(text, length);
}

std::int64_t us_of(int year, unsigned month, unsigned day, std::int64_t us_of_day = 0) {
    using namespace std::chrono;
    auto days = sys_days(std::chrono::year(year) / month / day).time_since_epoch().count();
    return static_cast<std::int64_t>(days) * INT64_C(86400000000) + us_of_day;
}

TEST(rfc3339, known_instants) {
    EXPECT_EQ(rfc3339(0), "1970-01-01T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(1), "1970-01-01T00:00:00.000001Z");
    EXPECT_EQ(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
    EXPECT_EQ(rfc3339(-1000000), "1969-12-31T23:59:59.000000Z");
    EXPECT_EQ(rfc3339(INT64_C(-14182940000000)), "1969-07-20T20:17:40.000000Z");
    EXPECT_EQ(rfc3339(INT64_C(1645557742123456)), "2022-02-22T19:22:22.123456Z");
    EXPECT_EQ(rfc3339(INT64_C(2147483648000000)), "2038-01-19T03:14:08.000000Z");
}

TEST(rfc3339, the_first_and_the_last_that_emit_accepts) {
    EXPECT_EQ(rfc3339(us_of(1, 1, 1)), "0001-01-01T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(INT64_C(-62135596800000000)), "0001-01-01T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(INT64_C(253402300799999999)), "9999-12-31T23:59:59.999999Z");
}

TEST(rfc3339, leap_days) {
    EXPECT_EQ(rfc3339(INT64_C(951782400000000)), "2000-02-29T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(INT64_C(951868800000000)), "2000-03-01T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(us_of(2024, 2, 28, INT64_C(86399999999)) + 1), "2024-02-29T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(us_of(2023, 2, 28, INT64_C(86399999999)) + 1), "2023-03-01T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(us_of(1900, 2, 28, INT64_C(86399999999)) + 1), "1900-03-01T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(us_of(2100, 3, 1) - 1), "2100-02-28T23:59:59.999999Z");
    EXPECT_EQ(rfc3339(us_of(4, 2, 29)), "0004-02-29T00:00:00.000000Z");
    EXPECT_EQ(rfc3339(us_of(2024, 12, 31, INT64_C(86399999999))), "2024-12-31T23:59:59.999999Z");
}

TEST(rfc3339, every_day_of_ten_thousand_years) {
    std::int64_t us = us_of(1, 1, 1);
    for (auto day = std::chrono::sys_days(std::chrono::year(1) / 1 / 1); day < std::chrono::sys_days(std::chrono::year(10000) / 1 / 1);
         day += std::chrono::days(1), us += INT64_C(86400000000)) {
        std::chrono::year_month_day date(day);
        char expected[32];
        std::snprintf(expected, sizeof expected, "%04d-%02u-%02uT00:00:00.000000Z", static_cast<int>(date.year()),
                      static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()));
        char text[28];
        ASSERT_EQ(std::string(text, print_rfc3339(us, text)), expected);
    }
}

TEST(rfc3339, sorts_as_the_times_do) {
    std::mt19937_64 random(20260121);
    std::uniform_int_distribution<std::int64_t> any(INT64_C(-62135596800000000), INT64_C(253402300799999999));
    for (int i = 0; i < 2000; ++i) {
        std::int64_t one = any(random), other = any(random);
        EXPECT_EQ(one < other, rfc3339(one) < rfc3339(other));
    }
}

// -- ids

TEST(uuid_text, survives_printing_and_parsing) {
    char text[37] = {};
    text[36] = '#';
    print_uuid(some_id, text);
    EXPECT_EQ(std::string_view(text, 37), std::string(some_id_text) + '#');
    std::mt19937 random(20260121);
    for (int i = 0; i < 1000; ++i) {
        unsigned char id[16], back[16];
        for (auto &byte : id)
            byte = static_cast<unsigned char>(random());
        print_uuid(id, text);
        ASSERT_TRUE(parse_uuid(std::string_view(text, 36), back));
        EXPECT_EQ(std::memcmp(id, back, 16), 0);
    }
}

TEST(uuid_text, upper_case_is_the_same) {
    unsigned char id[16];
    ASSERT_TRUE(parse_uuid("017F22E2-79B0-7CC3-98C4-DC0C0C07398F", id));
    EXPECT_EQ(std::memcmp(id, some_id, 16), 0);
}

TEST(uuid_text, anything_else_is_refused) {
    unsigned char id[16];
    for (std::string_view text :
         {"", "-", "0", "017f22e2-79b0-7cc3-98c4-dc0c0c07398", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f0",
          "017f22e2-79b0-7cc3-98c4-dc0c0c07398g", " 017f22e2-79b0-7cc3-98c4-dc0c0c07398f", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f\n",
          "not a uuid at all, but just as long.."})
        EXPECT_FALSE(parse_uuid(text, id)) << text;
    EXPECT_FALSE(parse_uuid(std::string(100000, 'a'), id));
}

// -- what is read back

struct free_reply {
    void operator()(redisReply *reply) const { freeReplyObject(reply); }
};
using reply_pointer = std::unique_ptr<redisReply, free_reply>;

// A tree as hiredis makes it of what Redis sent.
reply_pointer tree(std::string_view text) {
    std::unique_ptr<redisReader, void (*)(redisReader *)> reader(redisReaderCreate(), redisReaderFree);
    EXPECT_EQ(redisReaderFeed(reader.get(), text.data(), text.size()), REDIS_OK);
    void *reply = nullptr;
    EXPECT_EQ(redisReaderGetReply(reader.get(), &reply), REDIS_OK);
    EXPECT_NE(reply, nullptr) << text;
    return reply_pointer(static_cast<redisReply *>(reply));
}

std::string bulk(std::string_view text) { return "$" + std::to_string(text.size()) + "\r\n" + std::string(text) + "\r\n"; }

template <typename... Parts> std::string array(const Parts &...parts) {
    std::string result = "*" + std::to_string(sizeof...(parts)) + "\r\n";
    ((result += parts), ...);
    return result;
}

const std::string nil = "$-1\r\n", nil_array = "*-1\r\n", one = ":1\r\n";

TEST(read_back, an_entry) {
    auto entry = tree(array(bulk("1790000000000-3"), array(bulk("event_id"), bulk(some_id_text), bulk("event_type"), bulk("a.b"))));
    unsigned char id[16];
    position at;
    EXPECT_TRUE(read_event_id(*entry, id));
    EXPECT_EQ(std::memcmp(id, some_id, 16), 0);
    EXPECT_TRUE(read_entry_id(*entry, at));
    EXPECT_EQ(at, (position{1790000000000, 3}));
}

TEST(read_back, what_we_write) {
    command sent = encoded(some_entry());
    std::string fields = "*16\r\n";
    for (std::size_t i = 3; i < sent.size(); ++i)
        fields += bulk(sent[i]);
    auto entry = tree(array(bulk(sent[2]), fields));
    unsigned char id[16];
    ASSERT_TRUE(read_event_id(*entry, id));
    EXPECT_EQ(std::memcmp(id, some_id, 16), 0);
}

TEST(read_back, a_foreign_entry_has_no_event_id) {
    const std::string id = bulk("5-1");
    unsigned char uuid[16];
    for (const std::string &text :
         {array(id, array(bulk("a"), bulk("b"))), array(id, array(bulk("event_type"), bulk("a.b"), bulk("event_id"), bulk(some_id_text))),
          array(id, array(bulk("event_id"), bulk("x"))), array(id, array(bulk("event_id"), bulk(""))),
          array(id, array(bulk("EVENT_ID"), bulk(some_id_text))),
          // shapes that no Redis should send
          array(id, array(bulk("event_id"))), array(id, array(bulk("event_id"), nil)), array(id, array(bulk("event_id"), one)),
          array(id, array(bulk("event_id"), array())), array(id, array(nil, bulk(some_id_text))), array(id, array(one, one)),
          array(id, array()), array(id, nil), array(id, nil_array), array(id, one), array(id, bulk("event_id")), array(id),
          array(id, array(bulk("event_id"), bulk(some_id_text)), one), array(), nil, nil_array, one, bulk("event_id"),
          std::string("+OK\r\n"), std::string("-ERR no\r\n")})
        EXPECT_FALSE(read_event_id(*tree(text), uuid)) << text;
}

TEST(read_back, an_entry_without_a_position_has_none) {
    const std::string fields = array(bulk("event_id"), bulk(some_id_text));
    position at;
    for (const std::string &text :
         {array(bulk("x"), fields), array(bulk(""), fields), array(nil, fields), array(one, fields), array(array(), fields),
          array(bulk("1-1")), array(bulk("1-1"), fields, fields), array(), nil, one, bulk("1-1"), std::string("-ERR 1-1\r\n")})
        EXPECT_FALSE(read_entry_id(*tree(text), at)) << text;
    // a trimmed entry that a consumer still has pending
    EXPECT_TRUE(read_entry_id(*tree(array(bulk("1-1"), nil_array)), at));
}

TEST(stream_info, of_redis_7) {
    auto info = read_stream_info(*tree(array(
        bulk("length"), ":2\r\n", bulk("radix-tree-keys"), one, bulk("radix-tree-nodes"), ":2\r\n", bulk("last-generated-id"),
        bulk("7-1"), bulk("max-deleted-entry-id"), bulk("3-2"), bulk("entries-added"), ":9\r\n", bulk("recorded-first-entry-id"),
        bulk("5-0"), bulk("groups"), ":0\r\n", bulk("first-entry"), array(bulk("5-0"), array(bulk("a"), bulk("b"))), bulk("last-entry"),
        array(bulk("7-1"), array(bulk("a"), bulk("b"))))));
    EXPECT_TRUE(info.exists);
    EXPECT_TRUE(info.is_stream);
    EXPECT_EQ(info.last, (position{7, 1}));
    EXPECT_EQ(info.first, (position{5, 0}));
    EXPECT_TRUE(info.knows_deleted);
    EXPECT_EQ(info.deleted, (position{3, 2}));
    EXPECT_EQ(info.entries_added, 9);
}

TEST(stream_info, of_redis_6) {
    auto info = read_stream_info(*tree(array(bulk("length"), one, bulk("last-generated-id"), bulk("7-1"), bulk("groups"), ":0\r\n",
                                             bulk("first-entry"), array(bulk("7-1"), array(bulk("a"), bulk("b"))))));
    EXPECT_TRUE(info.exists);
    EXPECT_EQ(info.last, (position{7, 1}));
    EXPECT_EQ(info.first, (position{7, 1}));
    EXPECT_FALSE(info.knows_deleted);
    EXPECT_EQ(info.entries_added, -1);
}

TEST(stream_info, of_a_stream_trimmed_to_nothing) {
    auto info = read_stream_info(*tree(array(bulk("length"), ":0\r\n", bulk("last-generated-id"), bulk("7-1"),
                                             bulk("max-deleted-entry-id"), bulk("7-1"), bulk("entries-added"), ":9\r\n",
                                             bulk("first-entry"), nil, bulk("last-entry"), nil)));
    EXPECT_TRUE(info.exists);
    EXPECT_EQ(info.last, (position{7, 1}));
    EXPECT_EQ(info.first.ms, 0);
}

TEST(stream_info, of_what_is_no_stream) {
    auto missing = read_stream_info(*tree("-ERR no such key\r\n"));
    EXPECT_FALSE(missing.exists);
    EXPECT_TRUE(missing.is_stream);
    for (const char *error : {"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
                              "-NOPERM this user has no permissions to access one of the keys used as arguments\r\n", "-\r\n"}) {
        auto info = read_stream_info(*tree(error));
        EXPECT_FALSE(info.exists) << error;
        EXPECT_FALSE(info.is_stream) << error;
    }
}

// Nothing that is sent may crash us, or make up a stream that is further than it is.
TEST(stream_info, of_hostile_shapes) {
    for (const std::string &text :
         {nil, nil_array, one, bulk("x"), std::string("+OK\r\n"), array(), array(bulk("last-generated-id")),
          array(bulk("last-generated-id"), nil), array(bulk("last-generated-id"), one), array(bulk("last-generated-id"), array()),
          array(bulk("last-generated-id"), bulk("")), array(bulk("last-generated-id"), bulk("x-y")),
          array(bulk("last-generated-id"), bulk("18446744073709551616-0")), array(nil, bulk("7-1")), array(one, one),
          array(array(bulk("last-generated-id"), bulk("7-1")), one), array(bulk("length"), bulk("last-generated-id"), bulk("7-1")),
          array(bulk("first-entry"), one), array(bulk("first-entry"), array(one, one)), array(bulk("first-entry"), array(nil, nil)),
          array(bulk("entries-added"), bulk("x")), array(bulk("max-deleted-entry-id"), nil)}) {
        auto info = read_stream_info(*tree(text));
        EXPECT_EQ(info.last, position{}) << text;
        EXPECT_EQ(info.first, position{}) << text;
        EXPECT_FALSE(info.knows_deleted) << text;
        EXPECT_EQ(info.entries_added, -1) << text;
    }
}

} // namespace

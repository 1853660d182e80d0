// Commands: whatever the arguments hold, another parser reads back what was written.
#include "bgworker/entry.hpp"
#include "common/resp.hpp"

#include "test/fuzz/fuzz.hpp"
#include "test/unit/resp_parser.hpp"

#include <cstring>

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    constexpr std::size_t fixed = 16 + 8 + 8 + 8 + 4 + 1;
    if (size < fixed)
        return 0;
    outbox::entry_fields fields = {};
    fields.event_id = data;
    std::memcpy(&fields.occurred_at_us, data + 16, 8);
    std::memcpy(&fields.at.ms, data + 24, 8);
    std::memcpy(&fields.at.n, data + 32, 8);
    std::memcpy(&fields.version, data + 40, 4);
    fields.must_exist = data[44] & 1;
    // what emit and the worker let through
    constexpr std::int64_t first = INT64_C(-62135596800000000), last = INT64_C(253402300799999999);
    if (fields.occurred_at_us < first || fields.occurred_at_us > last || fields.at.ms < 0 || fields.at.n < 0)
        return 0;

    // the rest is cut at a byte that both sides agree on
    std::string_view rest = text_of(data + fixed, size - fixed), part[6];
    for (auto &piece : part) {
        auto end = rest.find('|');
        piece = rest.substr(0, end);
        rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    }
    fields.topic = part[0];
    fields.event_type = part[1];
    fields.aggregate_type = part[2];
    fields.aggregate_id = part[3];
    fields.headers = part[4];
    fields.payload = part[5];

    std::string out, answers;
    outbox::resp::append(out, "ECHO", fields.payload);
    outbox::append_entry(out, answers, fields);
    outbox::append_xrange(out, fields.topic, fields.headers, fields.payload, 7, {});
    outbox::append_xinfo(out, fields.topic, {});

    std::vector<outbox_test::command> commands;
    EXPECT(outbox_test::parse_commands(out, commands) && commands.size() == 4);
    std::string key = "outbox:{" + std::string(fields.topic) + "}";
    EXPECT((commands[0] == outbox_test::command{"ECHO", std::string(fields.payload)}));
    EXPECT((commands[2] == outbox_test::command{"XRANGE", key, std::string(fields.headers), std::string(fields.payload), "COUNT", "7"}));
    EXPECT((commands[3] == outbox_test::command{"XINFO", "STREAM", key}));

    const auto &entry = commands[1];
    std::size_t begin = fields.must_exist ? 3 : 2;
    EXPECT(entry.size() == begin + 17 && entry[0] == "XADD" && entry[1] == key && (begin == 2 || entry[2] == "NOMKSTREAM"));
    outbox::position at;
    EXPECT(outbox::parse(entry[begin], at) && at == fields.at);
    static const char *const names[] = {"event_id", "event_type", "aggregate_type", "aggregate_id",
                                        "version",  "occurred_at", "headers",       "payload"};
    for (std::size_t i = 0; i < 8; ++i)
        EXPECT(entry[begin + 1 + 2 * i] == names[i]);
    unsigned char id[16];
    EXPECT(outbox::parse_uuid(entry[begin + 2], id) && std::memcmp(id, data, 16) == 0);
    EXPECT(entry[begin + 4] == fields.event_type && entry[begin + 6] == fields.aggregate_type);
    EXPECT(entry[begin + 8] == fields.aggregate_id && entry[begin + 10] == std::to_string(fields.version));
    EXPECT(entry[begin + 12].size() == 27);
    EXPECT(entry[begin + 14] == fields.headers && entry[begin + 16] == fields.payload);
    return 0;
}

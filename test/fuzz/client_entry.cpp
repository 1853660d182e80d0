// Entries: fields of every name and number against a slow reference, JSON against the library's own parser, times, aggregates.
#include "src/entry.hpp"
#include "src/pattern.hpp"
#include "src/reply.hpp"

#include <outbox/error.hpp>

#include "test/fuzz/fuzz.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

using namespace outbox::detail;

namespace {

const std::vector<std::string> names = {"event_id", "event_type",  "aggregate_type", "aggregate_id",
                                        "version",  "occurred_at", "headers",        "payload"};
using pairs = std::vector<std::pair<std::string, std::string>>;

// A field for each line: a digit for one of the eight or 8 for the position, or any name and "=", and then its value.
pairs read_pairs(std::string_view text) {
    pairs result;
    while (!text.empty()) {
        std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        if (line.empty())
            continue;
        if (line[0] >= '0' && line[0] <= '7')
            result.emplace_back(names[static_cast<std::size_t>(line[0] - '0')], line.substr(1));
        else if (line[0] == '8')
            result.emplace_back(position_field, line.substr(1));
        else if (auto equals = line.find('='); equals != std::string_view::npos)
            result.emplace_back(line.substr(0, equals), line.substr(equals + 1));
    }
    return result;
}

std::optional<std::string> first(const pairs &fields, std::string_view name) {
    for (const auto &field : fields)
        if (field.first == name)
            return field.second;
    return std::nullopt;
}

bool is_good(const pairs &fields) {
    static const std::regex uuid("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
        number("0*[1-9][0-9]{0,9}");
    for (const auto &name : names)
        if (!first(fields, name))
            return false;
    std::string version = *first(fields, "version");
    return std::regex_match(*first(fields, "event_id"), uuid) &&
           is_event_type(*first(fields, "event_type")) && std::regex_match(version, number) &&
           std::stoll(version) <= 2147483647 && !first(fields, "payload")->empty();
}

// The reply that Redis' answer would be.
struct answer {
    explicit answer(const pairs &fields) {
        for (const auto &[name, value] : fields) {
            add(name);
            add(value);
        }
        whole.type = REDIS_REPLY_ARRAY;
        whole.elements = elements.size();
        whole.element = elements.data();
    }
    void add(const std::string &text) {
        redisReply &reply = replies.emplace_back();
        reply = {};
        reply.type = REDIS_REPLY_STRING;
        reply.str = const_cast<char *>(text.data());
        reply.len = text.size();
        elements.push_back(&reply);
    }
    std::deque<redisReply> replies;
    std::vector<redisReply *> elements;
    redisReply whole = {};
};

void check_decode(std::string_view text) {
    pairs fields = read_pairs(text);
    answer entry(fields);
    decoded result = decode(entry.whole);
    EXPECT(result.reason.empty() == is_good(fields));
    EXPECT(result.reason.size() < 600);
    EXPECT(std::all_of(result.reason.begin(), result.reason.end(),
                       [](char c) { return c >= ' ' && c <= '~'; }));
    const std::string_view views[] = {result.fields.id,
                                      result.fields.type,
                                      result.fields.aggregate_type,
                                      result.fields.aggregate_id,
                                      {},
                                      result.fields.occurred_at,
                                      result.fields.headers,
                                      result.fields.payload};
    for (std::size_t i = 0; i < names.size(); ++i)
        EXPECT(i == 4 || views[i] == first(fields, names[i]).value_or(""));
    EXPECT(result.first_position == first(fields, position_field).value_or(""));
    EXPECT(result.fields.version >= 1);
    if (result.reason.empty())
        EXPECT(result.fields.version == std::stoll(*first(fields, "version")));

    std::string key = aggregate_key(result.fields);
    std::string_view type = result.fields.aggregate_type, id = result.fields.aggregate_id;
    EXPECT(key.empty() == id.empty() && (aggregate_hash(type, id) == 0) == id.empty());
    if (!key.empty()) {
        std::size_t end = 0, length = std::stoull(key, &end);
        EXPECT(key[end] == ':' && key.substr(end + 1, length) == type &&
               key.substr(end + 1 + length) == id);
    }
}

std::size_t levels(const nlohmann::json &json) {
    std::size_t deepest = 0;
    for (const auto &each : json)
        if (each.is_structured())
            deepest = std::max(deepest, levels(each));
    return json.is_structured() ? deepest + 1 : 0;
}

void check_texts(std::string_view text) {
    auto json = nlohmann::json::parse(text, nullptr, false);
    bool good = !json.is_discarded() && text.find('\0') == std::string_view::npos;
    EXPECT(check_payload(text).empty() == (good && levels(json) <= 1000));
    EXPECT(check_headers(text).empty() ==
           (text.empty() || (good && json.is_object() && levels(json) <= 1000)));

    outbox::event event({.headers = text, .occurred_at = text, .payload = text}, {}, {}, 1,
                        nullptr);
    try {
        EXPECT(event.payload() == json);
    } catch (const outbox::malformed &) {
        EXPECT(json.is_discarded());
    }
    try {
        (void)event.correlation_id();
        for (const auto &[name, value] : event.headers().items())
            EXPECT(event.header(name) ==
                   (value.is_string() ? value.get<std::string>() : value.dump()));
    } catch (const outbox::malformed &) {
        EXPECT(!check_headers(text).empty());
    }
}

// A time is printed again, and then the text that was read.
void check_time(std::string_view text) {
    std::chrono::sys_time<std::chrono::microseconds> time;
    if (!parse_time(text, time))
        return;
    auto day = std::chrono::floor<std::chrono::days>(time);
    std::chrono::year_month_day date(day);
    std::chrono::hh_mm_ss clock(time - day);
    char printed[64];
    std::snprintf(printed, sizeof printed, "%04d-%02u-%02uT%02d:%02d:%02d.%06d",
                  static_cast<int>(date.year()), static_cast<unsigned>(date.month()),
                  static_cast<unsigned>(date.day()), static_cast<int>(clock.hours().count()),
                  static_cast<int>(clock.minutes().count()),
                  static_cast<int>(clock.seconds().count()),
                  static_cast<int>(clock.subseconds().count()));
    std::string read(text.substr(0, text.size() - 1));
    EXPECT(text.back() == 'Z' && read.size() <= 29);
    if (read.size() == 19)
        read += '.';
    read.resize(26, '0');
    EXPECT(read == printed);
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    std::string_view text = text_of(data, size);
    check_decode(text);
    check_texts(text);
    check_time(text);
    return 0;
}

// Decodes entries: see entry.hpp.
#include "src/entry.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>

#include <nlohmann/json.hpp>

#include "common/plain_json.hpp"
#include "src/pattern.hpp"
#include "src/reply.hpp"
#include "src/text.hpp"

namespace outbox::detail {

namespace {

// In the order of the contract, in which every entry of the outbox has them.
enum field : std::size_t {
    event_id,
    event_type,
    aggregate_type,
    aggregate_id,
    version,
    occurred_at,
    headers,
    payload,
    count
};

constexpr std::array<std::string_view, count> names = {
    "event_id", "event_type",  "aggregate_type", "aggregate_id",
    "version",  "occurred_at", "headers",        "payload"};

std::size_t find_field(std::string_view name) noexcept {
    std::size_t i = 0;
    while (i < count && names[i] != name)
        ++i;
    return i;
}

constexpr std::array<bool, 256> hex_digits = [] {
    std::array<bool, 256> result{};
    for (char c : std::string_view("0123456789abcdefABCDEF"))
        result[static_cast<unsigned char>(c)] = true;
    return result;
}();

bool is_uuid(std::string_view text) noexcept {
    if (text.size() != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-')
        return false;
    int digits = 0;
    for (char c : text)
        digits += hex_digits[static_cast<unsigned char>(c)];
    return digits == 32;
}

bool parse_version(std::string_view text, int &value) noexcept {
    int parsed = 0;
    auto end = text.data() + text.size();
    auto result = std::from_chars(text.data(), end, parsed);
    if (result.ec != std::errc() || result.ptr != end || parsed < 1)
        return false;
    value = parsed;
    return true;
}

std::string quoted(std::string_view text) { return '"' + printable(text, 100) + '"'; }

// Looks at JSON without building anything, and without exceptions.
struct checker final : nlohmann::json_sax<nlohmann::json> {
    static constexpr int most_levels = 1000;

    int level = 0;
    bool only_objects_outside = false; // the outermost value must be an object
    bool too_deep = false, no_object = false;
    std::size_t broken_at = 0;

    bool value() noexcept { return !(no_object = only_objects_outside && level == 0); }
    bool enter() noexcept { return !(too_deep = ++level > most_levels); }
    bool leave() noexcept { return --level, true; }

    bool null() override { return value(); }
    bool boolean(bool) override { return value(); }
    bool number_integer(number_integer_t) override { return value(); }
    bool number_unsigned(number_unsigned_t) override { return value(); }
    bool number_float(number_float_t, const string_t &) override { return value(); }
    bool string(string_t &) override { return value(); }
    bool binary(binary_t &) override { return value(); }
    bool start_object(std::size_t) override { return enter(); }
    bool key(string_t &) override { return true; }
    bool end_object() override { return leave(); }
    bool start_array(std::size_t) override { return value() && enter(); }
    bool end_array() override { return leave(); }
    bool parse_error(std::size_t position, const std::string &,
                     const nlohmann::json::exception &) override {
        broken_at = position;
        return false;
    }
};

std::string check(std::string_view text, const char *what, bool object) {
    if (is_plain_json(text, object))
        return {};
    std::string subject = what;
    checker sax;
    sax.only_objects_outside = object;
    // To the library a NUL is the end; to JSON it is nothing.
    sax.broken_at = text.find('\0') + 1;
    if (sax.broken_at == 0 && nlohmann::json::sax_parse(text, &sax))
        return {};
    if (sax.no_object)
        return subject + " not a JSON object";
    if (sax.too_deep)
        return subject + " nested deeper than " + std::to_string(checker::most_levels) + " levels";
    return subject + " not JSON (byte " + std::to_string(sax.broken_at) + ")";
}

} // namespace

decoded decode(const redisReply &fields) {
    decoded result;
    std::array<std::string_view, count> values;
    unsigned found = 0; // a bit for each
    bool has_position = false;

    std::size_t expected = 0;
    for (std::size_t i = 0; i + 1 < fields.elements; i += 2) {
        std::string_view name = text(*fields.element[i]), value = text(*fields.element[i + 1]);
        std::size_t which =
            expected < count && name == names[expected] ? expected : find_field(name);
        if (which < count) {
            if ((found & 1U << which) == 0) {
                values[which] = value;
                found |= 1U << which;
            }
            expected = which + 1;
        } else if (name == position_field && !has_position) {
            result.first_position = value;
            has_position = true;
        }
    }

    result.fields = {
        values[event_id],    values[event_type], values[aggregate_type], values[aggregate_id],
        values[occurred_at], values[headers],    values[payload],        1};
    bool is_version = parse_version(values[version], result.fields.version);

    for (std::size_t which = 0; which < count; ++which)
        if ((found & 1U << which) == 0) {
            result.reason = "the field \"" + std::string(names[which]) + "\" is missing";
            return result;
        }
    if (!is_uuid(values[event_id]))
        result.reason = "the event_id " + quoted(values[event_id]) + " is not a UUID";
    else if (!is_event_type(values[event_type]))
        result.reason = "the event_type " + quoted(values[event_type]) + " is not an event type";
    else if (!is_version)
        result.reason = "the version " + quoted(values[version]) + " is not a number from 1 on";
    else if (values[payload].empty())
        result.reason = "the payload is empty";
    return result;
}

std::string check_payload(std::string_view payload) {
    return check(payload, "the payload is", false);
}

std::string check_headers(std::string_view headers) {
    return headers.empty() ? std::string() : check(headers, "the headers are", true);
}

std::string check_json(const event::fields &fields) {
    std::string reason = check_payload(fields.payload);
    return reason.empty() ? check_headers(fields.headers) : reason;
}

bool parse_time(std::string_view text,
                std::chrono::sys_time<std::chrono::microseconds> &time) noexcept {
    constexpr std::string_view form = "dddd-dd-ddTdd:dd:dd";
    if (text.size() <= form.size() || text.back() != 'Z')
        return false;
    auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    for (std::size_t i = 0; i < form.size(); ++i)
        if (form[i] == 'd' ? !is_digit(text[i]) : text[i] != form[i])
            return false;
    auto number = [&](std::size_t from, std::size_t digits) {
        int value = 0;
        for (char c : text.substr(from, digits))
            value = value * 10 + (c - '0');
        return value;
    };

    std::string_view fraction = text.substr(form.size(), text.size() - form.size() - 1);
    int microseconds = 0;
    if (!fraction.empty()) {
        if (fraction[0] != '.' || fraction.size() < 2 || fraction.size() > 10)
            return false;
        fraction.remove_prefix(1);
        for (std::size_t i = 0; i < fraction.size(); ++i)
            if (!is_digit(fraction[i]))
                return false;
        for (std::size_t i = 0; i < 6; ++i)
            microseconds = microseconds * 10 + (i < fraction.size() ? fraction[i] - '0' : 0);
    }

    std::chrono::year_month_day date{std::chrono::year(number(0, 4)),
                                     std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                     std::chrono::day(static_cast<unsigned>(number(8, 2)))};
    int hours = number(11, 2), minutes = number(14, 2), seconds = number(17, 2);
    if (!date.ok() || hours > 23 || minutes > 59 || seconds > 59)
        return false;
    time = std::chrono::sys_days(date) + std::chrono::hours(hours) + std::chrono::minutes(minutes) +
           std::chrono::seconds(seconds) + std::chrono::microseconds(microseconds);
    return true;
}

std::string aggregate_key(const event::fields &fields) {
    if (fields.aggregate_id.empty())
        return {};
    return std::to_string(fields.aggregate_type.size())
        .append(":")
        .append(fields.aggregate_type)
        .append(fields.aggregate_id);
}

std::uint64_t aggregate_hash(std::string_view type, std::string_view id) noexcept {
    if (id.empty())
        return 0;
    // Each hashed by itself, so that ("a", "bc") and ("ab", "c") differ; the factor is the golden ratio's.
    std::hash<std::string_view> hash;
    std::uint64_t both = hash(type) * UINT64_C(0x9e3779b97f4a7c15) + hash(id);
    return both != 0 ? both : 1;
}

std::uint64_t aggregate_in(std::string_view topic, const event::fields &fields) noexcept {
    std::uint64_t number = aggregate_hash(fields.aggregate_type, fields.aggregate_id);
    return number == 0 ? 0 : std::max<std::uint64_t>(1, number ^ std::hash<std::string_view>()(topic));
}

} // namespace outbox::detail

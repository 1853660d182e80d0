#include "bgworker/entry.hpp"

#include "common/resp.hpp"

#include <cstring>

namespace outbox {

static void append_key(std::string &commands, std::string_view topic, const stream_naming &naming) {
    resp::header(commands, '$', naming.before.size() + topic.size() + naming.behind.size());
    commands.append(naming.before).append(topic).append(naming.behind).append("\r\n");
}

void append_entry(std::string &commands, std::string &answers, const entry_fields &fields) {
    char id_text[position_text_size], version_text[16], uuid_text[36], time_text[32];
    std::string_view id(id_text, print(fields.at, id_text));
    print_uuid(fields.event_id, uuid_text);
    auto version_end = std::to_chars(version_text, version_text + sizeof version_text, fields.version).ptr;

    constexpr std::size_t fixed = 512; // all that is not from the event, with room to spare
    resp::writer out(commands, fixed + fields.naming.before.size() + fields.topic.size() + fields.naming.behind.size() +
                                   fields.event_type.size() + fields.aggregate_type.size() +
                                   fields.aggregate_id.size() + fields.headers.size() + fields.payload.size());
    out.raw(fields.must_exist ? "*20\r\n$4\r\nXADD\r\n" : "*19\r\n$4\r\nXADD\r\n");
    out.header('$', fields.naming.before.size() + fields.topic.size() + fields.naming.behind.size());
    out.raw(fields.naming.before);
    out.raw(fields.topic);
    out.raw(fields.naming.behind);
    out.raw("\r\n");
    if (fields.must_exist)
        out.raw("$10\r\nNOMKSTREAM\r\n");
    out.argument(id);
    out.raw("$8\r\nevent_id\r\n$36\r\n");
    out.raw({uuid_text, sizeof uuid_text});
    out.raw("\r\n$10\r\nevent_type\r\n");
    out.argument(fields.event_type);
    out.raw("$14\r\naggregate_type\r\n");
    out.argument(fields.aggregate_type);
    out.raw("$12\r\naggregate_id\r\n");
    out.argument(fields.aggregate_id);
    out.raw("$7\r\nversion\r\n");
    out.argument({version_text, static_cast<std::size_t>(version_end - version_text)});
    out.raw("$11\r\noccurred_at\r\n");
    out.argument({time_text, print_rfc3339(fields.occurred_at_us, time_text)});
    out.raw("$7\r\nheaders\r\n");
    out.argument(fields.headers);
    out.raw("$7\r\npayload\r\n");
    out.argument(fields.payload);

    resp::argument(answers, id);
}

void append_xrange(std::string &commands, std::string_view topic, std::string_view from, std::string_view to, int count,
                   const stream_naming &naming) {
    resp::command(commands, 6);
    resp::argument(commands, "XRANGE");
    append_key(commands, topic, naming);
    resp::argument(commands, from);
    resp::argument(commands, to);
    resp::argument(commands, "COUNT");
    resp::argument(commands, std::to_string(count));
}

void append_xinfo(std::string &commands, std::string_view topic, const stream_naming &naming) {
    resp::command(commands, 3);
    resp::argument(commands, "XINFO");
    resp::argument(commands, "STREAM");
    append_key(commands, topic, naming);
}

static void two_digits(char *text, unsigned value) noexcept {
    text[0] = static_cast<char>('0' + value / 10);
    text[1] = static_cast<char>('0' + value % 10);
}

std::size_t print_rfc3339(std::int64_t unix_us, char *text) noexcept {
    constexpr std::int64_t day_us = INT64_C(86400000000);
    std::int64_t days = unix_us / day_us;
    std::int64_t rest = unix_us % day_us;
    if (rest < 0) {
        rest += day_us;
        --days;
    }
    // Civil from days: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    std::int64_t z = days + 719468;
    std::int64_t era = (z >= 0 ? z : z - 146096) / 146097;
    std::int64_t doe = z - era * 146097;
    std::int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    std::int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    std::int64_t mp = (5 * doy + 2) / 153;
    std::int64_t day = doy - (153 * mp + 2) / 5 + 1;
    std::int64_t month = mp < 10 ? mp + 3 : mp - 9;
    std::int64_t year = yoe + era * 400 + (month <= 2 ? 1 : 0);
    auto pair = [text](int at, std::int64_t value) { two_digits(text + at, static_cast<unsigned>(value)); };
    std::memcpy(text, "0000-00-00T00:00:00.000000Z", 27);
    auto seconds = static_cast<unsigned>(rest / 1000000), micros = static_cast<unsigned>(rest % 1000000);
    pair(0, year / 100);
    pair(2, year % 100);
    pair(5, month);
    pair(8, day);
    pair(11, seconds / 3600);
    pair(14, seconds / 60 % 60);
    pair(17, seconds % 60);
    pair(20, micros / 10000);
    pair(22, micros / 100 % 100);
    pair(24, micros % 100);
    return 27;
}

void print_uuid(const unsigned char *uuid, char *text) noexcept {
    static constexpr char hex[] = "0123456789abcdef";
    for (int i = 0; i < 16; ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *text++ = '-';
        *text++ = hex[uuid[i] >> 4];
        *text++ = hex[uuid[i] & 15];
    }
}

bool parse_uuid(std::string_view text, unsigned char *uuid) noexcept {
    int count = 0;
    for (char c : text) {
        int value;
        if (c >= '0' && c <= '9')
            value = c - '0';
        else if (c >= 'a' && c <= 'f')
            value = c - 'a' + 10;
        else if (c >= 'A' && c <= 'F')
            value = c - 'A' + 10;
        else if (c == '-')
            continue;
        else
            return false;
        if (count == 32)
            return false;
        if (count % 2 == 0)
            uuid[count / 2] = static_cast<unsigned char>(value << 4);
        else
            uuid[count / 2] = static_cast<unsigned char>(uuid[count / 2] | value);
        ++count;
    }
    return count == 32;
}

static std::string_view text_of(const redisReply &reply) noexcept {
    if (reply.type != REDIS_REPLY_STRING && reply.type != REDIS_REPLY_STATUS)
        return {};
    return {reply.str, static_cast<std::size_t>(reply.len)};
}

bool read_entry_id(const redisReply &entry, position &id) noexcept {
    return entry.type == REDIS_REPLY_ARRAY && entry.elements == 2 && parse(text_of(*entry.element[0]), id);
}

bool read_event_id(const redisReply &entry, unsigned char *uuid) noexcept {
    if (entry.type != REDIS_REPLY_ARRAY || entry.elements != 2)
        return false;
    const redisReply &fields = *entry.element[1];
    // A foreign entry may have any fields.
    if (fields.type != REDIS_REPLY_ARRAY || fields.elements < 2 || text_of(*fields.element[0]) != "event_id")
        return false;
    return parse_uuid(text_of(*fields.element[1]), uuid);
}

stream_info read_stream_info(const redisReply &reply) noexcept {
    stream_info info;
    if (reply.type == REDIS_REPLY_ERROR) {
        // "no such key" is an answer; WRONGTYPE and NOPERM leave us without one, and XADD will say the same.
        info.is_stream = std::string_view(reply.str).find("no such key") != std::string_view::npos;
        return info;
    }
    if (reply.type != REDIS_REPLY_ARRAY)
        return info;
    info.exists = true;
    for (std::size_t i = 0; i + 1 < reply.elements; i += 2) {
        auto name = text_of(*reply.element[i]);
        const redisReply &value = *reply.element[i + 1];
        if (name == "last-generated-id")
            parse(text_of(value), info.last);
        else if (name == "max-deleted-entry-id")
            info.knows_deleted = parse(text_of(value), info.deleted);
        else if (name == "entries-added" && value.type == REDIS_REPLY_INTEGER)
            info.entries_added = value.integer;
        else if (name == "length" && value.type == REDIS_REPLY_INTEGER)
            info.length = value.integer;
        else if (name == "first-entry")
            read_entry_id(value, info.first);
    }
    return info;
}

} // namespace outbox

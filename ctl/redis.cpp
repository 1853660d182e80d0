#include "ctl/redis.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "common/password_file.hpp"
#include "ctl/failure.hpp"
#include "ctl/options.hpp"
#include "ctl/postgres.hpp"
#include "src/pattern.hpp"
#include "src/text.hpp"

namespace outbox::ctl {

static std::string environment(const char *name) {
    const char *value = std::getenv(name);
    return value != nullptr ? value : "";
}

static std::string escaped(std::string_view text, std::string_view plain) {
    constexpr char digits[] = "0123456789ABCDEF";
    std::string result;
    for (char c : text) {
        auto byte = static_cast<unsigned char>(c);
        bool keep =
            (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || plain.find(c) != plain.npos;
        if (keep)
            result += c;
        else
            result.append({'%', digits[byte >> 4], digits[byte & 15]});
    }
    return result;
}

static std::string at(const std::string &host, int port) {
    return (host.find(':') == host.npos ? host : "[" + host + "]") + ":" + std::to_string(port);
}

// The URL again, with these in place of its passwords.
static std::string compose(const redis_url &url, const std::string &password, const std::string &sentinel_password) {
    std::string credentials;
    if (!url.user.empty() || !password.empty()) {
        credentials = escaped(url.user, "-_.");
        if (!password.empty())
            credentials += ":" + password;
        credentials += "@";
    }
    if (!url.path.empty())
        return "unix://" + credentials + escaped(url.path, "-_./") + "?db=" + std::to_string(url.database);
    std::string text = url.tls ? "rediss" : "redis";
    if (url.sentinels.empty()) {
        text += "://" + credentials + at(url.host, url.port);
    } else {
        text += "+sentinel://" + credentials;
        for (const auto &sentinel : url.sentinels)
            text += (&sentinel == &url.sentinels.front() ? "" : ",") + at(sentinel.host, sentinel.port);
        text += "/" + escaped(url.master, "-_.");
    }
    text += "/" + std::to_string(url.database);
    char before = '?';
    auto add = [&](const char *name, const std::string &value) {
        if (value.empty())
            return;
        text += before + std::string(name) + "=" + value;
        before = '&';
    };
    add("sslrootcert", escaped(url.files.ca, "-_./"));
    add("sslcert", escaped(url.files.certificate, "-_./"));
    add("sslkey", escaped(url.files.key, "-_./"));
    add("sentinel_user", escaped(url.sentinel_user, "-_."));
    add("sentinel_password", sentinel_password);
    return text;
}

std::string redis_address::secret_text() const {
    return compose(url, escaped(url.password, "-_."), escaped(url.sentinel_password, "-_."));
}
std::string redis_address::shown() const {
    return compose(url, url.password.empty() ? "" : "***", url.sentinel_password.empty() ? "" : "***");
}

// The password in the first line, and in the second, if there is one, that of the sentinels.
static void read_passwords(const std::string &file, redis_url &url) {
    std::ifstream in(file);
    auto line = [&](std::string &password) {
        if (!std::getline(in, password))
            return false;
        while (!password.empty() && (password.back() == '\r' || password.back() == ' '))
            password.pop_back();
        return true;
    };
    std::string sentinels;
    if (!in || (!line(url.password) && !in.eof()))
        throw failure(exit_code::unavailable,
                      "could not read the password of Redis from \"" + file + "\": " + std::strerror(errno));
    if (line(sentinels) && !sentinels.empty())
        url.sentinel_password = sentinels;
}

static redis_address parsed(const std::string &text, const std::string &source) {
    redis_address address{{}, source};
    std::string why;
    if (!parse_redis_url(text, address.url, why))
        throw failure(exit_code::usage, "the URL of Redis (" + source + ") is invalid: " + why,
                      "Use redis://[user@]host[:port][/db], unix:///path[?db=N], rediss://... or redis+sentinel://...");
    return address;
}

// What the database shows of its sink: never a password.
static redis_address ask_database(database &db, const std::string &sink) {
    db.require_extension();
    json row = db.row("SELECT url, stream FROM outbox.sink WHERE name = $1", {sink});
    if (row.is_null())
        throw failure(exit_code::wrong, "sink \"" + detail::printable(sink) + "\" does not exist",
                      "The sinks are listed in outbox.sink.");
    if (auto stream = row.at("stream").get<std::string>(); stream != "outbox:{%t}")
        throw failure(exit_code::wrong,
                      "the streams of sink \"" + detail::printable(sink) + "\" are named \"" + detail::printable(stream) + "\"",
                      "outboxctl looks into streams of the names outbox:{<topic>} only.");
    redis_address address = parsed(row.at("url"), "outbox.sink");
    for (std::string *password : {&address.url.password, &address.url.sentinel_password})
        if (*password == "***")
            password->clear();
    return address;
}

// The files are known to superusers, and readable where the server runs, by its user.
static void ask_passwords(database &db, const std::string &sink, redis_url &url) {
    bool own = sink != "default";
    json row = db.row("SELECT setting FROM pg_catalog.pg_settings WHERE name = $1 AND setting <> ''",
                      {own ? "outbox.sink_password_file" : "outbox.redis_password_file"});
    if (row.is_null())
        return;
    auto file = row.at("setting").get<std::string>();
    std::ifstream in(file);
    if (!in)
        return; // not ours to read
    if (!own)
        return read_passwords(file, url);
    bool found = false, found_sentinel = false;
    for (std::string line; std::getline(in, line);) {
        found = found || password_for(line, url, url.password);
        found_sentinel = found_sentinel || sentinel_password_for(line, url, url.sentinel_password);
    }
}

redis_address find_redis(const options &common, const std::function<database &()> &ask) {
    redis_address address;
    std::string in_environment = environment("OUTBOX_REDIS_URL");
    bool from_sink = common.redis_url.empty() && in_environment.empty();
    if (!common.redis_url.empty()) {
        address = parsed(common.redis_url, "--redis");
        if (!address.url.password.empty() || !address.url.sentinel_password.empty())
            throw failure(exit_code::usage, "a password on the command line can be seen by everybody on this machine",
                          "Give it in a file (--redis-password-file), or in OUTBOX_REDIS_PASSWORD or OUTBOX_REDIS_URL.");
    } else if (!in_environment.empty()) {
        address = parsed(in_environment, "OUTBOX_REDIS_URL");
    } else {
        address = ask_database(ask(), common.sink);
    }

    std::string file = !common.password_file.empty() ? common.password_file : environment("OUTBOX_REDIS_PASSWORD_FILE");
    if (!file.empty())
        read_passwords(file, address.url);
    else if (std::string password = environment("OUTBOX_REDIS_PASSWORD"); !password.empty())
        address.url.password = password;
    else if (from_sink)
        ask_passwords(ask(), common.sink, address.url);
    return address;
}

redis::reply redis::unless(std::initializer_list<std::string_view> errors, const words &words) {
    try {
        return command(words);
    } catch (const reply_error &error) {
        std::string_view message = error.what();
        if (std::none_of(errors.begin(), errors.end(), [&](std::string_view one) { return message.starts_with(one); }))
            throw;
        return nullptr;
    }
}

std::chrono::sys_time<std::chrono::microseconds> redis::time() {
    auto reply = command({"TIME"});
    std::int64_t seconds = 0, microseconds = 0;
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2) {
        std::from_chars(reply->element[0]->str, reply->element[0]->str + reply->element[0]->len, seconds);
        std::from_chars(reply->element[1]->str, reply->element[1]->str + reply->element[1]->len, microseconds);
    }
    return std::chrono::sys_time<std::chrono::microseconds>(std::chrono::microseconds(seconds * 1'000'000 + microseconds));
}

std::vector<std::string> redis::streams(std::string_view pattern) {
    std::vector<std::string> keys;
    std::string cursor = "0";
    do {
        auto reply = command({"SCAN", cursor, "MATCH", pattern, "COUNT", "10000", "TYPE", "stream"});
        if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2)
            throw reply_error("the reply to SCAN is not that of Redis");
        cursor = detail::text(*reply->element[0]);
        for (std::size_t i = 0; i < reply->element[1]->elements; ++i)
            keys.emplace_back(detail::text(*reply->element[1]->element[i]));
    } while (cursor != "0");
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end()); // SCAN may give a key twice
    return keys;
}

std::vector<std::pair<std::string, std::string>> redis::info() {
    auto reply = command({"INFO"});
    std::vector<std::pair<std::string, std::string>> names;
    std::string_view rest = detail::text(*reply);
    while (!rest.empty()) {
        auto end = std::min(rest.find('\n'), rest.size());
        std::string_view line = rest.substr(0, end);
        rest.remove_prefix(std::min(end + 1, rest.size()));
        if (!line.empty() && line.back() == '\r')
            line.remove_suffix(1);
        if (auto colon = line.find(':'); colon != line.npos && line.front() != '#')
            names.emplace_back(line.substr(0, colon), line.substr(colon + 1));
    }
    return names;
}

const redisReply *named(const redisReply &reply, std::string_view name) noexcept {
    if (reply.type == REDIS_REPLY_ARRAY)
        for (std::size_t i = 0; i + 1 < reply.elements; i += 2)
            if (detail::text(*reply.element[i]) == name)
                return reply.element[i + 1];
    return nullptr;
}

std::optional<std::int64_t> number(const redisReply &reply, std::string_view name) noexcept {
    const redisReply *found = named(reply, name);
    if (found == nullptr || found->type != REDIS_REPLY_INTEGER)
        return std::nullopt;
    return found->integer;
}

std::string text(const redisReply &reply, std::string_view name) {
    const redisReply *found = named(reply, name);
    return found != nullptr ? std::string(detail::text(*found)) : std::string();
}

std::string topic_of(std::string_view key) {
    constexpr std::string_view before = "outbox:{";
    if (!key.starts_with(before) || !key.ends_with("}"))
        return {};
    auto topic = key.substr(before.size(), key.size() - before.size() - 1);
    return detail::is_topic(topic) ? std::string(topic) : std::string();
}

void require_topic(std::string_view topic) {
    if (!detail::is_topic(topic))
        throw failure(exit_code::usage, "\"" + detail::printable(topic) + "\" is no topic",
                      "A topic is one or more segments of A-Z, a-z, 0-9, _ and -, separated by dots, such as wallet.");
}

} // namespace outbox::ctl

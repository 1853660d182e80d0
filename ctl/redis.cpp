#include "ctl/redis.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>

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

static std::string compose(const redis_url &url, const std::string &password) {
    std::string credentials;
    if (!url.user.empty() || !password.empty()) {
        credentials = escaped(url.user, "-_.");
        if (!password.empty())
            credentials += ":" + password;
        credentials += "@";
    }
    if (!url.path.empty())
        return "unix://" + credentials + escaped(url.path, "-_./") + "?db=" + std::to_string(url.database);
    return "redis://" + credentials + url.endpoint() + "/" + std::to_string(url.database);
}

std::string redis_address::secret_text() const { return compose(url, escaped(url.password, "-_.")); }
std::string redis_address::shown() const { return compose(url, url.password.empty() ? "" : "***"); }

static std::string read_password(const std::string &file) {
    std::ifstream in(file);
    std::string line;
    if (!in || (!std::getline(in, line) && !in.eof()))
        throw failure(exit_code::unavailable,
                      "could not read the password of Redis from \"" + file + "\": " + std::strerror(errno));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' '))
        line.pop_back();
    return line;
}

static redis_address parsed(const std::string &text, const std::string &source) {
    redis_address address{{}, source};
    std::string why;
    if (!parse_redis_url(text, address.url, why))
        throw failure(exit_code::usage, "the URL of Redis (" + source + ") is invalid: " + why,
                      "Use redis://[user@]host[:port][/db] or unix:///path[?db=N].");
    return address;
}

// What the database shows of its sink: never the password.
static redis_address ask_database(database &db, const std::string &sink) {
    db.require_extension();
    json row = db.row("SELECT url FROM outbox.sink WHERE name = $1", {sink});
    if (row.is_null())
        throw failure(exit_code::wrong, "sink \"" + detail::printable(sink) + "\" does not exist",
                      "The sinks are listed in outbox.sink.");
    redis_address address = parsed(row.at("url"), "outbox.sink");
    if (address.url.password == "***")
        address.url.password.clear();
    return address;
}

// The file is known to superusers, and readable where the server runs, by its user.
static std::string password_of_sink(database &db) {
    json row =
        db.row("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'outbox.redis_password_file' AND setting <> ''");
    if (row.is_null())
        return {};
    std::ifstream in(row.at("setting").get<std::string>());
    std::string line;
    std::getline(in, line);
    return line;
}

redis_address find_redis(const options &common, const std::function<database &()> &ask) {
    redis_address address;
    std::string in_environment = environment("OUTBOX_REDIS_URL");
    bool from_sink = common.redis_url.empty() && in_environment.empty();
    if (!common.redis_url.empty()) {
        address = parsed(common.redis_url, "--redis");
        if (!address.url.password.empty())
            throw failure(exit_code::usage, "a password on the command line can be seen by everybody on this machine",
                          "Give it in a file (--redis-password-file), or in OUTBOX_REDIS_PASSWORD or OUTBOX_REDIS_URL.");
    } else if (!in_environment.empty()) {
        address = parsed(in_environment, "OUTBOX_REDIS_URL");
    } else {
        address = ask_database(ask(), common.sink);
    }

    std::string file = !common.password_file.empty() ? common.password_file : environment("OUTBOX_REDIS_PASSWORD_FILE");
    if (!file.empty())
        address.url.password = read_password(file);
    else if (std::string password = environment("OUTBOX_REDIS_PASSWORD"); !password.empty())
        address.url.password = password;
    else if (from_sink)
        address.url.password = password_of_sink(ask());
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

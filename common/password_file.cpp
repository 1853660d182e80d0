#include "common/password_file.hpp"

namespace outbox {

// Cuts a field off, up to the next colon. False where there is none; the last field is all that is left.
static bool take_field(std::string_view &line, bool last, std::string &field) {
    field.clear();
    std::size_t i = 0;
    for (; i < line.size() && (last || line[i] != ':'); ++i) {
        if (line[i] == '\\' && i + 1 < line.size() && (line[i + 1] == ':' || line[i + 1] == '\\'))
            ++i;
        field += line[i];
    }
    bool ended = i < line.size();
    line = line.substr(ended ? i + 1 : i);
    return last || ended;
}

static std::string list_of(const redis_url &url) {
    std::string list;
    for (const auto &sentinel : url.sentinels)
        list += (list.empty() ? "" : ",") + sentinel.host + ":" + std::to_string(sentinel.port);
    return list;
}

// `port` is empty where only "*" can stand for it.
static bool matches(std::string_view line, const std::string &host, const std::string &port, const std::string &user,
                    std::string &password) {
    if (line.starts_with('#'))
        return false;
    std::string field;
    if (!take_field(line, false, field) || field != host)
        return false;
    if (!take_field(line, false, field) || (field != "*" && (port.empty() || field != port)))
        return false;
    if (!take_field(line, false, field) || (field != "*" && field != user))
        return false;
    return take_field(line, true, password);
}

bool password_for(std::string_view line, const redis_url &url, std::string &password) {
    if (!url.sentinels.empty())
        return matches(line, list_of(url) + "/" + url.master, "", url.user, password);
    if (!url.path.empty())
        return matches(line, url.path, "", url.user, password);
    return matches(line, url.host, std::to_string(url.port), url.user, password);
}

bool sentinel_password_for(std::string_view line, const redis_url &url, std::string &password) {
    return !url.sentinels.empty() && matches(line, list_of(url), "", url.sentinel_user, password);
}

} // namespace outbox

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

static std::string name_of(const redis_url &url) {
    if (url.sentinels.empty())
        return !url.path.empty() ? url.path : url.host;
    std::string name;
    for (const auto &sentinel : url.sentinels)
        name += (name.empty() ? "" : ",") + sentinel.host;
    return name + "/" + url.master;
}

bool password_for(std::string_view line, const redis_url &url, std::string &password) {
    if (line.starts_with('#'))
        return false;
    std::string host, port, user;
    if (!take_field(line, false, host) || !take_field(line, false, port) || !take_field(line, false, user))
        return false;
    if (host != name_of(url))
        return false;
    if (port != "*" && (url.host.empty() || port != std::to_string(url.port)))
        return false;
    if (user != "*" && user != url.user)
        return false;
    return take_field(line, true, password);
}

} // namespace outbox

// Redis URLs: parsing, and masking the password in anything that is shown. Pure C++, no PostgreSQL header.
#pragma once

#include <string>
#include <string_view>

namespace outbox {

struct redis_url {
    std::string host; // empty when `path` is used
    int port = 6379;
    std::string path; // unix socket
    std::string user;
    std::string password;
    int database = 0;

    // "127.0.0.1:6379" or "/run/redis.sock": for messages, never with credentials.
    std::string endpoint() const;
};

// Accepts redis://[[user][:password]@]host[:port][/db] and unix://[[user][:password]@]/path[?db=N], with %-escapes in user,
// password and path and [..] around an IPv6 address. On failure returns false and says why in `error`, never quoting the
// password.
bool parse_redis_url(std::string_view text, redis_url &url, std::string &error);

// The text with "***" in place of the password of every URL in it.
std::string mask_passwords(std::string_view text);

} // namespace outbox

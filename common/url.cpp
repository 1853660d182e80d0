#include "common/url.hpp"

#include <algorithm>

namespace outbox {

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool unescape(std::string_view text, std::string &result) {
    result.clear();
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            result += text[i];
            continue;
        }
        if (i + 2 >= text.size() || hex_digit(text[i + 1]) < 0 || hex_digit(text[i + 2]) < 0)
            return false;
        char c = static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
        if (c == '\0')
            return false; // would cut a socket path or host name short
        result += c;
        i += 2;
    }
    return true;
}

static bool parse_number(std::string_view text, int max, int &result) {
    if (text.empty() || text.size() > 9)
        return false;
    int value = 0;
    for (char c : text) {
        if (c < '0' || c > '9')
            return false;
        value = value * 10 + (c - '0');
    }
    result = value;
    return value <= max;
}

std::string redis_url::endpoint() const {
    if (!path.empty())
        return path;
    if (host.find(':') != std::string::npos)
        return "[" + host + "]:" + std::to_string(port);
    return host + ":" + std::to_string(port);
}

static bool parse_credentials(std::string_view text, redis_url &url, std::string &error) {
    // Where a URL ends in a line of text must be plain, or its password could not be masked there.
    for (char c : text)
        if ((c >= 0 && c <= ' ') || c == 0x7f || c == '"' || c == '\'') {
            error = "user or password has a space, quote or control character, which must be %-escaped";
            return false;
        }
    // A user alone: the password comes from elsewhere.
    auto colon = std::min(text.find(':'), text.size());
    if (!unescape(text.substr(0, colon), url.user) ||
        !unescape(text.substr(std::min(colon + 1, text.size())), url.password)) {
        error = "user or password has an invalid %-escape";
        return false;
    }
    return true;
}

static bool parse_unix(std::string_view rest, redis_url &url, std::string &error) {
    auto query = rest.find('?');
    if (query != std::string_view::npos) {
        auto parameter = rest.substr(query + 1);
        if (parameter.substr(0, 3) != "db=" ||
            !parse_number(parameter.substr(3), 65535, url.database)) {
            error = "the only parameter after the path is db=N";
            return false;
        }
        rest = rest.substr(0, query);
    }
    if (rest.empty() || rest[0] != '/' || !unescape(rest, url.path)) {
        error = "a unix URL needs an absolute path";
        return false;
    }
    if (url.path.size() > 107) {
        error = "the path of a unix socket has at most 107 bytes";
        return false;
    }
    return true;
}

// A name or an IPv4 address; in brackets an IPv6 address.
static bool is_host(std::string_view host, bool bracketed) {
    for (char c : host) {
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (bracketed ? !(hex_digit(c) >= 0 || c == ':' || c == '.') : !(letter || c == '.' || c == '-' || c == '_'))
            return false;
    }
    return !bracketed || host.find(':') != std::string_view::npos;
}

static bool parse_tcp(std::string_view rest, redis_url &url, std::string &error) {
    auto slash = rest.find('/');
    if (slash != std::string_view::npos) {
        auto database = rest.substr(slash + 1);
        if (!database.empty() && !parse_number(database, 65535, url.database)) {
            error = "the database after \"/\" must be a number";
            return false;
        }
        rest = rest.substr(0, slash);
    }
    std::string_view port;
    bool bracketed = !rest.empty() && rest[0] == '[';
    if (bracketed) {
        auto close = rest.find(']');
        if (close == std::string_view::npos) {
            error = "an IPv6 address needs \"]\" behind it";
            return false;
        }
        url.host = rest.substr(1, close - 1);
        rest = rest.substr(close + 1);
        if (!rest.empty() && rest[0] != ':') {
            error = "only \":port\" may follow the host";
            return false;
        }
        port = rest.empty() ? rest : rest.substr(1);
    } else {
        auto colon = rest.find(':');
        url.host = rest.substr(0, colon);
        if (colon != std::string_view::npos)
            port = rest.substr(colon + 1);
    }
    if (url.host.empty()) {
        error = "the host is missing";
        return false;
    }
    if (!is_host(url.host, bracketed)) {
        error = "the host has a character that is not allowed there";
        return false;
    }
    if (!port.empty() && (!parse_number(port, 65535, url.port) || url.port == 0)) {
        error = "the port must be a number from 1 to 65535";
        return false;
    }
    return true;
}

bool parse_redis_url(std::string_view text, redis_url &url, std::string &error) {
    url = redis_url{};
    bool is_unix = text.substr(0, 7) == "unix://";
    if (!is_unix && text.substr(0, 8) != "redis://") {
        error = text.substr(0, 9) == "rediss://"
                    ? "TLS (rediss://) is not supported by this build"
                    : "the URL must begin with redis:// or unix://";
        return false;
    }
    auto rest = text.substr(is_unix ? 7 : 8);
    // The last "@": a password that was not escaped may hold one too.
    auto at = rest.rfind('@');
    if (at != std::string_view::npos) {
        if (!parse_credentials(rest.substr(0, at), url, error))
            return false;
        rest = rest.substr(at + 1);
    }
    return is_unix ? parse_unix(rest, url, error) : parse_tcp(rest, url, error);
}

std::string mask_passwords(std::string_view text) {
    std::string result;
    for (;;) {
        auto scheme = text.find("://");
        if (scheme == std::string_view::npos)
            break;
        auto begin = scheme + 3;
        auto end = text.find_first_of(" \t\r\n\"'", begin);
        if (end == std::string_view::npos)
            end = text.size();
        auto authority = text.substr(begin, end - begin);
        auto at = authority.rfind('@');
        auto colon = authority.find(':');
        if (at != std::string_view::npos && colon < at) {
            result.append(text.substr(0, begin + colon + 1));
            result.append("***");
            result.append(authority.substr(at));
        } else {
            result.append(text.substr(0, end));
        }
        text = text.substr(end);
    }
    result.append(text);
    return result;
}

} // namespace outbox

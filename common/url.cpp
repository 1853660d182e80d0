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

static std::string print(const std::string &host, int port) {
    bool is_ipv6 = host.find(':') != std::string::npos;
    return (is_ipv6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string redis_url::endpoint() const {
    if (!path.empty())
        return path;
    if (sentinels.empty())
        return print(host, port);
    std::string result = master + " at ";
    for (const server &one : sentinels)
        result += (&one == &sentinels.front() ? "" : ",") + print(one.host, one.port);
    return result;
}

redis_url redis_url::at_sentinel(std::size_t index) const {
    redis_url result;
    result.host = sentinels[index].host;
    result.port = sentinels[index].port;
    result.user = sentinel_user;
    result.password = sentinel_password;
    result.tls = tls;
    result.files = files;
    return result;
}

redis_url redis_url::at_master(server where) const {
    redis_url result = *this;
    result.host = std::move(where.host);
    result.port = where.port;
    result.sentinels.clear();
    return result;
}

// Where a URL ends in a line of text must be plain, or its password could not be masked there.
static bool ends_plainly(std::string_view text) {
    return std::none_of(text.begin(), text.end(),
                        [](char c) { return (c >= 0 && c <= ' ') || c == 0x7f || c == '"' || c == '\''; });
}

static bool parse_credentials(std::string_view text, redis_url &url, std::string &error) {
    if (!ends_plainly(text)) {
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

enum class kind { tcp, unix_socket, sentinel };

// What follows the "?": name=value, separated by "&".
static bool parse_parameters(std::string_view text, kind kind, redis_url &url, std::string &error) {
    const struct {
        std::string_view name;
        bool fits;
        std::string *value;
    } known[] = {
        {"sslrootcert", url.tls, &url.files.ca},
        {"sslcert", url.tls, &url.files.certificate},
        {"sslkey", url.tls, &url.files.key},
        {"sentinel_user", kind == kind::sentinel, &url.sentinel_user},
        {"sentinel_password", kind == kind::sentinel, &url.sentinel_password},
    };
    if (!ends_plainly(text)) {
        error = "a parameter has a space, quote or control character, which must be %-escaped";
        return false;
    }
    for (bool more = true; more;) {
        auto end = std::min(text.find('&'), text.size());
        auto one = text.substr(0, end);
        more = end < text.size();
        text.remove_prefix(more ? end + 1 : end);
        auto equals = one.find('=');
        auto name = one.substr(0, equals), value = equals == std::string_view::npos ? "" : one.substr(equals + 1);
        if (kind == kind::unix_socket) {
            if (name != "db" || more || !parse_number(value, 65535, url.database)) {
                error = "the only parameter after the path is db=N";
                return false;
            }
            continue;
        }
        auto found = std::find_if(std::begin(known), std::end(known), [name](const auto &row) { return row.name == name; });
        if (found == std::end(known)) {
            error = "the parameters after \"?\" are sslrootcert, sslcert, sslkey, sentinel_user and sentinel_password";
            return false;
        }
        if (!found->fits) {
            error = "the parameter " + std::string(name) +
                    (name.starts_with("ssl") ? " needs TLS, which is rediss:// or rediss+sentinel://"
                                             : " is for redis+sentinel:// and rediss+sentinel:// only");
            return false;
        }
        if (!found->value->empty() || !unescape(value, *found->value) || found->value->empty()) {
            error = "the parameter " + std::string(name) + " is empty, given twice, or has an invalid %-escape";
            return false;
        }
    }
    if (url.files.certificate.empty() != url.files.key.empty()) {
        error = "the parameters sslcert and sslkey need each other";
        return false;
    }
    return true;
}

static bool parse_unix(std::string_view rest, redis_url &url, std::string &error) {
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

// host[:port]
static bool parse_server(std::string_view text, redis_url::server &server, std::string &error) {
    std::string_view port;
    bool bracketed = !text.empty() && text[0] == '[';
    if (bracketed) {
        auto close = text.find(']');
        if (close == std::string_view::npos) {
            error = "an IPv6 address needs \"]\" behind it";
            return false;
        }
        server.host = text.substr(1, close - 1);
        text = text.substr(close + 1);
        if (!text.empty() && text[0] != ':') {
            error = "only \":port\" may follow the host";
            return false;
        }
        port = text.empty() ? text : text.substr(1);
    } else {
        auto colon = text.find(':');
        server.host = text.substr(0, colon);
        if (colon != std::string_view::npos)
            port = text.substr(colon + 1);
    }
    if (server.host.empty()) {
        error = "the host is missing";
        return false;
    }
    if (!is_host(server.host, bracketed)) {
        error = "the host has a character that is not allowed there";
        return false;
    }
    if (!port.empty() && (!parse_number(port, 65535, server.port) || server.port == 0)) {
        error = "the port must be a number from 1 to 65535";
        return false;
    }
    return true;
}

bool parse_server_address(std::string_view host, std::string_view port, redis_url::server &server) {
    server = {std::string(host), 0};
    return !host.empty() && is_host(host, host.find(':') != std::string_view::npos) && parse_number(port, 65535, server.port) &&
           server.port > 0;
}

static bool parse_database(std::string_view text, redis_url &url, std::string &error) {
    if (text.empty() || parse_number(text, 65535, url.database))
        return true;
    error = "the database after \"/\" must be a number";
    return false;
}

static bool parse_tcp(std::string_view rest, redis_url &url, std::string &error) {
    auto slash = std::min(rest.find('/'), rest.size());
    redis_url::server server = {"", url.port};
    if (!parse_database(rest.substr(std::min(slash + 1, rest.size())), url, error) ||
        !parse_server(rest.substr(0, slash), server, error))
        return false;
    url.host = std::move(server.host);
    url.port = server.port;
    return true;
}

static bool parse_sentinels(std::string_view rest, redis_url &url, std::string &error) {
    auto slash = std::min(rest.find('/'), rest.size());
    auto servers = rest.substr(0, slash), name = rest.substr(std::min(slash + 1, rest.size()));
    slash = std::min(name.find('/'), name.size());
    if (!parse_database(name.substr(std::min(slash + 1, name.size())), url, error))
        return false;
    if (!ends_plainly(name) || !unescape(name.substr(0, slash), url.master) || url.master.empty()) {
        error = "after the sentinels comes \"/\" and the name by which they know the master";
        return false;
    }
    for (;;) {
        auto comma = servers.find(',');
        redis_url::server server = {"", 26379};
        if (!parse_server(servers.substr(0, comma), server, error))
            return false;
        url.sentinels.push_back(std::move(server));
        if (comma == std::string_view::npos)
            return true;
        servers.remove_prefix(comma + 1);
    }
}

bool parse_redis_url(std::string_view text, redis_url &url, std::string &error) {
    static constexpr struct {
        std::string_view scheme;
        enum kind kind;
        bool tls;
    } table[] = {
        {"redis://", kind::tcp, false},
        {"rediss://", kind::tcp, true},
        {"unix://", kind::unix_socket, false},
        {"redis+sentinel://", kind::sentinel, false},
        {"rediss+sentinel://", kind::sentinel, true},
    };
    url = redis_url{};
    auto row = std::find_if(std::begin(table), std::end(table), [text](const auto &one) { return text.starts_with(one.scheme); });
    if (row == std::end(table)) {
        error = "the URL must begin with redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://";
        return false;
    }
    url.tls = row->tls;
    auto rest = text.substr(row->scheme.size());
    // The last "@": a password that was not escaped may hold one too.
    auto at = rest.rfind('@');
    if (at != std::string_view::npos) {
        if (!parse_credentials(rest.substr(0, at), url, error))
            return false;
        rest = rest.substr(at + 1);
    }
    auto query = rest.find('?');
    if (query != std::string_view::npos) {
        if (!parse_parameters(rest.substr(query + 1), row->kind, url, error))
            return false;
        rest = rest.substr(0, query);
    }
    switch (row->kind) {
    case kind::unix_socket:
        return parse_unix(rest, url, error);
    case kind::sentinel:
        return parse_sentinels(rest, url, error);
    default:
        return parse_tcp(rest, url, error);
    }
}

// Of one URL, without its scheme: the value of every parameter that is a password, and what is between the first ":" and the
// last "@".
static std::string mask_url(std::string_view url) {
    static constexpr std::string_view name = "password=";
    std::string result(url);
    for (std::size_t begin = 0; (begin = result.find(name, begin)) != std::string::npos;) {
        auto sign = result.find_last_of("?&:@/", begin);
        begin += name.size();
        if (sign == std::string::npos || (result[sign] != '?' && result[sign] != '&'))
            continue;
        auto end = std::min(result.find('&', begin), result.size());
        if (result.find('@', begin) != std::string::npos)
            end = result.size(); // an "@" that was not escaped: where the password ends cannot be told
        result.replace(begin, end - begin, "***");
    }
    auto at = result.rfind('@'), colon = result.find(':');
    if (at != std::string::npos && colon < at)
        result.replace(colon + 1, at - colon - 1, "***");
    return result;
}

std::string mask_passwords(std::string_view text) {
    std::string result;
    for (;;) {
        auto scheme = text.find("://");
        if (scheme == std::string_view::npos)
            break;
        auto begin = scheme + 3;
        auto end = std::min(text.find_first_of(" \t\r\n\"'", begin), text.size());
        result.append(text.substr(0, begin));
        result.append(mask_url(text.substr(begin, end - begin)));
        text = text.substr(end);
    }
    result.append(text);
    return result;
}

} // namespace outbox

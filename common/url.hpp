// Redis URLs: parsing, and masking the password in anything that is shown. Pure C++, no PostgreSQL header.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace outbox {

// PEM files, by path; all may be empty.
struct tls_files {
    std::string ca; // who may sign the server's certificate; empty: the certificate authorities of the system
    std::string certificate, key;
};

struct redis_url {
    struct server {
        std::string host;
        int port;
    };

    std::string host; // empty when `path` or `sentinels` is used
    int port = 6379;
    std::string path; // unix socket
    std::string user;
    std::string password;
    int database = 0;

    bool tls = false; // of the server and of the sentinels
    tls_files files;

    std::vector<server> sentinels; // that know where the master is,
    std::string master;            // of this name
    std::string sentinel_user, sentinel_password;

    // "127.0.0.1:6379", "[::1]:6379", "/run/redis.sock" or "wallets at 10.0.0.1:26379,10.0.0.2:26379": for messages, never with
    // credentials.
    std::string endpoint() const;

    // How to reach a sentinel, and the master that it named.
    redis_url at_sentinel(std::size_t index) const;
    redis_url at_master(server where) const;
};

// Accepts
//
//   redis://[[user][:password]@]host[:port][/db]
//   rediss://...                   the same by TLS; ?sslrootcert=FILE&sslcert=FILE&sslkey=FILE
//   unix://[[user][:password]@]/path[?db=N]
//   redis+sentinel://[[user][:password]@]host[:port][,host[:port]...]/master[/db]; ?sentinel_user=NAME&sentinel_password=TEXT
//   rediss+sentinel://...          the same by TLS, with the parameters of both
//
// with %-escapes in user, password, path, master and the values of parameters, and [..] around an IPv6 address. On failure
// returns false and says why in `error`, never quoting the password.
bool parse_redis_url(std::string_view text, redis_url &url, std::string &error);

// The host, which may be an IPv6 address without brackets, and the port as somebody else names them.
bool parse_server_address(std::string_view host, std::string_view port, redis_url::server &server);

// The text with "***" in place of the passwords of every URL in it.
std::string mask_passwords(std::string_view text);

} // namespace outbox

// Lines of a file with passwords, as PostgreSQL's own .pgpass has them: host:port:user:password. Pure C++.
#pragma once

#include "common/url.hpp"

#include <string>
#include <string_view>

namespace outbox {

// Is the line for this server and user? Then `password` is what it says. The host is that of the URL, the path of a socket, or all
// sentinels and their master ("host:port,host:port/master"), and has to be written out, so that no password goes to a server that it
// is not for; port and user may be "*", and of a socket or sentinels the port is. A backslash takes the meaning from a colon or
// backslash behind it. Lines that begin with "#" are for nobody.
bool password_for(std::string_view line, const redis_url &url, std::string &password);

// The same for the sentinels themselves, all of them: "host:port,host:port".
bool sentinel_password_for(std::string_view line, const redis_url &url, std::string &password);

} // namespace outbox

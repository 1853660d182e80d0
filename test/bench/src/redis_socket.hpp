// A connected socket to Redis, for programs that speak its protocol themselves.
#pragma once

#include "options.hpp"

#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

// where: the path of a unix socket, or a port of 127.0.0.1
inline int connect_redis(const std::string &where) {
    int fd;
    int result;
    if (where.starts_with('/')) {
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        if (where.size() >= sizeof address.sun_path)
            options::fail("the path of the socket is too long");
        std::memcpy(address.sun_path, where.c_str(), where.size());
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        result = connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address);
    } else {
        sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(std::atoi(where.c_str())));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        result = connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address);
    }
    if (fd < 0 || result != 0)
        options::fail("could not connect to Redis at \"" + where + "\": " + std::strerror(errno));
    return fd;
}

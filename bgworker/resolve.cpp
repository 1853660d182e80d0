#include "bgworker/resolve.hpp"

#include <ares.h>
#include <cstring>
#include <netdb.h>
#include <poll.h>

namespace outbox {

void resolver::on_socket(void *self, int fd, int readable, int writable) {
    auto &sockets = static_cast<resolver *>(self)->sockets_;
    std::erase_if(sockets, [fd](const watched &w) { return w.fd == fd; });
    if (readable || writable)
        sockets.push_back({fd, readable != 0, writable != 0});
}

void resolver::on_result(void *self, int status, int, ares_addrinfo *result) {
    auto &own = *static_cast<resolver *>(self);
    own.done_ = true;
    if (status != ARES_SUCCESS) {
        own.error_ = ares_strerror(status);
    } else {
        for (auto *node = result->nodes; node; node = node->ai_next) {
            socket_address address = {};
            std::memcpy(&address.address, node->ai_addr, node->ai_addrlen);
            address.length = static_cast<socklen_t>(node->ai_addrlen);
            own.addresses_.push_back(address);
        }
        if (own.addresses_.empty())
            own.error_ = "no address found";
    }
    if (result)
        ares_freeaddrinfo(result);
}

void resolver::start(const std::string &host, int port) noexcept {
    cancel();
    addresses_.clear();
    error_.clear();
    done_ = false;
    static bool initialized = ares_library_init(ARES_LIB_INIT_ALL) == ARES_SUCCESS;
    ares_options options = {};
    options.sock_state_cb = on_socket;
    options.sock_state_cb_data = this;
    if (!initialized ||
        ares_init_options(&channel_, &options, ARES_OPT_SOCK_STATE_CB) != ARES_SUCCESS) {
        channel_ = nullptr;
        done_ = true;
        error_ = "could not initialize the resolver";
        return;
    }
    ares_addrinfo_hints hints = {};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = ARES_AI_NUMERICSERV;
    ares_getaddrinfo(channel_, host.c_str(), std::to_string(port).c_str(), &hints, on_result, this);
}

void resolver::cancel() noexcept {
    if (channel_)
        ares_destroy(channel_); // calls on_result with ARES_EDESTRUCTION where it was not done
    channel_ = nullptr;
    sockets_.clear();
}

void resolver::pump() noexcept {
    if (done_ || !channel_)
        return;
    // The callbacks change sockets_ while it is walked.
    auto sockets = sockets_;
    bool any = false;
    for (const auto &socket : sockets) {
        pollfd ready = {socket.fd, static_cast<short>((socket.read ? POLLIN : 0) | (socket.write ? POLLOUT : 0)), 0};
        if (::poll(&ready, 1, 0) <= 0)
            continue;
        any = true;
        ares_process_fd(channel_, ready.revents & (POLLIN | POLLERR | POLLHUP) ? socket.fd : ARES_SOCKET_BAD,
                        ready.revents & POLLOUT ? socket.fd : ARES_SOCKET_BAD);
        if (done_)
            return;
    }
    if (!any)
        ares_process_fd(channel_, ARES_SOCKET_BAD, ARES_SOCKET_BAD); // its time-outs
}

} // namespace outbox

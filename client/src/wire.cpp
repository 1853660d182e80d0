#include "src/wire.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include <sys/socket.h>

namespace outbox::detail {

// Outlives the wire until libuv has closed the handle.
struct wire::poller {
    uv_poll_t handle{};
    wire *owner = nullptr;
    int wanted = 0;
};

void wire::open(const redis_url &url, int attempt) {
    close();
    url_ = url;
    attempt_ = attempt;
    addresses_.clear();
    address_ = 0;
    socket_address address;
    if (!address_of(url_, address)) {
        resolve();
        return;
    }
    addresses_.push_back(address);
    connect_next();
}

void wire::close() noexcept {
    ++opened_;
    if (resolver_ != nullptr) {
        resolver_->data = nullptr;
        uv_cancel(reinterpret_cast<uv_req_t *>(resolver_));
        resolver_ = nullptr;
    }
    forget_socket();
    channel_.close();
}

// getaddrinfo in a thread of libuv's: a name server that is silent stops nobody.
void wire::resolve() {
    resolver_ = new uv_getaddrinfo_t{};
    resolver_->data = this;
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_family = AF_UNSPEC;
    int status = uv_getaddrinfo(
        &loop_, resolver_,
        [](uv_getaddrinfo_t *request, int result, addrinfo *found) {
            auto *self = static_cast<wire *>(request->data);
            if (self != nullptr && result == 0)
                for (const addrinfo *one = found; one != nullptr; one = one->ai_next) {
                    socket_address address{};
                    std::memcpy(&address.address, one->ai_addr, one->ai_addrlen);
                    address.length = one->ai_addrlen;
                    self->addresses_.push_back(address);
                }
            uv_freeaddrinfo(found);
            delete request;
            if (self == nullptr)
                return; // closed, or given up, meanwhile
            self->resolver_ = nullptr;
            auto &addresses = self->addresses_;
            if (addresses.empty()) {
                self->events_.failed("the host name could not be resolved: " + std::string(uv_strerror(result)));
                return;
            }
            std::rotate(addresses.begin(), addresses.begin() + self->attempt_ % static_cast<int>(addresses.size()), addresses.end());
            self->connect_next();
        },
        url_.host.c_str(), std::to_string(url_.port).c_str(), &hints);
    if (status != 0) {
        delete resolver_;
        resolver_ = nullptr;
        events_.failed(uv_strerror(status));
    }
}

void wire::connect_next() {
    forget_socket();
    is_told_ = false;
    channel_.open(url_, addresses_[address_++]);
    move_on();
}

// What became of the last step.
void wire::move_on() {
    if (!channel_.failed())
        return watch();
    // "localhost" is ::1 first on many machines, and Redis listens on 127.0.0.1
    if (channel_.was_unreachable() && address_ < addresses_.size())
        return connect_next();
    std::string why = channel_.error();
    forget_socket();
    events_.failed(why);
}

void wire::watch() {
    if (poller_ == nullptr) {
        poller_ = new poller;
        poller_->owner = this;
        poller_->handle.data = poller_;
        if (int status = uv_poll_init(&loop_, &poller_->handle, channel_.fd()); status != 0) {
            delete poller_;
            poller_ = nullptr;
            events_.failed(uv_strerror(status));
            return;
        }
    }
    // A socket that was connected at once can be written to, and that is how we hear of it.
    int wanted = UV_READABLE | (channel_.wants_write() || (channel_.ready() && !is_told_) ? UV_WRITABLE : 0);
    if (wanted == poller_->wanted)
        return;
    poller_->wanted = wanted;
    uv_poll_start(&poller_->handle, poller_->wanted, [](uv_poll_t *handle, int status, int) {
        auto *self = static_cast<poller *>(handle->data);
        if (status != 0)
            self->wanted = 0; // libuv has stopped it; whoever reads or writes finds the error
        if (self->owner != nullptr)
            self->owner->step();
    });
}

void wire::forget_socket() noexcept {
    if (poller_ == nullptr)
        return;
    poller_->owner = nullptr;
    uv_close(reinterpret_cast<uv_handle_t *>(&poller_->handle),
             [](uv_handle_t *handle) { delete static_cast<poller *>(handle->data); });
    poller_ = nullptr;
}

void wire::step() {
    const auto opened = opened_;
    channel_.advance();
    if (channel_.ready() && !is_told_) {
        is_told_ = true;
        events_.connected();
        if (opened != opened_)
            return;
    }
    // before anything is written: what a server has to say while it closes is the reason
    read_all();
    if (opened != opened_)
        return;
    channel_.flush();
    move_on();
}

void wire::read_all() {
    constexpr std::size_t size = 256 * 1024;
    thread_local const std::unique_ptr<char[]> buffer(new char[size]);
    const auto opened = opened_;
    while (std::size_t count = channel_.read(buffer.get(), size)) {
        events_.received({buffer.get(), count});
        if (opened != opened_ || (count < size && !channel_.must_be_emptied()))
            return;
    }
}

void wire::flush() {
    if (!channel_.ready() || channel_.all_sent())
        return;
    channel_.flush();
    move_on();
}

} // namespace outbox::detail

// Between consumers and their server: passes everything on, or does what a bad network does.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "servers.hpp"

namespace outbox::test {

class proxy {
  public:
    enum class manner {
        pass,
        swallow, // the server gets what is said to it, but its answers are lost
        refuse,  // accepts, and closes at once
        silent,  // accepts, and says nothing
        babble,  // answers with what is no RESP
        crawl,   // a byte at a time
        half,    // the first half of an answer, and then nothing more
    };

    explicit proxy(const redis_server &redis) : server_(redis.socket_path()) {
        listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        auto *generic = reinterpret_cast<sockaddr *>(&address);
        if (bind(listener_, generic, size) != 0 || listen(listener_, 64) != 0 || getsockname(listener_, generic, &size) != 0)
            throw std::runtime_error("the proxy could not listen");
        port_ = ntohs(address.sin_port);
        thread_ = std::thread([this] { work(); });
    }
    ~proxy() {
        stop_ = true;
        thread_.join();
        close(listener_);
    }

    std::string url() const { return "redis://127.0.0.1:" + std::to_string(port_); }

    // From now on, also on the connections that are there; but "refuse" is for new ones, see cut(). A connection on which
    // something was lost loses all that follows it, until it is closed: no network loses the middle of a stream.
    void be(manner now) { manner_ = now; }
    // Closes the connections that are there.
    void cut() {
        cut_ = true;
        eventually([this] { return !cut_; });
    }
    int accepted() const { return accepted_; }
    // Answers, or parts of them, that were not passed on.
    long swallowed() const { return swallowed_; }

  private:
    struct pair {
        int client, server;
        bool mute = false, deaf = false; // what is said by the client, or to it, is lost
    };

    void work() {
        std::vector<pair> pairs;
        auto end = [&pairs](std::size_t i) {
            close(pairs[i].client);
            close(pairs[i].server);
            pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(i));
        };
        while (!stop_) {
            if (cut_) {
                while (!pairs.empty())
                    end(0);
                cut_ = false;
            }
            std::vector<pollfd> fds{{listener_, POLLIN, 0}};
            for (const pair &one : pairs)
                for (int fd : {one.client, one.server})
                    fds.push_back({fd, POLLIN, 0});
            poll(fds.data(), fds.size(), 5);
            for (std::size_t i = pairs.size(); i-- > 0;)
                if ((fds[1 + 2 * i].revents != 0 && !to_server(pairs[i])) || (fds[2 + 2 * i].revents != 0 && !to_client(pairs[i])))
                    end(i);
            if (fds[0].revents != 0)
                accept_one(pairs);
        }
        while (!pairs.empty())
            end(0);
    }

    void accept_one(std::vector<pair> &pairs) {
        int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        if (client < 0)
            return;
        ++accepted_;
        if (manner_ == manner::refuse) {
            close(client);
            return;
        }
        int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        server_.copy(address.sun_path, sizeof address.sun_path - 1);
        if (connect(server, reinterpret_cast<sockaddr *>(&address), sizeof address) != 0) {
            close(client);
            close(server);
            return;
        }
        pairs.push_back({client, server});
    }

    static bool put(int fd, const char *data, ssize_t size) {
        for (ssize_t done = 0; done < size;) {
            ssize_t n = send(fd, data + done, static_cast<std::size_t>(size - done), MSG_NOSIGNAL);
            if (n <= 0)
                return false;
            done += n;
        }
        return true;
    }

    bool to_server(pair &one) {
        ssize_t n = recv(one.client, buffer_.data(), buffer_.size(), 0);
        if (n <= 0)
            return false;
        one.mute |= manner_ == manner::silent;
        if (one.mute)
            return true;
        if (manner_ == manner::babble) {
            constexpr std::string_view words = "HTTP/1.1 400 Bad Request\r\n\r\n";
            return put(one.client, words.data(), static_cast<ssize_t>(words.size()));
        }
        return put(one.server, buffer_.data(), n);
    }

    bool to_client(pair &one) {
        ssize_t n = recv(one.server, buffer_.data(), buffer_.size(), 0);
        if (n <= 0)
            return false;
        manner now = manner_;
        if (!one.deaf && now == manner::pass)
            return put(one.client, buffer_.data(), n);
        if (!one.deaf && now == manner::crawl) {
            for (ssize_t i = 0; i < n; ++i)
                if (!put(one.client, buffer_.data() + i, 1))
                    return false;
            return true;
        }
        swallowed_ += n;
        bool first = !one.deaf;
        one.deaf = true;
        return now != manner::half || !first || put(one.client, buffer_.data(), std::max<ssize_t>(n / 2, 1));
    }

    std::string server_;
    int listener_, port_ = 0;
    std::atomic<manner> manner_{manner::pass};
    std::atomic<bool> stop_{false}, cut_{false};
    std::atomic<int> accepted_{0};
    std::atomic<long> swallowed_{0};
    std::array<char, 65536> buffer_;
    std::thread thread_;
};

} // namespace outbox::test

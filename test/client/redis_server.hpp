// A Redis server of a test's own: in a temporary directory, on a unix socket and a free port, with as much configuration as
// the test wants. It ends with the object, and with the test's process even if that is killed.
#pragma once

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hiredis/hiredis.h>

namespace outbox::test {

struct free_redis {
    void operator()(redisReply *reply) const noexcept { freeReplyObject(reply); }
    void operator()(redisContext *context) const noexcept { redisFree(context); }
};
using redis_reply = std::unique_ptr<redisReply, free_redis>;

class redis_server {
  public:
    // What it is started as.
    enum class role { server, sentinel };

    // Lines of redis.conf. Nothing is persisted, unless they say so ("appendonly yes", "appendfsync always"). "PORT" in them
    // stands for another port, see more_port().
    explicit redis_server(std::vector<std::string> configuration = {}, role role = role::server)
        : configuration_(std::move(configuration)), role_(role) {
        auto name = (std::filesystem::temp_directory_path() / "outbox-redis-XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr)
            throw std::runtime_error("could not make a temporary directory");
        directory_ = name;
        start();
    }

    ~redis_server() {
        kill9();
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }

    redis_server(const redis_server &) = delete;
    redis_server &operator=(const redis_server &) = delete;

    std::string url() const { return "unix://" + socket_path(); }
    std::string tcp_url() const { return "redis://127.0.0.1:" + std::to_string(port_); }
    std::string socket_path() const { return directory_ + "/redis.sock"; }
    const std::string &directory() const noexcept { return directory_; }
    int port() const noexcept { return port_; }
    int more_port() const noexcept { return more_port_; }
    pid_t pid() const noexcept { return pid_; }

    void kill9() {
        connection_.reset();
        if (pid_ <= 0)
            return;
        ::kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }

    // SIGSTOP and SIGCONT: it accepts connections and says nothing.
    void stop() { ::kill(pid_, SIGSTOP); }
    void cont() { ::kill(pid_, SIGCONT); }

    // At the same addresses; with its data only if it is configured to persist it.
    void restart() {
        kill9();
        start();
    }

    // After kill9(); returns once the server answers.
    void start() {
        for (int attempt = 0;; ++attempt) {
            if (port_ == 0) {
                port_ = free_port();
                more_port_ = free_port();
            }
            launch();
            if (answers())
                return;
            kill9();
            if (attempt == 4)
                throw std::runtime_error("redis-server does not start:\n" + log());
            if (!started_)
                port_ = 0; // somebody else may have taken it in the meantime
        }
    }

    std::string log() const {
        std::ifstream file(directory_ + "/log");
        return {std::istreambuf_iterator<char>(file), {}};
    }

    // Sends a command and waits for its reply, which may be an error. On one connection of the fixture's own, which is
    // made anew if it is broken; after "requirepass" the test says AUTH itself.
    redis_reply command(const std::vector<std::string> &words) {
        std::vector<const char *> texts;
        std::vector<std::size_t> sizes;
        for (const auto &word : words) {
            texts.push_back(word.data());
            sizes.push_back(word.size());
        }
        if (!connection_ || connection_->err != 0)
            connection_ = connect();
        auto reply = static_cast<redisReply *>(redisCommandArgv(
            connection_.get(), static_cast<int>(words.size()), texts.data(), sizes.data()));
        if (reply == nullptr) {
            std::string why = connection_->errstr;
            connection_.reset();
            throw std::runtime_error(words.at(0) + ": " + why);
        }
        return redis_reply(reply);
    }

    redis_reply command(std::initializer_list<std::string> words) {
        return command(std::vector<std::string>(words));
    }

    // command("XADD", key, "*", "field", 1)
    template <typename... Words> redis_reply command(std::string_view name, const Words &...words) {
        return command(std::vector<std::string>{std::string(name), text(words)...});
    }

  private:
    // None of those that the kernel gives to whoever does not care: somebody's connection would have it when the server is
    // started there, or again.
    static int free_port() {
        static std::minstd_rand random(std::random_device{}());
        for (int attempt = 0; attempt < 1000; ++attempt) {
            int port = std::uniform_int_distribution<int>(16'000, 31'999)(random);
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            sockaddr_in address{};
            address.sin_family = AF_INET;
            address.sin_port = htons(static_cast<std::uint16_t>(port));
            address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            bool bound = bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0;
            close(fd);
            if (bound)
                return port;
        }
        throw std::runtime_error("no free port");
    }

    using connection = std::unique_ptr<redisContext, free_redis>;

    static std::string text(std::string_view word) { return std::string(word); }
    template <typename Number>
        requires std::is_arithmetic_v<Number>
    static std::string text(Number number) {
        return std::to_string(number);
    }

    connection connect() const {
        connection made(redisConnectUnixWithTimeout(socket_path().c_str(), {5, 0}));
        if (!made || made->err != 0)
            throw std::runtime_error(made ? made->errstr : "out of memory");
        redisSetTimeout(made.get(), {30, 0});
        return made;
    }

    void launch() {
        {
            std::ofstream file(directory_ + "/redis.conf");
            file << "bind 127.0.0.1\nport " << port_ << "\nunixsocket " << socket_path()
                 << "\ndir " << directory_ << "\nlogfile " << directory_
                 << "/log\nsave \"\"\nappendonly no\ndaemonize no\n";
            for (std::string line : configuration_) {
                if (auto at = line.find("PORT"); at != line.npos)
                    line.replace(at, 4, std::to_string(more_port_));
                file << line << "\n";
            }
        }
        auto file = directory_ + "/redis.conf";
        pid_t parent = getpid();
        pid_ = fork();
        if (pid_ < 0)
            throw std::runtime_error("could not fork");
        if (pid_ == 0) {
            // Goes with the thread that started it: a test that crashes leaves no server behind.
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            int null = open("/dev/null", O_RDWR);
            dup2(null, 0);
            dup2(null, 1);
            dup2(null, 2);
            execlp("redis-server", "redis-server", file.c_str(), role_ == role::sentinel ? "--sentinel" : nullptr,
                   static_cast<char *>(nullptr));
            _exit(127);
        }
    }

    // Waits for its first PONG; false if it ended instead.
    bool answers() {
        auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (std::chrono::steady_clock::now() < deadline) {
            if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
                pid_ = 0;
                return false;
            }
            try {
                auto reply = command("PING");
                std::string_view answer(reply->str, reply->len);
                if (answer == "PONG" || answer.starts_with("NOAUTH"))
                    return started_ = true;
            } catch (const std::runtime_error &) {
                // not yet
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        return false;
    }

    std::vector<std::string> configuration_;
    role role_;
    std::string directory_;
    int port_ = 0, more_port_ = 0;
    pid_t pid_ = 0;
    bool started_ = false;
    connection connection_;
};

} // namespace outbox::test

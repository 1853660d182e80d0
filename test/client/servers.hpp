// The servers of a test's process: a real PostgreSQL with outbox preloaded, and the Redis that it publishes to. Both are
// started by the first test that asks and end with the process; a test has databases of its own.
#pragma once

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "redis_server.hpp"

namespace outbox::test {

// Whether the condition came true in time.
inline bool eventually(const std::function<bool()> &condition,
                       std::chrono::milliseconds limit = std::chrono::seconds(30)) {
    auto deadline = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > deadline)
            return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
}

struct free_postgres {
    void operator()(PGconn *connection) const noexcept { PQfinish(connection); }
    void operator()(PGresult *result) const noexcept { PQclear(result); }
};
using postgres_connection = std::unique_ptr<PGconn, free_postgres>;

// A PostgreSQL server in a temporary directory, on a unix socket there. As root it runs as the user postgres, because it
// refuses to run as root.
class postgres_server {
  public:
    // Lines of postgresql.conf.
    explicit postgres_server(const std::vector<std::string> &configuration) {
        find_programs();
        if (getuid() == 0 && (user_ = getpwnam("postgres")) == nullptr)
            throw std::runtime_error("there is no user postgres to run the server as");
        auto name = (std::filesystem::temp_directory_path() / "outbox-pg-XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr)
            throw std::runtime_error("could not make a temporary directory");
        directory_ = name;
        if (user_ != nullptr && chown(directory_.c_str(), user_->pw_uid, user_->pw_gid) != 0)
            throw std::runtime_error("could not give away " + directory_);
        pid_t initdb = launch({bindir_ + "/initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8",
                               "--locale=C", "--pgdata=" + data()});
        int status = 0;
        if (waitpid(initdb, &status, 0) != initdb || status != 0)
            throw std::runtime_error("initdb failed:\n" + log());
        std::ofstream file(data() + "/postgresql.conf", std::ios::app);
        file << "listen_addresses = ''\nunix_socket_directories = '" << directory_ << "'\n";
        for (const auto &line : configuration)
            file << line << "\n";
        file.close();
        start();
    }

    ~postgres_server() {
        stop();
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }

    postgres_server(const postgres_server &) = delete;
    postgres_server &operator=(const postgres_server &) = delete;

    pid_t pid() const noexcept { return pid_; }

    std::string conninfo(std::string_view database) const {
        return "host=" + directory_ + " user=postgres dbname=" + std::string(database);
    }

    // Ends it and its connections at once; what is committed is recovered by the next start.
    void stop() {
        if (pid_ <= 0)
            return;
        ::kill(pid_, SIGQUIT);
        waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }

    // Returns once it answers.
    void start() {
        pid_ = launch({bindir_ + "/postgres", "-D", data()});
        bool ready = eventually(
            [this] {
                if (waitpid(pid_, nullptr, WNOHANG) == pid_)
                    pid_ = 0;
                return pid_ == 0 || PQping(conninfo("postgres").c_str()) == PQPING_OK;
            },
            std::chrono::seconds(60));
        if (!ready || pid_ == 0)
            throw std::runtime_error("PostgreSQL does not start:\n" + log());
    }

    void restart() {
        stop();
        start();
    }

    std::string log() const {
        std::ifstream file(directory_ + "/log");
        return {std::istreambuf_iterator<char>(file), {}};
    }

  private:
    std::string data() const { return directory_ + "/data"; }

    void find_programs() {
        const char *program = std::getenv("PG_CONFIG");
        std::string command = std::string(program == nullptr ? "pg_config" : program) + " --bindir";
        std::unique_ptr<FILE, int (*)(FILE *)> pipe(popen(command.c_str(), "r"), pclose);
        char line[4096] = {};
        if (!pipe || std::fgets(line, sizeof line, pipe.get()) == nullptr)
            throw std::runtime_error(command + " says nothing");
        bindir_ = line;
        bindir_.erase(bindir_.find_last_not_of('\n') + 1);
    }

    // With its output in the log.
    pid_t launch(std::vector<std::string> words) const {
        std::vector<char *> argv;
        for (auto &word : words)
            argv.push_back(word.data());
        argv.push_back(nullptr);
        auto log = directory_ + "/log";
        pid_t parent = getpid();
        pid_t child = fork();
        if (child < 0)
            throw std::runtime_error("could not fork");
        if (child > 0)
            return child;
        if (user_ != nullptr && (setgroups(0, nullptr) != 0 || setgid(user_->pw_gid) != 0 || setuid(user_->pw_uid) != 0))
            _exit(1);
        // After setuid, which forgets it: a test that crashes leaves no server behind.
        prctl(PR_SET_PDEATHSIG, SIGQUIT);
        if (getppid() != parent || chdir(directory_.c_str()) != 0)
            _exit(1);
        dup2(open("/dev/null", O_RDONLY), 0);
        int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(out, 1);
        dup2(out, 2);
        // A terminal's ^C is for the test, which then ends this.
        setpgid(0, 0);
        execv(argv[0], argv.data());
        _exit(127);
    }

    std::string bindir_, directory_;
    const passwd *user_ = nullptr;
    pid_t pid_ = 0;
};

// A connection of a test's own.
class session {
  public:
    explicit session(const std::string &conninfo) : connection_(PQconnectdb(conninfo.c_str())) {
        if (PQstatus(connection_.get()) != CONNECTION_OK)
            throw std::runtime_error(PQerrorMessage(connection_.get()));
        // what is only said, such as "already exists", is not for the test's output
        PQsetNoticeProcessor(connection_.get(), [](void *, const char *) {}, nullptr);
    }

    PGconn *get() const noexcept { return connection_.get(); }

    // The rows, as text; NULL is empty. Throws what the server says.
    std::vector<std::vector<std::string>> rows(const std::string &statement) const { return rows_of(get(), statement); }

    // The first field of the first row; empty if there is none.
    std::string sql(const std::string &statement) const { return sql(get(), statement); }

    static std::string sql(PGconn *connection, const std::string &statement) {
        auto all = rows_of(connection, statement);
        return all.empty() || all[0].empty() ? std::string() : all[0][0];
    }

  private:
    static std::vector<std::vector<std::string>> rows_of(PGconn *connection, const std::string &statement) {
        std::unique_ptr<PGresult, free_postgres> result(PQexec(connection, statement.c_str()));
        auto status = PQresultStatus(result.get());
        if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
            throw std::runtime_error(statement + ": " + PQerrorMessage(connection));
        std::vector<std::vector<std::string>> all(static_cast<std::size_t>(PQntuples(result.get())));
        for (std::size_t row = 0; row < all.size(); ++row)
            for (int column = 0; column < PQnfields(result.get()); ++column)
                all[row].emplace_back(PQgetvalue(result.get(), static_cast<int>(row), column));
        return all;
    }

    postgres_connection connection_;
};

// The two servers. What one test does to them, such as a restart, must be undone when the next begins.
class servers {
  public:
    static servers &instance() {
        static servers both;
        return both;
    }

    redis_server redis;
    postgres_server postgres;

  private:
    // By TCP: the directory of the socket is closed to the user that PostgreSQL runs as.
    servers()
        : postgres({"shared_preload_libraries = 'outbox'", "outbox.redis_url = '" + redis.tcp_url() + "'",
                    "outbox.retry_min = '50ms'", "outbox.retry_max = '500ms'", "outbox.poll_interval = '100ms'",
                    "max_worker_processes = 32", "max_connections = 100", "shared_buffers = '32MB'",
                    "max_wal_senders = 2", "fsync = off", "autovacuum_naptime = '5s'",
                    "log_statement = none"}) {}
};

// A database with the extension, for one test; dropped with the object.
class database {
  public:
    database() {
        static int count = 0;
        name_ = "test_" + std::to_string(++count);
        admin("CREATE DATABASE " + name_);
        connect().sql("CREATE EXTENSION outbox");
    }

    ~database() {
        try {
            admin("DROP DATABASE " + name_ + " WITH (FORCE)");
        } catch (const std::exception &) {
            // the server ends with the process anyway
        }
    }

    database(const database &) = delete;
    database &operator=(const database &) = delete;

    const std::string &name() const noexcept { return name_; }
    std::string conninfo() const { return servers::instance().postgres.conninfo(name_); }
    session connect() const { return session(conninfo()); }

  private:
    static void admin(const std::string &statement) {
        session(servers::instance().postgres.conninfo("postgres")).sql(statement);
    }

    std::string name_;
};

} // namespace outbox::test

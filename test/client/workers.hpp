// Consumers that run in processes of their own, programs/worker.cpp, and what they have written down.
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "consumers.hpp"

namespace outbox::test {

// Starts and ends of handlers, of all workers that were given it, in the order in which they happened.
class journal {
  public:
    struct line {
        std::string what; // "start", "end"; "kill" of the process, by the test
        std::uint64_t n;  // of the payload
        int attempt;
        pid_t pid;
    };

    // A file beside the server's, which goes with it.
    explicit journal(const redis_server &redis, const std::string &name = "journal")
        : path_(redis.directory() + "/" + name) {}

    const std::string &path() const noexcept { return path_; }

    std::vector<line> lines() const {
        std::ifstream file(path_);
        std::vector<line> all;
        for (line one; file >> one.what >> one.n >> one.attempt >> one.pid;)
            all.push_back(one);
        return all;
    }
    std::vector<line> lines(const std::string &what, std::uint64_t n) const {
        std::vector<line> some;
        for (const line &one : lines())
            if (one.what == what && one.n == n)
                some.push_back(one);
        return some;
    }
    std::size_t count(const std::string &what, std::uint64_t n) const { return lines(what, n).size(); }

    // After the process has gone.
    void note_kill(pid_t pid) const { std::ofstream(path_, std::ios::app) << "kill 0 0 " + std::to_string(pid) + "\n"; }

    // Lets handlers that "do": "gate" go on.
    void open_gate() const { std::ofstream(path_ + ".gate") << "open"; }

    // What the workers have logged.
    std::string log() const {
        std::ifstream file(path_ + ".log");
        return {std::istreambuf_iterator<char>(file), {}};
    }

  private:
    std::string path_;
};

// Such a process; killed with the object, and with the test.
class worker {
  public:
    // `words` are options of programs/worker.cpp, as "concurrency=1".
    worker(const redis_server &redis, const journal &journal, const std::vector<std::string> &words = {}) {
        std::vector<std::string> all{std::string(OUTBOX_TEST_PROGRAMS) + "/worker", "redis=" + redis.url(),
                                     "journal=" + journal.path()};
        all.insert(all.end(), words.begin(), words.end());
        std::vector<char *> argv;
        for (auto &word : all)
            argv.push_back(word.data());
        argv.push_back(nullptr);
        std::string log = journal.path() + ".log";
        pid_t parent = getpid();
        pid_ = fork();
        if (pid_ < 0)
            throw std::runtime_error("could not fork");
        if (pid_ > 0)
            return;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(out, 1);
        dup2(out, 2);
        execv(argv[0], argv.data());
        _exit(127);
    }

    ~worker() { kill9(); }
    worker(const worker &) = delete;
    worker &operator=(const worker &) = delete;

    pid_t pid() const noexcept { return pid_; }
    void signal(int number) const { ::kill(pid_, number); }

    void kill9() {
        if (has_ended())
            return;
        signal(SIGKILL);
        waitpid(pid_, &status_, 0);
        ended_ = true;
    }

    // Whether it is there no more.
    bool has_ended() {
        if (!ended_ && waitpid(pid_, &status_, WNOHANG) == pid_)
            ended_ = true;
        // a test that goes on without the program waits for what never comes
        if (ended_ && WIFEXITED(status_) && WEXITSTATUS(status_) == 127)
            throw std::runtime_error("there is no program " OUTBOX_TEST_PROGRAMS "/worker");
        return ended_;
    }

    // Whether SIGSTOP has stopped it, wholly.
    bool is_stopped() const {
        std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
        std::string text{std::istreambuf_iterator<char>(file), {}};
        auto name_end = text.rfind(") ");
        return name_end != text.npos && text[name_end + 2] == 'T';
    }

    // SIGTERM; its exit status, 0 after a clean end.
    int terminate() {
        signal(SIGTERM);
        EXPECT_TRUE(eventually([this] { return has_ended(); }));
        return ended_ && WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
    }

  private:
    pid_t pid_ = 0;
    int status_ = 0;
    bool ended_ = false;
};

// What the process that has ended had in its hands may be taken over by now, as if its leases had run out: so those who live
// may have leases that do not, even if the machine stands still for a moment.
inline void end_leases(redis_server &redis, pid_t pid, const std::string &group) {
    for (const std::string &key : {std::string("outbox:{wallet}"), "outbox:{wallet}:redrive:" + group})
        redis.command({"EVAL", R"(
            if redis.call('EXISTS', KEYS[1]) == 0 then
                return
            end
            local known, all = pcall(redis.call, 'XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
            for _, one in ipairs(known and not all.err and all or {}) do
                if string.find(one[2], ARGV[2], 1, true) then
                    for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, one[2])) do
                        redis.call('XCLAIM', KEYS[1], ARGV[1], one[2], 0, row[1], 'IDLE', 3600000, 'JUSTID')
                    end
                end
            end)",
                       "1", key, group, "-" + std::to_string(pid) + "-"});
}

// Workers that are started again when they have died, as a service manager does. What those had that died is free by then.
class service {
  public:
    service(redis_server &redis, const journal &journal, std::vector<std::string> words, std::size_t processes = 1)
        : redis_(redis), journal_(journal), words_(std::move(words)), workers_(processes) {
        for (const std::string &word : words_)
            if (word.starts_with("group="))
                group_ = word.substr(6);
        keep();
    }

    // Starts those that are not there. To be called again and again, by the thread that made it.
    void keep() {
        for (auto &one : workers_) {
            if (one != nullptr && !one->has_ended())
                continue;
            if (one != nullptr)
                end_leases(redis_, one->pid(), group_);
            one = std::make_unique<worker>(redis_, journal_, words_);
        }
    }

    worker &operator[](std::size_t which) { return *workers_[which]; }

  private:
    redis_server &redis_;
    const journal &journal_;
    std::vector<std::string> words_;
    std::string group_ = "billing";
    std::vector<std::unique_ptr<worker>> workers_;
};

// The stream of most of these tests.
inline const std::string stream = "outbox:{wallet}";

// For a worker: what it is to do with the event, as `"do": "exit"`, is in `more`.
inline void append_event(redis_server &redis, std::uint64_t n, const std::string &aggregate, const std::string &more = {}) {
    append(redis, {.id = event_id(n),
                   .aggregate_id = aggregate,
                   .payload = "{\"n\": " + std::to_string(n) + (more.empty() ? "" : ", " + more) + "}"});
}

inline std::uint64_t count_dead_letters(redis_server &redis, const std::string &group = "billing") {
    return static_cast<std::uint64_t>(redis.command("XLEN", stream + ":dlq:" + group)->integer);
}

// The database of an inbox. The table of effects takes an effect twice, so that one that came twice is seen.
class effects {
  public:
    effects() {
        inbox::create_schema(session_.get());
        session_.sql("CREATE TABLE effect (at bigserial, n bigint NOT NULL)");
    }

    std::string conninfo() const { return database_.conninfo(); }

    std::vector<std::uint64_t> all() const {
        std::vector<std::uint64_t> result;
        for (auto &row : session_.rows("SELECT n FROM effect ORDER BY at"))
            result.push_back(std::stoull(row.at(0)));
        return result;
    }

  private:
    database database_;
    session session_ = database_.connect();
};

// What guards against a second delivery.
enum class guard { none, redis, inbox };

inline std::string name_of(guard one) { return one == guard::none ? "none" : one == guard::redis ? "redis" : "inbox"; }

// The words that tell a worker so.
inline std::vector<std::string> words_for(guard one, const std::optional<effects> &inbox) {
    if (one == guard::inbox)
        return {"inbox=" + inbox->conninfo(), "idempotency=none"};
    return {"idempotency=" + name_of(one)};
}

} // namespace outbox::test

// The load of the fault harness: connections that change aggregates and emit events in seeded random transactions, while
// servers die under them. What was tried goes into a history, a JSON line before each transaction and one after it; what was
// committed into torture.truth, in the same transactions.
//
//   workload --conninfo CONNINFO --seed N --seconds F --history FILE [--connections 8] [--aggregates 50]
//            [--rate TRANSACTIONS_PER_SECOND] [--large PERCENT] [--async PERCENT] [--delayed PERCENT]
//
//   {"t":<CLOCK_MONOTONIC ns>,"op":"<uuid>","do":"invoke","kind":"<kind>","events":<n>}
//   {"t":<CLOCK_MONOTONIC ns>,"op":"<uuid>","do":"ok|fail|info","error":"…"}
//
// ok: the server said COMMIT. fail: it cannot have been committed. info: the answer to COMMIT was lost, so only the truth
// tells. A kind is what is done to the transaction: commit, rollback, savepoint, exception, prepared, async, timeout, deadlock,
// serializable or delayed. Only `async` (synchronous_commit = off) may be ok and yet be gone after a crash of the server; the
// events of `delayed` are to be delivered later, each when its own time has come.
#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <libpq-fe.h>
#include <openssl/sha.h>
#include <time.h>
#include <unistd.h>

using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

namespace {

constexpr const char *topics[] = {"alpha", "beta", "gamma", "delta"};
constexpr std::size_t max_payload = 1'000'000; // below the default of outbox.max_payload_size
constexpr std::size_t common_payload = 4096;
constexpr std::size_t max_delay = 800; // ms

struct settings {
    std::string conninfo, history;
    std::uint64_t seed = 0;
    double seconds = 0, rate = 0;
    int connections = 8, aggregates = 50;
    double large = 1, async = 5, delayed = 5;
};

std::atomic<bool> stopped{false};

std::int64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1'000'000'000) + now.tv_nsec;
}

std::string quoted(std::string_view text) {
    std::string result = "\"";
    for (char each : text)
        if (each == '"' || each == '\\')
            (result += '\\') += each;
        else
            result += static_cast<unsigned char>(each) < 0x20 ? ' ' : each;
    return result + "\"";
}

// Lines of all threads, each in one write: a line that was written is there whatever dies next, and never torn.
class history {
  public:
    explicit history(const std::string &path) : file_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
        if (file_ < 0)
            throw std::runtime_error("could not open " + path);
    }

    void invoke(const std::string &op, std::string_view kind, int events) const {
        line(op, "invoke", ",\"kind\":" + quoted(kind) + ",\"events\":" + std::to_string(events));
    }

    // of the events that were planned a savepoint may have undone all
    void committed(const std::string &op, int events) const { line(op, "ok", ",\"events\":" + std::to_string(events)); }

    void end(const std::string &op, std::string_view how, std::string_view error) const {
        line(op, how, error.empty() ? "" : ",\"error\":" + quoted(error));
    }

  private:
    void line(const std::string &op, std::string_view what, const std::string &rest) const {
        std::string text = "{\"t\":" + std::to_string(now_ns()) + ",\"op\":\"" + op + "\",\"do\":" + quoted(what) + rest + "}\n";
        if (write(file_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
            std::perror("history");
            _exit(98);
        }
    }

    int file_;
};

// The same on every machine, other than the distributions of the standard library.
class random_source {
  public:
    explicit random_source(std::uint64_t seed) : engine_(seed) {}
    double real() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
    bool percent(double wanted) { return real() * 100 < wanted; }
    std::size_t below(std::size_t bound) { return static_cast<std::size_t>(real() * static_cast<double>(bound)); }
    std::size_t between(std::size_t low, std::size_t high) { return low + below(high - low + 1); }

    // as likely to be of one order of magnitude as of another
    std::size_t log_uniform(std::size_t high) {
        return static_cast<std::size_t>(std::exp(real() * std::log(static_cast<double>(high) + 1))) - 1;
    }

    std::string uuid() {
        static constexpr char digits[] = "0123456789abcdef";
        std::string text = "xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx";
        for (char &each : text)
            if (each == 'x')
                each = digits[below(16)];
        return text;
    }

  private:
    std::mt19937_64 engine_;
};

// A few aggregates get most of the events, as in life.
class zipf {
  public:
    explicit zipf(int count) {
        double sum = 0;
        for (int i = 1; i <= count; ++i)
            sums_.push_back(sum += 1.0 / i);
    }

    std::size_t draw(random_source &random) const {
        auto found = std::upper_bound(sums_.begin(), sums_.end(), random.real() * sums_.back());
        return static_cast<std::size_t>(std::min(found, sums_.end() - 1) - sums_.begin());
    }

  private:
    std::vector<double> sums_;
};

// JSON text of about the given size: nothing at all is "", {} or 0.
std::string payload(random_source &random, std::size_t size) {
    static constexpr const char *smallest[] = {"\"\"", "{}", "0", "[]", "null"};
    if (size < 10)
        return smallest[random.below(std::size(smallest))];
    // what is one character and four bytes, a line end that Redis' protocol uses itself, and plain text
    static constexpr std::string_view pieces[] = {
        "\xF0\x9F\x90\x98", "\\r\\n", "\\u0000", "*3\\r\\n$3\\r\\nDEL", "wallet ", "0123456789abcdef"};
    static constexpr std::string_view filler = "The quick brown fox jumps over the lazy dog, and all that it says is text. ";
    std::string text = "{\"pad\":\"";
    // \u0000 is valid in a json text and in no jsonb: the payload must come through as the text that it is
    for (std::size_t i = 0; i < 4 && text.size() + 30 < size; ++i)
        text += pieces[random.below(std::size(pieces))];
    while (text.size() + filler.size() + 2 <= size)
        text += filler;
    text.resize(std::max(text.size(), size - 2), 'x');
    return text + "\"}";
}

std::string digest_of(std::string_view headers, std::string_view payload) {
    std::string all(headers);
    all += payload;
    unsigned char hash[SHA256_DIGEST_LENGTH];
    SHA256(reinterpret_cast<const unsigned char *>(all.data()), all.size(), hash);
    std::string text;
    for (unsigned char each : hash) {
        char digits[3];
        std::snprintf(digits, sizeof digits, "%02x", each);
        text += digits;
    }
    return text;
}

// A statement failed. The transaction is not committed, unless its COMMIT was what got no answer.
struct failure {
    std::string words;
    bool definite; // the server has said no, and the connection still stands
};

class connection {
  public:
    explicit connection(std::string conninfo) : conninfo_(std::move(conninfo)) {}

    bool open() {
        if (good())
            return true;
        const char *keywords[] = {"connect_timeout", "fallback_application_name", "dbname", "client_encoding", nullptr};
        const char *values[] = {"2", "torture workload", conninfo_.c_str(), "UTF8", nullptr};
        connection_.reset(PQconnectdbParams(keywords, values, 1));
        if (!good())
            return false;
        PQsetNoticeProcessor(connection_.get(), [](void *, const char *) {}, nullptr);
        try {
            // a lock that a transaction holds that was left prepared must not stop the load for good
            run("SET lock_timeout = '3s'");
            run("SET deadlock_timeout = '20ms'");
            return true;
        } catch (const failure &) {
            connection_.reset();
            return false;
        }
    }

    bool good() const { return connection_ && PQstatus(connection_.get()) == CONNECTION_OK; }

    // The first value of the answer, or what kind of statement it was where there is none.
    std::string run(const char *statement, const std::vector<std::string> &parameters = {}) {
        std::vector<const char *> values;
        for (const std::string &each : parameters)
            values.push_back(each.c_str());
        std::unique_ptr<PGresult, decltype(&PQclear)> result(
            values.empty() ? PQexec(connection_.get(), statement)
                           : PQexecParams(connection_.get(), statement, static_cast<int>(values.size()), nullptr, values.data(),
                                          nullptr, nullptr, 0),
            PQclear);
        const ExecStatusType status = PQresultStatus(result.get());
        if (status == PGRES_TUPLES_OK)
            return PQntuples(result.get()) > 0 ? PQgetvalue(result.get(), 0, 0) : "";
        if (status == PGRES_COMMAND_OK)
            return PQcmdStatus(result.get());
        // FATAL, or a connection that broke: the server may yet have done what it was asked for
        const char *severity = PQresultErrorField(result.get(), PG_DIAG_SEVERITY_NONLOCALIZED);
        const char *words = PQresultErrorField(result.get(), PG_DIAG_MESSAGE_PRIMARY);
        throw failure{words != nullptr ? words : PQerrorMessage(connection_.get()),
                      severity != nullptr && std::string_view(severity) == "ERROR" && good()};
    }

  private:
    struct closer {
        void operator()(PGconn *connection) const { PQfinish(connection); }
    };
    std::string conninfo_;
    std::unique_ptr<PGconn, closer> connection_;
};

// One connection's share of the load.
class client {
  public:
    client(const settings &settings, const history &history, int index)
        : settings_(settings), history_(history), aggregates_(settings.aggregates), connection_(settings.conninfo),
          random_(settings.seed * 1000 + static_cast<std::uint64_t>(index)) {}

    void run() {
        const auto begin = steady::now();
        const auto end = begin + std::chrono::duration_cast<steady::duration>(std::chrono::duration<double>(settings_.seconds));
        auto next = begin;
        while (!stopped && steady::now() < end) {
            if (!connection_.open()) {
                std::this_thread::sleep_for(60ms);
                continue;
            }
            if (!left_prepared_.empty())
                resolve();
            else
                transact();
            if (settings_.rate > 0) {
                next += std::chrono::duration_cast<steady::duration>(
                    std::chrono::duration<double>(settings_.connections / settings_.rate * (0.5 + random_.real())));
                next = std::max(next, steady::now() - 100ms); // what an outage cost is not made up for in one burst
                std::this_thread::sleep_until(std::min(next, end));
            }
        }
        // Locks must not stay behind. A server that is gone for long is not waited for.
        for (int tries = 0; !left_prepared_.empty() && tries < 500; ++tries) {
            if (connection_.open())
                resolve();
            else
                std::this_thread::sleep_for(60ms);
        }
        if (!left_prepared_.empty())
            history_.end(left_prepared_, "info", "it was left prepared");
    }

  private:
    std::string draw_kind() {
        const double lot = random_.real() * 100;
        if (lot < settings_.async)
            return "async";
        if (lot < settings_.async + settings_.delayed)
            return "delayed";
        static constexpr struct {
            double upto;
            const char *kind;
        } kinds[] = {{20, "rollback"}, {30, "savepoint"}, {33, "exception"}, {35, "prepared"}, {35.5, "timeout"}, {36, "deadlock"}, {41, "serializable"}};
        const double rest = random_.real() * 100;
        for (const auto &each : kinds)
            if (rest < each.upto)
                return each.kind;
        return "commit";
    }

    // Drawn before the first statement, so that what a seed does depends on no server.
    struct planned {
        std::size_t aggregate;
        std::string payload;
        std::size_t delay; // ms, of kind "delayed"
    };

    std::vector<planned> draw_events(bool descending) {
        std::vector<planned> events(random_.between(1, 5));
        for (planned &each : events) {
            const bool large = random_.percent(settings_.large);
            each.aggregate = aggregates_.draw(random_);
            each.payload = payload(random_, large ? common_payload + random_.log_uniform(max_payload - common_payload)
                                                  : random_.log_uniform(common_payload));
            each.delay = random_.below(max_delay + 1);
        }
        // In one order, or two transactions wait for each other.
        std::stable_sort(events.begin(), events.end(),
                         [](const planned &a, const planned &b) { return a.aggregate < b.aggregate; });
        if (descending)
            std::reverse(events.begin(), events.end());
        return events;
    }

    void emit(const std::string &op, const std::string &kind, const planned &event) {
        const bool delayed = kind == "delayed"; // of an aggregate of its own, as its order is that of the due times
        const std::string k = std::to_string(k_++), topic = topics[event.aggregate % std::size(topics)],
                          name = delayed ? "later-" + op + "-" + k : "a" + std::to_string(event.aggregate);
        // which locks the row until the transaction ends
        const std::string version = connection_.run(
            "INSERT INTO torture.aggregate AS a (name, version) VALUES ($1, 1) "
            "ON CONFLICT (name) DO UPDATE SET version = a.version + 1 RETURNING version", {name});
        // As jsonb prints it, which is what goes into the stream.
        const std::string headers = "{\"k\": " + k + ", \"op\": \"" + op + "\", \"version\": " + version + ", \"aggregate\": \"" +
                                    name + "\"}";
        connection_.run("WITH emitted AS (SELECT outbox.emit($1::text, $2::text, aggregate_id => $3, aggregate_type => 'item', "
                        "headers => $4::jsonb, deliver_at => clock_timestamp() + nullif($10, '')::interval) AS id) "
                        "INSERT INTO torture.truth (op, k, event_id, aggregate, version, digest, kind) "
                        "SELECT $5::uuid, $6::int, id, $3, $7::bigint, $8, $9 FROM emitted",
                        {topic + ".item.changed", event.payload, name, headers, op, k, version,
                         digest_of(headers, event.payload), kind, delayed ? std::to_string(event.delay) + " ms" : ""});
    }

    void transact() {
        const std::string op = random_.uuid();
        const std::string kind = draw_kind();
        const std::vector<planned> events = draw_events(kind == "deadlock");
        const std::size_t undone = random_.below(events.size() + 1); // from here on, where a part is
        const bool give_up = random_.percent(50);                    // a prepared transaction is rolled back
        k_ = 0;
        int undone_events = 0;
        history_.invoke(op, kind, static_cast<int>(events.size()));
        bool in_doubt = false; // COMMIT was asked for
        bool prepared = false;
        try {
            connection_.run(kind == "serializable" ? "BEGIN ISOLATION LEVEL SERIALIZABLE" : "BEGIN");
            if (kind == "async")
                connection_.run("SET LOCAL synchronous_commit = off");
            for (std::size_t i = 0; i < events.size(); ++i) {
                if (i == undone && kind == "savepoint")
                    connection_.run("SAVEPOINT part");
                emit(op, kind, events[i]);
            }
            if (kind == "savepoint" && undone < events.size()) {
                connection_.run("ROLLBACK TO SAVEPOINT part");
                undone_events = static_cast<int>(events.size() - undone);
                // the same once more, and this time for good
                for (std::size_t i = undone; i < events.size() && random_.percent(50); ++i)
                    emit(op, kind, events[i]);
            } else if (kind == "exception") {
                connection_.run("DO $$ BEGIN PERFORM outbox.emit('alpha.item.undone', '{}'); RAISE division_by_zero; "
                                "EXCEPTION WHEN division_by_zero THEN NULL; END $$");
            } else if (kind == "timeout") {
                connection_.run("SET LOCAL statement_timeout = '1ms'");
                connection_.run("SELECT outbox.emit('alpha.item.undone', '{}') FROM pg_sleep(1)");
            } else if (kind == "rollback") {
                connection_.run("ROLLBACK");
                history_.end(op, "fail", "rolled back");
                return;
            } else if (kind == "prepared") {
                left_prepared_ = op;
                connection_.run(("PREPARE TRANSACTION '" + op + "'").c_str());
                prepared = true;
                if (random_.percent(20))
                    std::this_thread::sleep_for(std::chrono::milliseconds(random_.below(20)));
                end_prepared(give_up);
                return;
            }
            in_doubt = true;
            const std::string answer = connection_.run("COMMIT");
            if (answer == "COMMIT")
                history_.committed(op, k_ - undone_events);
            else
                history_.end(op, "fail", "COMMIT was answered with " + answer);
        } catch (const failure &failed) {
            if (!left_prepared_.empty() && (prepared || !failed.definite))
                return; // resolve() finds out
            left_prepared_.clear();
            history_.end(op, in_doubt && !failed.definite ? "info" : "fail", failed.words);
            roll_back();
        }
    }

    void roll_back() {
        try {
            if (connection_.good())
                connection_.run("ROLLBACK");
        } catch (const failure &) {
            // the connection is gone, and the transaction with it
        }
    }

    void end_prepared(bool give_up) {
        const std::string op = left_prepared_;
        connection_.run(((give_up ? "ROLLBACK PREPARED '" : "COMMIT PREPARED '") + op + "'").c_str());
        left_prepared_.clear();
        if (give_up)
            history_.end(op, "fail", "rolled back when it was prepared");
        else
            history_.end(op, "ok", "");
    }

    // The connection broke at PREPARE TRANSACTION or at what ends it. What is still there is ended by a coin.
    void resolve() {
        const bool give_up = random_.percent(50);
        try {
            if (!connection_.run("SELECT gid FROM pg_prepared_xacts WHERE gid = $1", {left_prepared_}).empty()) {
                end_prepared(give_up);
                return;
            }
            history_.end(left_prepared_, "info", "it is prepared no more");
            left_prepared_.clear();
        } catch (const failure &) {
            std::this_thread::sleep_for(20ms); // again, on another connection
        }
    }

    const settings &settings_;
    const history &history_;
    zipf aggregates_;
    connection connection_;
    random_source random_;
    std::string left_prepared_;
    int k_ = 0;
};

double number(const std::string &name, const std::string &value) {
    double result = 0;
    auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc() || end != value.data() + value.size())
        throw std::invalid_argument("--" + name + " needs a number");
    return result;
}

settings read_arguments(int count, char **arguments) {
    settings result;
    std::map<std::string, std::string> words;
    for (int i = 1; i + 1 < count; i += 2)
        words[std::string(arguments[i]).substr(2)] = arguments[i + 1];
    for (const auto &[name, value] : words) {
        if (name == "conninfo")
            result.conninfo = value;
        else if (name == "history")
            result.history = value;
        else if (name == "seed")
            result.seed = static_cast<std::uint64_t>(number(name, value));
        else if (name == "seconds")
            result.seconds = number(name, value);
        else if (name == "connections")
            result.connections = static_cast<int>(number(name, value));
        else if (name == "aggregates")
            result.aggregates = static_cast<int>(number(name, value));
        else if (name == "rate")
            result.rate = number(name, value);
        else if (name == "large")
            result.large = number(name, value);
        else if (name == "async")
            result.async = number(name, value);
        else if (name == "delayed")
            result.delayed = number(name, value);
        else
            throw std::invalid_argument("there is no option --" + name);
    }
    if (result.conninfo.empty() || result.history.empty() || result.seconds <= 0)
        throw std::invalid_argument("--conninfo, --seed, --seconds and --history are needed");
    return result;
}

} // namespace

int main(int count, char **arguments) {
    try {
        const settings settings = read_arguments(count, arguments);
        const history history(settings.history);
        std::signal(SIGPIPE, SIG_IGN);
        std::signal(SIGTERM, [](int) { stopped = true; });
        std::vector<std::thread> threads;
        for (int i = 0; i < settings.connections; ++i)
            threads.emplace_back([&, i] { client(settings, history, i).run(); });
        for (std::thread &each : threads)
            each.join();
        return 0;
    } catch (const std::exception &cause) {
        std::fprintf(stderr, "workload: %s\n", cause.what());
        return 2;
    }
}

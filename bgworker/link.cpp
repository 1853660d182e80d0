#include "bgworker/link.hpp"

#include "common/password_file.hpp"
#include "common/resp.hpp"
#include "common/sentinel.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

extern "C" {
#include "storage/fd.h"
}

#include <sys/stat.h>

namespace outbox {

constexpr int patience = 60;  // time-outs that one answer may take as long as something moves
constexpr int reaction = 100; // ms: no wait is longer than this without a look around

void link::fail(const char *reason) {
    strlcpy(error_, printable(reason, sizeof error_ - 1), sizeof error_);
    close();
}

void link::close() {
    if (events_)
        FreeWaitEventSet(events_);
    events_ = nullptr;
    if (redis_)
        redis_->close();
    if (replies_)
        replies_->clear();
}

// A file with passwords, which nobody but the server's user may read. Null: see `error`.
static FILE *open_secret(const char *path, char *error, std::size_t error_size) {
    FILE *file = AllocateFile(path, "r");
    if (!file) {
        pg_snprintf(error, error_size, "could not open password file \"%s\": %s", path, strerror(errno));
        return nullptr;
    }
    struct stat status;
    if (fstat(fileno(file), &status) != 0)
        pg_snprintf(error, error_size, "could not stat password file \"%s\": %s", path, strerror(errno));
    else if (!S_ISREG(status.st_mode))
        pg_snprintf(error, error_size, "password file \"%s\" is not a plain file", path);
    else if (status.st_uid != geteuid() && status.st_uid != 0)
        pg_snprintf(error, error_size, "password file \"%s\" belongs to another user", path);
    else if (status.st_mode & (S_IRWXG | S_IRWXO))
        pg_snprintf(error, error_size, "password file \"%s\" has group or world access; use mode 0600", path);
    else
        return file;
    FreeFile(file);
    return nullptr;
}

static bool read_line(FILE *file, char *line, std::size_t size) {
    if (!fgets(line, static_cast<int>(size), file))
        return false;
    line[strcspn(line, "\r\n")] = '\0';
    return true;
}

// For the sink "default" the first line of outbox.redis_password_file, and the second for the sentinels; for others the lines of
// outbox.sink_password_file that are for their server, and for their sentinels.
bool link::read_password(redis_url &url, bool of_setting) {
    const char *path = of_setting ? settings::redis_password_file : settings::sink_password_file;
    if (!*path)
        return true;
    FILE *file = open_secret(path, error_, sizeof error_);
    if (!file)
        return false;
    char line[2048];
    bool good = true;
    if (of_setting) {
        good = read_line(file, line, sizeof line);
        if (good)
            cpp_call([&] { url.password = line; });
        else
            pg_snprintf(error_, sizeof error_, "password file \"%s\" is empty", path);
        if (good && read_line(file, line, sizeof line) && *line)
            cpp_call([&] { url.sentinel_password = line; });
    } else {
        cpp_call([&] {
            bool found = false, found_sentinel = url.sentinels.empty();
            while (!(found && found_sentinel) && read_line(file, line, sizeof line)) {
                found = found || password_for(line, url, url.password);
                found_sentinel = found_sentinel || sentinel_password_for(line, url, url.sentinel_password);
            }
        });
    }
    explicit_bzero(line, sizeof line);
    FreeFile(file);
    return good;
}

bool link::read_url(redis_url &url, const char *text) {
    bool good = cpp_call([&] {
        std::string reason;
        bool parsed = parse_redis_url(*text ? text : settings::redis_url(), url, reason);
        strlcpy(endpoint_, url.endpoint().c_str(), sizeof endpoint_);
        strlcpy(error_, reason.c_str(), sizeof error_);
        return parsed;
    });
    return good && read_password(url, !*text);
}

constexpr int socket_event = 2; // its place among the events

static WaitEventSet *create_events(int fd) {
#if PG_VERSION_NUM >= 170000
    WaitEventSet *events = CreateWaitEventSet(nullptr, 3);
#else
    WaitEventSet *events = CreateWaitEventSet(TopMemoryContext, 3);
#endif
    AddWaitEventToSet(events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, nullptr);
    AddWaitEventToSet(events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, nullptr, nullptr);
    AddWaitEventToSet(events, WL_SOCKET_READABLE, fd, nullptr, nullptr);
    return events;
}

void link::wait_for_events(bool writeable, int ms, waiting_for what) {
    int fd = redis_ && redis_->is_open() ? redis_->fd() : -1;
    uint32 wanted = WL_SOCKET_READABLE | (writeable ? WL_SOCKET_WRITEABLE : 0);
    int happened;
    if (fd >= 0 && redis_->ready()) {
        if (!events_)
            events_ = create_events(fd);
        ModifyWaitEvent(events_, socket_event, wanted, nullptr);
        WaitEvent event;
        happened = WaitEventSetWait(events_, ms, &event, 1, wait_event(what)) > 0 ? static_cast<int>(event.events) : 0;
    } else { // while it is connecting, the socket may become another one at any time
        happened = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | (fd >= 0 ? wanted : 0),
                                     fd >= 0 ? fd : PGINVALID_SOCKET, ms, wait_event(what));
    }
    if (happened & WL_LATCH_SET)
        ResetLatch(MyLatch);
}

void link::wait_for_latch(int ms, waiting_for what) { wait_for_events(false, ms, what); }

template <typename Condition>
bool link::wait(Condition condition, int timeout, const char *timed_out, waiting_for what) {
    // A slow line is not a dead one, but a server that sends a byte now and then is.
    TimestampTz began = steady_now(), moved = began;
    std::uint64_t traffic = redis_->traffic();
    for (;;) {
        redis_->pump();
        if (condition())
            return true;
        if (redis_->failed()) {
            fail(redis_->error());
            return false;
        }
        TimestampTz now = steady_now();
        if (redis_->traffic() != traffic) {
            traffic = redis_->traffic();
            moved = now;
        }
        if (TimestampDifferenceExceeds(moved, now, timeout) ||
            TimestampDifferenceExceeds(began, now, std::min(timeout, 600000) * patience)) {
            fail(redis_->is_shaking_hands() ? "TLS: the handshake timed out" : timed_out);
            return false;
        }
        // While a name is looked up there is no one socket to wait for.
        wait_for_events(redis_->wants_write(), redis_->fd() >= 0 ? reaction : 10, what);
        CHECK_FOR_INTERRUPTS();
        // A new configuration must not wait for a Redis that hangs: the old address may be the reason.
        if (ConfigReloadPending && timeout > reaction && !redis_->ready()) {
            fail("configuration changed while connecting");
            return false;
        }
    }
}

bool link::open(const char *client_name, const char *text) {
    if (!redis_)
        cpp_call([this] {
            redis_ = new redis_connection;
            replies_ = new std::vector<reply_pointer>;
        });
    static redis_url *url = cpp_call([] { return new redis_url; });
    close();
    if (!read_url(*url, text))
        return false;
    if (!url->user.empty() && url->password.empty()) {
        fail("a user is given without a password");
        return false;
    }
    bool by_sentinel = !url->sentinels.empty();
    if (by_sentinel && !find_master(*url))
        return false;
    return connect(*url) && greet(*url, by_sentinel, client_name);
}

bool link::connect(const redis_url &url) {
    error_[0] = '\0';
    redis_->open(url);
    return wait([this] { return redis_->ready(); }, settings::connect_timeout, "connection timed out",
                waiting_for::redis_connect);
}

static void append_login(std::string &commands, const redis_url &url) {
    if (url.password.empty())
        return;
    if (url.user.empty())
        resp::append(commands, "AUTH", url.password);
    else
        resp::append(commands, "AUTH", url.user, url.password);
}

// Asks the sentinels in turn, first the one that knew it the last time; each has the time-outs of its own. Where none does, what
// one had to say tells more than that another cannot be reached.
bool link::find_master(redis_url &url) {
    std::size_t count = url.sentinels.size();
    char told[sizeof error_] = "";
    for (std::size_t i = 0; i < count; ++i) {
        std::size_t index = (sentinel_ + i) % count;
        bool reached = false;
        if (ask_sentinel(url, index, reached)) {
            sentinel_ = index;
            close();
            return true;
        }
        if (ConfigReloadPending)
            return false;
        if (reached)
            strlcpy(told, error_, sizeof told);
    }
    if (*told)
        fail(told);
    return false;
}

bool link::ask_sentinel(redis_url &url, std::size_t index, bool &reached) {
    static redis_url *sentinel = cpp_call([] { return new redis_url; });
    static std::string *commands = cpp_call([] { return new std::string; });
    cpp_call([&] { *sentinel = url.at_sentinel(index); });
    bool good = false;
    reached = connect(*sentinel);
    if (reached) {
        std::size_t replies = sentinel->password.empty() ? 1 : 2;
        cpp_call([&] {
            commands->clear();
            append_login(*commands, *sentinel);
            resp::append(*commands, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.master);
        });
        if (ask(*commands, replies))
            good = cpp_call([&] {
                redis_url::server server;
                std::string why;
                bool named = reply(0).type != REDIS_REPLY_ERROR || replies == 1
                                 ? read_master_address(reply(replies - 1), server, why)
                                 : read_master_address(reply(0), server, why);
                if (named) {
                    url = url.at_master(server);
                    strlcpy(endpoint_, url.endpoint().c_str(), sizeof endpoint_);
                } else {
                    strlcpy(error_, why.c_str(), sizeof error_);
                }
                return named;
            });
    }
    if (good)
        return true;
    char name[sizeof endpoint_];
    cpp_call([&] { strlcpy(name, sentinel->endpoint().c_str(), sizeof name); });
    fail(psprintf("sentinel at \"%s\": %s", name, pstrdup(error_)));
    return false;
}

bool link::greet(const redis_url &url, bool must_be_master, const char *client_name) {
    static std::string *commands = cpp_call([] { return new std::string; });
    std::size_t replies = 2;
    cpp_call([&] {
        commands->clear();
        append_login(*commands, url);
        replies += url.password.empty() ? 0 : 1;
        if (must_be_master)
            resp::append(*commands, "ROLE"), ++replies;
        resp::append(*commands, "SELECT", std::to_string(url.database));
        resp::append(*commands, "CLIENT", "SETNAME", client_name);
    });
    if (!ask(*commands, replies))
        return false;
    // The client's name is for people only; a user that may not set it is as good.
    for (std::size_t i = 0; i + 1 < replies; ++i)
        if (reply(i).type == REDIS_REPLY_ERROR) {
            fail(reply(i).str);
            return false;
        }
    std::size_t role = url.password.empty() ? 0 : 1;
    bool good = !must_be_master || cpp_call([&] {
        std::string why;
        bool is = is_master(reply(role), why);
        strlcpy(error_, why.c_str(), sizeof error_);
        return is;
    });
    if (!good)
        fail(pstrdup(error_));
    return good;
}

bool link::send(std::string &commands) {
    redis_->send(commands);
    if (redis_->failed())
        fail(redis_->error());
    return is_open();
}

bool link::receive(std::size_t count, int blocked) {
    replies_->clear();
    bool closed_early = false;
    auto complete = [&] {
        while (replies_->size() < count) {
            reply_pointer next = redis_->next_reply();
            if (!next)
                break;
            replies_->push_back(std::move(next));
        }
        // "ERR max number of clients reached" and the like come instead of an answer, and then the connection ends.
        closed_early = redis_->failed() && !replies_->empty() && replies_->size() < count;
        return replies_->size() >= count || closed_early;
    };
    if (!wait([&] { return cpp_call(complete); }, settings::response_timeout + blocked, "no answer in time",
              blocked > 0 ? waiting_for::confirmation : waiting_for::redis_reply))
        return false;
    if (!closed_early)
        return true;
    const redisReply &last = *replies_->back();
    fail(last.type == REDIS_REPLY_ERROR ? pstrdup(last.str) : redis_->error());
    return false;
}

bool link::expect(std::string_view answer, bool &as_expected) {
    replies_->clear();
    auto said = redis_connection::answer::incomplete;
    auto decided = [&] { return (said = redis_->take(answer)) != redis_connection::answer::incomplete; };
    if (!wait(decided, settings::response_timeout, "no answer in time", waiting_for::redis_reply))
        return false;
    as_expected = said == redis_connection::answer::equals;
    return true;
}

bool link::ask(std::string &commands, std::size_t count) { return send(commands) && receive(count); }

bool link::check_idle() {
    if (!is_open())
        return false;
    redis_->pump();
    if (redis_->failed())
        fail(redis_->error());
    return is_open();
}

} // namespace outbox

#include "src/connection.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "src/text.hpp"

namespace outbox::detail {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t most_kept = 1024 * 1024;

static std::uint64_t ms(milliseconds span) { return static_cast<std::uint64_t>(std::max<milliseconds::rep>(span.count(), 0)); }

// Outlives the connection until libuv has closed the handle.
struct connection::poller {
    uv_poll_t handle{};
    connection *owner = nullptr;
    int events = 0;

    // hiredis reads 16 kB and goes back to the loop. Here it gets what there is; it has the last word about errors and the end.
    static void read_much(redisAsyncContext &context) {
        constexpr std::size_t size = 256 * 1024;
        thread_local const std::unique_ptr<char[]> buffer(new char[size]);
        ssize_t count = recv(context.c.fd, buffer.get(), size, MSG_DONTWAIT);
        if (count > 0)
            redisReaderFeed(context.c.reader, buffer.get(), static_cast<std::size_t>(count));
    }

    void want(int wanted) {
        if (wanted == events)
            return;
        events = wanted;
        if (events == 0)
            uv_poll_stop(&handle);
        else
            uv_poll_start(&handle, events, [](uv_poll_t *poll, int status, int happened) {
                auto *self = static_cast<poller *>(poll->data);
                // an error is found by whoever reads or writes next
                if (status != 0) {
                    happened = UV_READABLE | UV_WRITABLE;
                    self->events = 0; // libuv has stopped it
                }
                redisAsyncContext *context = self->owner != nullptr ? self->owner->context_ : nullptr;
                if (context != nullptr && (happened & UV_READABLE) != 0) {
                    if (self->owner->state_ == state::ready)
                        self->read_much(*context);
                    redisAsyncHandleRead(context);
                }
                context = self->owner != nullptr ? self->owner->context_ : nullptr;
                if (context != nullptr && (happened & UV_WRITABLE) != 0)
                    redisAsyncHandleWrite(context);
            });
    }
};

connection::connection(uv_loop_t &loop, connection_options options, std::function<void()> ready, std::function<void()> lost)
    : loop_(loop), options_(std::move(options)), ready_(std::move(ready)), lost_(std::move(lost)) {
    uv_timer_init(&loop_, &timer_);
    uv_timer_init(&loop_, &watchdog_);
    uv_prepare_init(&loop_, &prepare_);
    timer_.data = watchdog_.data = prepare_.data = this;
    uv_prepare_start(&prepare_, [](uv_prepare_t *handle) { static_cast<connection *>(handle->data)->flush(); });
}

connection::~connection() = default;

void connection::open() {
    if (state_ == state::closed)
        resolve();
}

void connection::close() {
    state_ = state::closed;
    ready_ = lost_ = nullptr;
    if (resolver_ != nullptr) {
        resolver_->data = nullptr;
        uv_cancel(reinterpret_cast<uv_req_t *>(resolver_));
        resolver_ = nullptr;
    }
    drop();
    for (auto *handle : {reinterpret_cast<uv_handle_t *>(&timer_), reinterpret_cast<uv_handle_t *>(&watchdog_),
                         reinterpret_cast<uv_handle_t *>(&prepare_)})
        if (uv_is_closing(handle) == 0)
            uv_close(handle, nullptr);
}

// getaddrinfo in a thread of libuv's: a name server that is silent stops nobody.
void connection::resolve() {
    state_ = state::resolving;
    const redis_url &url = options_.url;
    password_ = url.password;
    if (password_.empty() && !options_.password_file.empty()) {
        std::ifstream file(options_.password_file);
        if (!std::getline(file, password_)) {
            lost("the password file could not be read");
            return;
        }
    }
    if (!url.path.empty()) {
        state_ = state::connecting;
        attach(redisAsyncConnectUnix(url.path.c_str()));
        return;
    }
    resolver_ = new uv_getaddrinfo_t{};
    resolver_->data = this;
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_family = AF_UNSPEC;
    int status = uv_getaddrinfo(
        &loop_, resolver_,
        [](uv_getaddrinfo_t *request, int result, addrinfo *found) {
            auto *self = static_cast<connection *>(request->data);
            char address[INET6_ADDRSTRLEN] = "";
            if (self != nullptr && result == 0 && found != nullptr) {
                // Another one after a failure: "localhost" is ::1 first on many machines, and Redis listens on 127.0.0.1.
                const addrinfo *chosen = found;
                for (int i = 0; i < self->failures_; ++i)
                    chosen = chosen->ai_next != nullptr ? chosen->ai_next : found;
                if (chosen->ai_family == AF_INET6)
                    uv_ip6_name(reinterpret_cast<sockaddr_in6 *>(chosen->ai_addr), address, sizeof address);
                else
                    uv_ip4_name(reinterpret_cast<sockaddr_in *>(chosen->ai_addr), address, sizeof address);
            }
            uv_freeaddrinfo(found);
            delete request;
            if (self == nullptr)
                return; // closed, or given up, meanwhile
            self->resolver_ = nullptr;
            if (address[0] == '\0')
                self->lost("the host name could not be resolved: " + std::string(uv_strerror(result)));
            else
                self->connect(address);
        },
        url.host.c_str(), nullptr, &hints);
    if (status != 0) {
        delete resolver_;
        resolver_ = nullptr;
        lost(uv_strerror(status));
        return;
    }
    uv_timer_start(
        &timer_,
        [](uv_timer_t *handle) {
            auto *self = static_cast<connection *>(handle->data);
            self->resolver_->data = nullptr;
            uv_cancel(reinterpret_cast<uv_req_t *>(self->resolver_));
            self->resolver_ = nullptr;
            self->lost("the host name was not resolved in time");
        },
        ms(options_.connect_timeout), 0);
}

void connection::connect(const char *address) {
    uv_timer_stop(&timer_);
    state_ = state::connecting;
    attach(redisAsyncConnect(address, options_.url.port));
}

void connection::attach(redisAsyncContext *context) {
    if (context == nullptr || context->err != 0) {
        std::string why = context != nullptr ? context->errstr : "out of memory";
        if (context != nullptr)
            redisAsyncFree(context);
        lost(why);
        return;
    }
    context_ = context;
    context->data = this;
    reader_ = {};
    reader_.attach(*context->c.reader);
    context->c.reader->maxbuf = most_kept; // or it gives its buffer back after each reply of some size

    poller_ = new poller;
    poller_->owner = this;
    poller_->handle.data = poller_;
    if (int status = uv_poll_init(&loop_, &poller_->handle, context->c.fd); status != 0) {
        delete poller_;
        poller_ = nullptr;
        redisAsyncContext *unusable = context_;
        context_ = nullptr;
        redisAsyncFree(unusable);
        lost(uv_strerror(status));
        return;
    }
    auto &hooks = context->ev;
    hooks.data = poller_;
    hooks.addRead = [](void *data) {
        auto *self = static_cast<poller *>(data);
        self->want(self->events | UV_READABLE);
    };
    hooks.delRead = [](void *data) {
        auto *self = static_cast<poller *>(data);
        self->want(self->events & ~UV_READABLE);
    };
    // What is queued is written before the loop next waits; the kernel is asked only where a write did not fit.
    hooks.addWrite = [](void *data) {
        auto *self = static_cast<poller *>(data);
        connection *owner = self->owner;
        if (owner != nullptr && owner->state_ != state::connecting && !owner->queued_)
            owner->queued_ = true;
        else
            self->want(self->events | UV_WRITABLE);
    };
    hooks.delWrite = [](void *data) {
        auto *self = static_cast<poller *>(data);
        self->want(self->events & ~UV_WRITABLE);
    };
    hooks.cleanup = [](void *data) {
        auto *self = static_cast<poller *>(data);
        if (self->owner != nullptr)
            self->owner->poller_ = nullptr;
        self->owner = nullptr;
        uv_close(reinterpret_cast<uv_handle_t *>(&self->handle),
                 [](uv_handle_t *handle) { delete static_cast<poller *>(handle->data); });
    };
    redisAsyncSetConnectCallback(context, on_connect);
    redisAsyncSetDisconnectCallback(context, on_disconnect);
    uv_timer_start(
        &timer_,
        [](uv_timer_t *handle) { static_cast<connection *>(handle->data)->lost("the connection was not made in time"); },
        ms(options_.connect_timeout), 0);
}

void connection::on_connect(const redisAsyncContext *context, int status) {
    auto *self = static_cast<connection *>(context->data);
    if (self == nullptr || self->context_ != context)
        return;
    if (status != REDIS_OK) {
        self->context_ = nullptr; // hiredis frees it
        self->lost(context->errstr != nullptr ? context->errstr : "the connection failed");
        return;
    }
    if (self->options_.url.path.empty()) {
        int on = 1;
        setsockopt(context->c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(context->c.fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
    self->state_ = state::greeting;
    self->complaint_.clear();
    self->greet();
}

// The password, the name and the database, in one go; the last answer opens the connection. A server that is loading answers
// PING with an error from some versions on and with PONG in others: the first command that matters will tell.
void connection::greet() {
    const std::string &user = options_.url.user;
    // a user alone has no password
    if (!password_.empty() || !user.empty()) {
        if (user.empty())
            send(std::initializer_list<std::string_view>{"AUTH", password_}, must_succeed("AUTH: "), {});
        else
            send(std::initializer_list<std::string_view>{"AUTH", user, password_}, must_succeed("AUTH: "), {});
    }
    // for operators who look at CLIENT LIST; a server that forbids it is fine
    send(std::initializer_list<std::string_view>{"CLIENT", "SETNAME", options_.name},
         [this](const redisReply *reply) {
             if (reply != nullptr && reply->type == REDIS_REPLY_ERROR)
                 complaint_ = text(*reply);
         },
         {});
    send(std::initializer_list<std::string_view>{"INFO", "server"},
         [this](const redisReply *reply) {
             if (reply == nullptr || state_ != state::greeting)
                 return;
             std::string_view about = reply->type != REDIS_REPLY_ERROR ? text(*reply) : std::string_view();
             constexpr std::string_view name = "\r\nrun_id:";
             auto at = about.find(name);
             greet_server(at == about.npos ? "" : about.substr(at + name.size(), 40));
         },
         {});
}

// The server's run numbers its connections from the beginning.
void connection::greet_server(std::string_view run) {
    // Of a connection that was given up the server may not know yet: what was sent there could still be executed, after
    // whatever comes here. Not where the user may not kill: then only the leases are left to find what it brought. Nor in
    // another run of the server: there the number is somebody else's.
    if (!run.empty() && run == run_)
        send(std::initializer_list<std::string_view>{"CLIENT", "KILL", "ID", client_id_}, [](const redisReply *) {}, {});
    send(std::initializer_list<std::string_view>{"CLIENT", "ID"},
         [this, run = std::string(run)](const redisReply *reply) {
             if (reply == nullptr || reply->type != REDIS_REPLY_INTEGER)
                 return;
             client_id_ = std::to_string(reply->integer);
             run_ = run;
         },
         {});
    if (options_.url.database != 0)
        send(std::initializer_list<std::string_view>{"SELECT", std::to_string(options_.url.database)}, must_succeed("SELECT: "), {});
    send(std::initializer_list<std::string_view>{"PING"},
         [this](const redisReply *reply) {
             if (reply == nullptr || state_ != state::greeting)
                 return;
             // NOPERM: the user may not PING, but is logged in
             if (reply->type == REDIS_REPLY_ERROR && !text(*reply).starts_with("NOPERM")) {
                 greeting_failed(printable(text(*reply)));
                 return;
             }
             uv_timer_stop(&timer_);
             state_ = state::ready;
             complaint_.clear();
             ++connects_;
             ready_();
         },
         {});
}

connection::reply_function connection::must_succeed(std::string_view what) {
    return [this, what](const redisReply *reply) {
        if (reply != nullptr && reply->type == REDIS_REPLY_ERROR && state_ == state::greeting)
            greeting_failed(std::string(what) + printable(text(*reply)));
    };
}

void connection::greeting_failed(std::string_view why) { lost(why); }

void connection::reconnect(std::string_view why) {
    if (state_ != state::closed && state_ != state::backing_off)
        lost(why);
}

// Every way in which a connection ends, or does not come about, leads here.
void connection::lost(std::string_view why) {
    if (state_ == state::closed || state_ == state::backing_off)
        return;
    bool was_ready = state_ == state::ready;
    std::string reason(why); // may be the context's own text
    state_ = state::backing_off;
    drop();
    if (state_ == state::closed)
        return; // one of the outstanding commands had that closed
    warn(was_ready ? "lost the connection to Redis at \"" : "could not connect to Redis at \"", reason);
    back_off();
    if (was_ready && lost_)
        lost_();
}

// Frees the context. Each outstanding command gets its null.
void connection::drop() {
    uv_timer_stop(&timer_);
    uv_timer_stop(&watchdog_);
    queued_ = false;
    if (context_ != nullptr) {
        redisAsyncContext *context = context_;
        context_ = nullptr;
        context->data = nullptr;
        redisAsyncFree(context);
    }
    std::deque<pending> unanswered;
    unanswered.swap(pending_);
    for (pending &one : unanswered)
        one.reply(nullptr);
}

void connection::back_off() {
    uv_timer_start(
        &timer_,
        [](uv_timer_t *handle) {
            auto *self = static_cast<connection *>(handle->data);
            self->resolve();
        },
        ms(next_delay()), 0);
}

milliseconds connection::next_delay() {
    double span = static_cast<double>(options_.reconnect_min.count());
    span = std::min(span * static_cast<double>(1ULL << std::min(failures_, 20)),
                    static_cast<double>(options_.reconnect_max.count()));
    ++failures_;
    // between half of it and all of it, so that a thousand clients do not come back in step
    double part = 0.5 + 0.5 * std::uniform_real_distribution<double>()(random_);
    return milliseconds(static_cast<milliseconds::rep>(span * part));
}

// Once for each reason, not at every attempt.
void connection::warn(std::string_view what, std::string_view why) {
    std::string message = std::string(what) + options_.url.endpoint() + "\": " + printable(why);
    if (warned_.size() < 20 && warned_.insert(message).second && options_.log)
        options_.log(log_level::warning, message);
}

// A server that only says PONG, such as one that is a replica now, is no success: it would be connected to in a hot loop.
void connection::works() {
    failures_ = 0;
    if (!warned_.empty() && options_.log)
        options_.log(log_level::warning, "connected to Redis at \"" + options_.url.endpoint() + "\" again");
    warned_.clear();
}

void connection::command(std::span<const std::string_view> words, reply_function reply, milliseconds patience) {
    if (state_ != state::ready) {
        reply(nullptr);
        return;
    }
    send(words, std::move(reply), patience);
}

void connection::send(std::span<const std::string_view> words, reply_function reply, milliseconds patience) {
    thread_local std::vector<const char *> texts;
    thread_local std::vector<std::size_t> lengths;
    texts.clear();
    lengths.clear();
    for (std::string_view word : words) {
        texts.push_back(word.data() != nullptr ? word.data() : "");
        lengths.push_back(word.size());
    }
    pending_.push_back({std::move(reply), steady_clock::now() + options_.response_timeout + patience});
    if (redisAsyncCommandArgv(context_, on_reply, nullptr, static_cast<int>(texts.size()), texts.data(), lengths.data()) !=
        REDIS_OK) {
        reply_function refused = std::move(pending_.back().reply);
        pending_.pop_back();
        refused(nullptr);
        return;
    }
    if (pending_.size() == 1)
        poll();
}

void connection::run(const script &script, std::span<const std::string_view> keys, std::span<const std::string_view> arguments,
                     reply_function reply) {
    auto words = std::make_shared<std::vector<std::string>>();
    std::vector<std::string_view> views{"EVALSHA", script.sha};
    std::string count = std::to_string(keys.size());
    views.push_back(count);
    views.insert(views.end(), keys.begin(), keys.end());
    views.insert(views.end(), arguments.begin(), arguments.end());
    // kept for the case that the server must be told the script first
    words->assign(views.begin(), views.end());
    command(views, [this, &script, words, reply = std::move(reply)](const redisReply *answer) mutable {
        if (answer == nullptr || classify(*answer) != trouble::no_script) {
            reply(answer);
            return;
        }
        std::vector<std::string_view> again(words->begin(), words->end());
        again[0] = "EVAL";
        again[1] = script.text;
        command(again, std::move(reply));
    });
}

void connection::on_reply(redisAsyncContext *context, void *reply, void *) {
    auto *self = static_cast<connection *>(context->data);
    // null: the context is being freed, and drop() calls them all
    if (self == nullptr || self->context_ != context || reply == nullptr)
        return;
    pending one = std::move(self->pending_.front());
    self->pending_.pop_front();
    auto *answer = static_cast<const redisReply *>(reply);
    if (self->state_ == state::ready && answer->type != REDIS_REPLY_ERROR)
        self->works();
    one.reply(answer);
    if (self->context_ == context)
        self->poll();
}

void connection::on_disconnect(const redisAsyncContext *context, int) {
    auto *self = static_cast<connection *>(context->data);
    if (self == nullptr || self->context_ != context)
        return;
    self->context_ = nullptr; // hiredis frees it
    // What it says before it closes is the reason, such as "max number of clients reached": that is no answer to anything.
    char words[256];
    auto said = recv(context->c.fd, words, sizeof words, MSG_DONTWAIT);
    if (self->state_ == state::greeting && said > 1 && words[0] == '-')
        self->complaint_.assign(words + 1, std::find(words + 1, words + said, '\r'));
    if (!self->complaint_.empty())
        self->lost(self->complaint_);
    else
        self->lost(context->errstr != nullptr && context->errstr[0] != '\0' ? context->errstr : "the server closed it");
}

// The watchdog looks when the oldest reply is due, and not at every command.
void connection::poll() {
    if (pending_.empty() || uv_is_active(reinterpret_cast<uv_handle_t *>(&watchdog_)) != 0)
        return;
    auto left = std::chrono::ceil<milliseconds>(pending_.front().deadline - steady_clock::now());
    uv_timer_start(
        &watchdog_,
        [](uv_timer_t *handle) {
            auto *self = static_cast<connection *>(handle->data);
            if (self->pending_.empty())
                return;
            if (self->pending_.front().deadline <= steady_clock::now())
                self->lost("no answer in time");
            else
                self->poll();
        },
        ms(left) + 1, 0);
}

void connection::flush() noexcept {
    if (!queued_ || context_ == nullptr)
        return;
    // hiredis asks for addWrite again if not everything fits: with queued_ still set that means to wait for the socket
    redisAsyncHandleWrite(context_);
    queued_ = false;
}

} // namespace outbox::detail

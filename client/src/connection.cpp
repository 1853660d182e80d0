#include "src/connection.hpp"

#include <algorithm>
#include <fstream>
#include <utility>

#include "common/resp.hpp"
#include "common/sentinel.hpp"
#include "src/text.hpp"

namespace outbox::detail {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t most_kept = 1024 * 1024;

static std::uint64_t ms(milliseconds span) { return static_cast<std::uint64_t>(std::max<milliseconds::rep>(span.count(), 0)); }

// hiredis' reader, with replies in arenas. A callback may drop the connection while it reads.
struct connection::parser {
    arena_reader arena;
    redisReader *reader = redisReaderCreate();

    parser() {
        if (reader == nullptr)
            throw std::bad_alloc();
        arena.attach(*reader);
        reader->maxbuf = most_kept; // or it gives its buffer back after each reply of some size
    }
    ~parser() { redisReaderFree(reader); }
    parser(const parser &) = delete;
    parser &operator=(const parser &) = delete;
};

connection::connection(uv_loop_t &loop, connection_options options, std::function<void()> ready, std::function<void()> lost)
    : loop_(loop), options_(std::move(options)), ready_(std::move(ready)), lost_(std::move(lost)),
      wire_(loop, {[this] { connected(); }, [this](std::string_view bytes) { received(bytes); },
                   // what a server says before it closes is no answer to anything, and the reason
                   [this](std::string_view why) {
                       this->lost(state_ == state::greeting && !complaint_.empty() ? std::string_view(complaint_) : why);
                   }}) {
    uv_timer_init(&loop_, &timer_);
    uv_timer_init(&loop_, &watchdog_);
    uv_prepare_init(&loop_, &prepare_);
    timer_.data = watchdog_.data = prepare_.data = this;
    uv_prepare_start(&prepare_, [](uv_prepare_t *handle) { static_cast<connection *>(handle->data)->flush(); });
}

connection::~connection() = default;

void connection::open() {
    if (state_ == state::closed)
        begin();
}

void connection::close() {
    state_ = state::closed;
    ready_ = lost_ = nullptr;
    drop();
    for (auto *handle : {reinterpret_cast<uv_handle_t *>(&timer_), reinterpret_cast<uv_handle_t *>(&watchdog_),
                         reinterpret_cast<uv_handle_t *>(&prepare_)})
        if (uv_is_closing(handle) == 0)
            uv_close(handle, nullptr);
}

// The password file is read anew for each attempt: the server's password, and in the second line that of the sentinels.
void connection::begin() {
    state_ = state::connecting;
    target_ = options_.url;
    sentinels_left_ = target_.sentinels.size();
    told_.clear();
    bool are_all_given = !target_.password.empty() && (target_.sentinels.empty() || !target_.sentinel_password.empty());
    if (!options_.password_file.empty() && !are_all_given) {
        std::ifstream file(options_.password_file);
        std::string first, second;
        if (!std::getline(file, first)) {
            sentinels_left_ = 0;
            lost("the password file could not be read");
            return;
        }
        std::getline(file, second);
        if (target_.password.empty())
            target_.password = first;
        if (target_.sentinel_password.empty())
            target_.sentinel_password = second;
    }
    url_ = target_;
    if (sentinels_left_ > 0)
        ask_sentinel();
    else
        connect();
}

void connection::ask_sentinel() {
    target_ = url_.at_sentinel(sentinel_);
    connect();
}

void connection::connect() {
    state_ = state::connecting;
    parser_ = std::make_shared<parser>();
    uv_timer_start(
        &timer_,
        [](uv_timer_t *handle) {
            auto *self = static_cast<connection *>(handle->data);
            self->lost(self->wire_.is_resolving()       ? "the host name was not resolved in time"
                       : self->wire_.is_shaking_hands() ? "TLS: the handshake timed out"
                                                        : "the connection was not made in time");
        },
        ms(options_.connect_timeout), 0);
    wire_.open(target_, failures_);
}

void connection::connected() {
    state_ = state::greeting;
    complaint_.clear();
    log_in();
    if (sentinels_left_ > 0)
        greet_sentinel();
    else
        greet();
}

void connection::log_in() {
    const std::string &user = target_.user;
    // a user alone has no password
    if (!user.empty())
        send(std::initializer_list<std::string_view>{"AUTH", user, target_.password}, must_succeed("AUTH: "), {});
    else if (!target_.password.empty())
        send(std::initializer_list<std::string_view>{"AUTH", target_.password}, must_succeed("AUTH: "), {});
}

void connection::greet_sentinel() {
    send(std::initializer_list<std::string_view>{"SENTINEL", "GET-MASTER-ADDR-BY-NAME", url_.master},
         [this](const redisReply *reply) {
             if (reply == nullptr || state_ != state::greeting)
                 return;
             redis_url::server server;
             std::string why;
             if (!read_master_address(*reply, server, why)) {
                 greeting_failed(why);
                 return;
             }
             sentinels_left_ = 0;
             drop();
             target_ = url_.at_master(server);
             connect();
         },
         {});
}

// The name and the database, in one go; the last answer opens the connection. A server that is loading answers PING with an
// error from some versions on and with PONG in others: the first command that matters will tell.
void connection::greet() {
    if (!url_.sentinels.empty())
        send(std::initializer_list<std::string_view>{"ROLE"},
             [this](const redisReply *reply) {
                 std::string why;
                 if (reply != nullptr && state_ == state::greeting && !is_master(*reply, why))
                     greeting_failed(printable(why));
             },
             {});
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
    if (target_.database != 0)
        send(std::initializer_list<std::string_view>{"SELECT", std::to_string(target_.database)}, must_succeed("SELECT: "), {});
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
    std::string reason(why); // may be text that goes with the connection
    bool asked = sentinels_left_ > 0;
    if (asked) {
        reason = "sentinel at \"" + target_.endpoint() + "\": " + reason;
        if (state_ == state::greeting)
            told_ = reason;
    }
    state_ = state::backing_off;
    drop();
    if (state_ == state::closed)
        return; // one of the outstanding commands had that closed
    if (asked) {
        sentinel_ = (sentinel_ + 1) % url_.sentinels.size();
        if (--sentinels_left_ > 0) {
            ask_sentinel();
            return;
        }
        target_ = url_;
        if (!told_.empty())
            reason = told_; // tells more than that another could not be reached
    }
    warn(was_ready ? "lost the connection to Redis at \"" : "could not connect to Redis at \"", reason);
    back_off();
    if (was_ready && lost_)
        lost_();
}

// Ends the connection. Each outstanding command gets its null.
void connection::drop() {
    uv_timer_stop(&timer_);
    uv_timer_stop(&watchdog_);
    wire_.close();
    parser_.reset();
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
            self->begin();
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
    std::string message = std::string(what) + target_.endpoint() + "\": " + printable(why, 300);
    if (why.find("TLS: ") != why.npos)
        message.append(" (").append(tls_hint(why)).append(")");
    if (warned_.size() < 20 && warned_.insert(message).second && options_.log)
        options_.log(log_level::warning, message);
}

// A server that only says PONG, such as one that is a replica now, is no success: it would be connected to in a hot loop.
void connection::works() {
    failures_ = 0;
    if (!warned_.empty() && options_.log)
        options_.log(log_level::warning, "connected to Redis at \"" + target_.endpoint() + "\" again");
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
    std::string &out = wire_.outgoing();
    resp::command(out, words.size());
    for (std::string_view word : words)
        resp::argument(out, word);
    pending_.push_back({std::move(reply), steady_clock::now() + options_.response_timeout + patience});
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

void connection::received(std::string_view bytes) {
    const std::shared_ptr<parser> parser = parser_;
    redisReader &reader = *parser->reader;
    int status = redisReaderFeed(&reader, bytes.data(), bytes.size());
    while (status == REDIS_OK) {
        void *reply = nullptr;
        status = redisReaderGetReply(&reader, &reply);
        if (status != REDIS_OK)
            break;
        if (reply == nullptr)
            return;
        answer(*static_cast<const redisReply *>(reply));
        reader.fn->freeObject(reply);
        if (parser != parser_)
            return; // the answer has ended this connection
    }
    lost(reader.errstr);
}

void connection::answer(const redisReply &reply) {
    if (pending_.empty()) {
        // what nobody asked for is why it closes
        std::string why = reply.type == REDIS_REPLY_ERROR ? printable(text(reply)) : "an answer to nothing";
        lost(why);
        return;
    }
    const std::shared_ptr<parser> parser = parser_;
    pending one = std::move(pending_.front());
    pending_.pop_front();
    overdue_ = false;
    if (state_ == state::ready && reply.type != REDIS_REPLY_ERROR)
        works();
    one.reply(&reply);
    if (parser == parser_)
        poll();
}

// The watchdog looks when the oldest reply is due, and not at every command. When it is overdue, the loop has one more round in
// which to read: this process may have been stopped for longer than the server, and the reply be there.
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
            bool overdue = self->pending_.front().deadline <= steady_clock::now();
            if (overdue && std::exchange(self->overdue_, false)) {
                self->lost("no answer in time");
            } else {
                self->overdue_ = overdue;
                self->poll();
            }
        },
        ms(left) + 1, 0);
}

void connection::flush() noexcept { wire_.flush(); }

} // namespace outbox::detail

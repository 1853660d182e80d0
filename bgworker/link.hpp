// The worker's side of a Redis connection: waits for it as PostgreSQL's workers wait, on the latch and the socket, so that every
// signal is answered within 100 ms whatever Redis does.
#pragma once

#include "bgworker/redis.hpp"
#include "extension/pg.hpp"
#include "extension/wait_event.hpp"

namespace outbox {

class link {
  public:
    // What went wrong with the sink as a whole; empty text: nothing.
    const char *error() const { return error_; }
    bool is_open() const { return redis_ && redis_->is_open(); }
    const char *endpoint() const { return endpoint_; }

    // Connects to the server, or to the one that a sentinel names; authenticates, selects the database. False: see error().
    // With an empty URL, that of outbox.redis_url.
    bool open(const char *client_name, const char *url);
    void close();

    // Sends; false where the connection is lost. `commands` is left empty.
    bool send(std::string &commands);

    // Waits for `count` replies to what was sent; they stay until the next call. False where the connection is lost or
    // nothing came for outbox.response_timeout, and `blocked` ms more that Redis itself may wait.
    bool receive(std::size_t count, int blocked = 0);

    // Waits for `answer`, byte for byte. Where something else comes, `as_expected` is false and receive() gets it all.
    bool expect(std::string_view answer, bool &as_expected);
    const redisReply &reply(std::size_t i) const { return *(*replies_)[i]; }
    std::size_t received() const { return replies_->size(); }

    // Both: sends `commands` and waits for `count` replies.
    bool ask(std::string &commands, std::size_t count);

    // What came without being asked for: a closed connection, mostly. False where it is lost.
    bool check_idle();

    // Waits until something comes, the latch is set or the time is over, for whoever waits with a connection that is at rest.
    void wait_for_latch(int ms, waiting_for what);

    void fail(const char *reason);

  private:
    bool read_url(redis_url &url, const char *text);
    bool read_password(redis_url &url, bool of_setting);
    bool find_master(redis_url &url);
    bool ask_sentinel(redis_url &url, std::size_t index, bool &reached);
    bool connect(const redis_url &url);
    bool greet(const redis_url &url, bool must_be_master, const char *client_name);
    void wait_for_events(bool writeable, int ms, waiting_for what);
    template <typename Condition> bool wait(Condition condition, int timeout, const char *timed_out, waiting_for what);

    redis_connection *redis_ = nullptr; // lives as long as the process: errors jump past destructors
    std::vector<reply_pointer> *replies_ = nullptr;
    WaitEventSet *events_ = nullptr; // of an open connection: making one for every wait costs as much as the wait
    std::size_t sentinel_ = 0;       // that answered last
    char endpoint_[160] = "";
    char error_[256] = "";
};

} // namespace outbox

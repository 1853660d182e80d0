#include "bgworker/redis.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace outbox {

// More than any reply of ours: whoever sends this is no Redis, or none that we can afford to listen to.
constexpr std::size_t max_unread = 256 * 1024 * 1024;
constexpr std::size_t max_line = 64 * 1024;

void redis_connection::fail(const char *reason) noexcept {
    char text[sizeof error_];
    std::snprintf(text, sizeof text, "%s", *reason ? reason : "unknown error"); // may be the channel's own
    channel_.close();
    resolver_.cancel();
    is_resolving_ = false;
    std::memcpy(error_, text, sizeof error_);
}

void redis_connection::close() noexcept {
    resolver_.cancel();
    is_resolving_ = false;
    channel_.close();
    if (reader_)
        redisReaderFree(reader_);
    reader_ = nullptr;
    in_.clear();
    error_[0] = '\0';
}

// More than any reply of ours has. hiredis makes room for as many elements as a server announces, before they come.
constexpr std::size_t max_elements = 100000;

#if HIREDIS_MAJOR >= 1
using element_count = std::size_t;
#else
using element_count = int;
#endif

static void *(*create_array)(const redisReadTask *, element_count) = nullptr;

static void *create_bounded_array(const redisReadTask *task, element_count elements) {
    return static_cast<std::size_t>(elements) > max_elements ? nullptr : create_array(task, elements);
}

static redisReader *create_reader() noexcept {
    redisReader *reader = redisReaderCreate();
    if (!reader)
        return nullptr;
    static redisReplyObjectFunctions functions = *reader->fn;
    if (!create_array) {
        create_array = functions.createArray;
        functions.createArray = create_bounded_array;
    }
    reader->fn = &functions;
    return reader;
}

void redis_connection::open(const redis_url &url) noexcept {
    close();
    url_ = url;
    addresses_.clear();
    address_ = 0;
    reader_ = create_reader();
    if (!reader_)
        return fail("out of memory");

    socket_address address = {};
    if (address_of(url, address)) {
        addresses_.push_back(address);
        connect_next();
    } else {
        is_resolving_ = true;
        resolver_.start(url.host, url.port);
        pump();
    }
}

void redis_connection::connect_next() noexcept {
    if (address_ >= addresses_.size())
        return fail("no address found");
    channel_.open(url_, addresses_[address_++]);
    move_on();
}

// Another address where this one cannot be reached.
void redis_connection::move_on() noexcept {
    if (!channel_.failed())
        return;
    if (channel_.was_unreachable() && address_ < addresses_.size())
        connect_next();
    else
        fail(channel_.error());
}

void redis_connection::pump() noexcept {
    if (failed())
        return;
    if (is_resolving_) {
        resolver_.pump();
        if (!resolver_.done())
            return;
        is_resolving_ = false;
        if (!resolver_.error().empty())
            return fail(("could not look up host: " + resolver_.error()).c_str());
        addresses_ = resolver_.addresses();
        connect_next();
    }
    channel_.advance();
    channel_.flush();
    read_some();
    move_on();
}

void redis_connection::send(std::string &commands) noexcept {
    channel_.send(commands);
    channel_.flush();
    move_on();
}

void redis_connection::read_some() noexcept {
    char buffer[65536];
    while (std::size_t count = channel_.read(buffer, sizeof buffer)) {
        in_.append(buffer, count);
        if (in_.size() > max_unread)
            return fail("the reply is too large");
        if (count < sizeof buffer && !channel_.must_be_emptied())
            return;
    }
}

redis_connection::answer redis_connection::take(std::string_view expected) noexcept {
    if (!reader_ || reader_->pos < reader_->len)
        return answer::differs; // part of a reply is with the reader
    std::size_t common = std::min(in_.size(), expected.size());
    if (std::memcmp(in_.data(), expected.data(), common) != 0)
        return answer::differs;
    if (common < expected.size())
        return answer::incomplete;
    in_.erase(0, common);
    return answer::equals;
}

bool redis_connection::feed() noexcept {
    constexpr std::size_t step = 16384;
    for (std::size_t from = 0; from < in_.size(); from += step) {
        std::size_t size = std::min(step, in_.size() - from);
        if (redisReaderFeed(reader_, in_.data() + from, size) != REDIS_OK) {
            fail(std::string(reader_->errstr).c_str());
            return false;
        }
    }
    in_.clear();
    if (reader_->len > max_unread) {
        fail("the reply is too large");
        return false;
    }
    // Whatever comes next begins with a short line. hiredis would look for its end from the start each time.
    if (reader_->len - reader_->pos > max_line && !std::memchr(reader_->buf + reader_->pos, '\r', max_line)) {
        fail("protocol error: a line without an end");
        return false;
    }
    return true;
}

reply_pointer redis_connection::next_reply() noexcept {
    if (!reader_)
        return nullptr;
    if (!in_.empty() && !feed())
        return nullptr;
    void *reply = nullptr;
    if (redisReaderGetReply(reader_, &reply) != REDIS_OK) {
        // Bytes that are no Redis protocol: another server, or a corrupted stream.
        fail(reader_->errstr[0] ? std::string(reader_->errstr).c_str() : "protocol error");
        return nullptr;
    }
    return reply_pointer(static_cast<redisReply *>(reply));
}

} // namespace outbox

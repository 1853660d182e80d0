// The least that a consumer group takes of a client: raw XREADGROUP and XACK on one connection. Some reads are always on their
// way; the next one is sent with the XACK of what came, and nobody waits for the answer to either. What comes is parsed by the
// reader of hiredis and looked at no further: no order, no retries, no decoding.
#include "clock.hpp"
#include "options.hpp"
#include "redis_socket.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include <hiredis/hiredis.h>

namespace {

class loop {
  public:
    loop(int socket, const std::string &stream, const std::string &group, long count, long events)
        : socket_(socket), count_(count), left_(events), events_(events) {
        for (std::string_view word : {std::string_view("XREADGROUP"), std::string_view("GROUP"), std::string_view(group),
                                      std::string_view("loop"), std::string_view("COUNT")})
            put(read_, word);
        for (std::string_view word : {std::string_view("STREAMS"), std::string_view(stream), std::string_view(">")})
            put(from_, word);
        for (std::string_view word : {std::string_view("XACK"), std::string_view(stream), std::string_view(group)})
            put(acknowledge_, word);
        reader_->maxbuf = 0; // it keeps its buffer
    }
    ~loop() { redisReaderFree(reader_); }

    void run(long depth) {
        while (depth-- > 0)
            read_more();
        flush();
        static char bytes[1 << 20];
        while (acknowledged_ < events_) {
            ssize_t got = recv(socket_, bytes, sizeof bytes, 0);
            if (got < 0 && errno == EINTR)
                continue;
            if (got <= 0)
                options::fail(got == 0 ? "Redis closed the connection" : std::string("recv: ") + std::strerror(errno));
            redisReaderFeed(reader_, bytes, static_cast<std::size_t>(got));
            void *reply = nullptr;
            while (redisReaderGetReply(reader_, &reply) == REDIS_OK && reply != nullptr) {
                came(*static_cast<redisReply *>(reply));
                freeReplyObject(reply);
            }
            if (reader_->err != 0)
                options::fail(reader_->errstr);
            flush();
        }
    }

  private:
    static void put(std::string &out, std::string_view word) {
        out += '$';
        out += std::to_string(word.size());
        out += "\r\n";
        out += word;
        out += "\r\n";
    }

    void read_more() {
        long wanted = std::min(count_, left_);
        if (wanted == 0)
            return;
        left_ -= wanted;
        out_ += "*9\r\n";
        out_ += read_;
        put(out_, std::to_string(wanted));
        out_ += from_;
    }

    void came(const redisReply &reply) {
        if (reply.type == REDIS_REPLY_INTEGER) {
            acknowledged_ += static_cast<long>(reply.integer);
            return;
        }
        if (reply.type == REDIS_REPLY_ERROR)
            options::fail(reply.str);
        if (reply.type != REDIS_REPLY_ARRAY || reply.elements != 1)
            options::fail("the group has fewer entries to read than --events");
        const redisReply &entries = *reply.element[0]->element[1];
        out_ += '*';
        out_ += std::to_string(3 + entries.elements);
        out_ += "\r\n";
        out_ += acknowledge_;
        for (std::size_t i = 0; i < entries.elements; ++i) {
            const redisReply &id = *entries.element[i]->element[0];
            put(out_, {id.str, id.len});
        }
        read_more();
    }

    void flush() {
        for (std::string_view rest = out_; !rest.empty();) {
            ssize_t count = send(socket_, rest.data(), rest.size(), MSG_NOSIGNAL);
            if (count < 0 && errno != EINTR)
                options::fail(std::string("send: ") + std::strerror(errno));
            rest.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
        }
        out_.clear();
    }

    redisReader *reader_ = redisReaderCreate();
    int socket_;
    std::string read_, from_, acknowledge_, out_;
    long count_, left_, events_, acknowledged_ = 0;
};

} // namespace

int main(int argc, char **argv) {
    options given(argc, argv, "Reads and acknowledges the entries of a stream for a group as fast as one connection can.",
                  {"redis", "", "path of a unix socket, or port of 127.0.0.1", "group", "bench", "that reads; must be there",
                   "stream", "outbox:{billing}", "key of the stream", "events", "500000", "how many", "count", "500",
                   "entries in a read", "depth", "2", "reads on their way"});
    long events = given.number("events"), count = given.number("count"), depth = given.number("depth");
    if (events < 1 || count < 1 || depth < 1)
        options::fail("--events, --count and --depth must be at least 1");
    loop raw(connect_redis(given.text("redis")), given.text("stream"), given.text("group"), count, events);
    double cpu = cpu_seconds();
    std::int64_t began = now_ns();
    raw.run(depth);
    double seconds = static_cast<double>(now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    auto all = static_cast<double>(events);
    std::printf(R"({"events":%ld,"seconds":%.6f,"rate":%.0f,"cpu":%.6f,"cpu_us":%.4f})"
                "\n",
                events, seconds, all / seconds, cpu, cpu / all * 1e6);
}

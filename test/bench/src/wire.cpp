// The physical limit: what one connection can have appended. Every command is there, encoded, before the clock starts, and so is
// every reply that must come; sending and receiving overlap. It reads nothing, orders nothing, records nothing.
#include "clock.hpp"
#include "options.hpp"
#include "redis_socket.hpp"

#include <algorithm>
#include <fcntl.h>
#include <poll.h>
#include <string>
#include <thread>
#include <vector>

namespace {

void put(std::string &out, std::string_view word) {
    out += '$';
    out += std::to_string(word.size());
    out += "\r\n";
    out += word;
    out += "\r\n";
}

struct load {
    std::string commands, replies;
    std::vector<std::size_t> ends; // where a write may end: so many events each
};

// The same fields, sizes and kind of IDs as the worker's: <ms>-<n>, a batch of events under one ms.
load encode(long events, long per_write, const std::string &stream) {
    load result;
    result.commands.reserve(static_cast<std::size_t>(events) * 520);
    result.replies.reserve(static_cast<std::size_t>(events) * 28);
    constexpr long batch = 10000;
    std::string filler;
    for (int i = 0; i < 4; ++i)
        filler += "thank you for your order; ";
    filler += "please pay within 14 days.";
    char text[400], id[40];
    for (long i = 0; i < events; ++i) {
        int id_length = std::snprintf(id, sizeof id, "%lld-%ld", 1795251315972LL + i / batch * 20, i % batch);
        std::string &out = result.commands;
        out += "*19\r\n";
        put(out, "XADD");
        put(out, stream);
        put(out, {id, static_cast<std::size_t>(id_length)});
        put(out, "event_id");
        std::snprintf(text, sizeof text, "01a1fd51-%04lx-7%03lx-8abb-%012lx", i / 4096 % 65536, i % 4096, i * 7919);
        put(out, text);
        put(out, "event_type");
        put(out, "billing.invoice.paid");
        put(out, "aggregate_type");
        put(out, "invoice");
        put(out, "aggregate_id");
        std::snprintf(text, sizeof text, "i%ld", i % 1000);
        put(out, text);
        put(out, "version");
        put(out, "1");
        put(out, "occurred_at");
        std::snprintf(text, sizeof text, "2026-11-21T08:%02ld:%02ld.%06ldZ", i / 60000000 % 60, i / 1000000 % 60, i % 1000000);
        put(out, text);
        put(out, "headers");
        put(out, "{}");
        put(out, "payload");
        std::snprintf(text, sizeof text, R"({"invoice":"%012ld","amount":"12.50","currency":"EUR","note":"%s"})", i,
                      filler.c_str());
        put(out, text);
        put(result.replies, {id, static_cast<std::size_t>(id_length)});
        if ((i + 1) % per_write == 0 || i + 1 == events)
            result.ends.push_back(out.size());
    }
    return result;
}

[[noreturn]] void fail_errno(const char *what) { options::fail(std::string(what) + ": " + std::strerror(errno)); }

// Takes what there is; false when there is nothing now.
bool receive(int fd, const std::string &expected, std::size_t &received, int flags) {
    static char buffer[65536];
    ssize_t count = recv(fd, buffer, sizeof buffer, flags);
    if (count == 0)
        options::fail("Redis closed the connection");
    if (count < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
            return false;
        fail_errno("recv");
    }
    auto size = static_cast<std::size_t>(count);
    if (size > expected.size() - received || std::memcmp(buffer, expected.data() + received, size) != 0)
        options::fail("Redis answered something else: " + std::string(buffer, std::min<std::size_t>(size, 200)));
    received += size;
    return true;
}

// One thread that does whatever can be done. It need not wait: a Redis that has nobody to wake up is faster.
void run_alone(int fd, const load &work, bool spin) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    std::size_t sent = 0, received = 0, next = 0;
    while (received < work.replies.size()) {
        bool full = false;
        if (sent < work.commands.size()) {
            ssize_t count = send(fd, work.commands.data() + sent, work.ends[next] - sent, MSG_NOSIGNAL);
            if (count > 0) {
                sent += static_cast<std::size_t>(count);
                if (sent == work.ends[next])
                    ++next;
                full = next < work.ends.size() && sent < work.ends[next] && sent > (next ? work.ends[next - 1] : 0);
            } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                full = true;
            } else if (errno != EINTR) {
                fail_errno("send");
            }
        }
        bool some = receive(fd, work.replies, received, 0);
        if (some || !(full || sent == work.commands.size()))
            continue;
        if (spin) {
            // a socket that is looked at all the time is locked all the time
            for (int i = 0; i < 100; ++i)
                __builtin_ia32_pause();
        } else {
            // Only for room as long as there is something to send: replies can wait until then, and wake nobody.
            pollfd ready = {fd, static_cast<short>(sent < work.commands.size() ? POLLOUT : POLLIN), 0};
            if (poll(&ready, 1, 60000) == 0)
                options::fail("Redis did nothing for a minute");
        }
    }
}

// One thread that writes and one that reads.
void run_threads(int fd, const load &work) {
    std::thread reader([&] {
        std::size_t received = 0;
        while (received < work.replies.size())
            receive(fd, work.replies, received, 0);
    });
    std::size_t sent = 0;
    for (std::size_t end : work.ends)
        while (sent < end) {
            ssize_t count = send(fd, work.commands.data() + sent, end - sent, MSG_NOSIGNAL);
            if (count < 0 && errno != EINTR)
                fail_errno("send");
            sent += count > 0 ? static_cast<std::size_t>(count) : 0;
        }
    reader.join();
}

} // namespace

int main(int argc, char **argv) {
    options given(argc, argv, "Appends events to a Redis stream as fast as one connection can, from memory.",
                  {"redis", "", "path of a unix socket, or port of 127.0.0.1", "events", "1000000", "how many", "stream",
                   "outbox:{billing}", "key of the stream", "write", "128", "events in a write", "how", "spin",
                   "spin: one thread, that never waits; poll: one that does; threads: one that writes and one that reads"});
    long events = given.number("events"), per_write = given.number("write");
    if (events < 1 || per_write < 1)
        options::fail("--events and --write must be at least 1");
    load work = encode(events, per_write, given.text("stream"));
    int fd = connect_redis(given.text("redis"));
    const std::string &how = given.text("how");

    double cpu = cpu_seconds();
    std::int64_t began = now_ns();
    if (how == "spin" || how == "poll")
        run_alone(fd, work, how == "spin");
    else if (how == "threads")
        run_threads(fd, work);
    else
        options::fail("--how must be spin, poll or threads");
    double seconds = static_cast<double>(now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    auto count = static_cast<double>(events);
    std::printf(R"({"events":%ld,"seconds":%.6f,"rate":%.0f,"cpu":%.6f,"cpu_us":%.4f,"bytes_per_event":%.1f})"
                "\n",
                events, seconds, count / seconds, cpu, cpu / count * 1e6, static_cast<double>(work.commands.size()) / count);
}

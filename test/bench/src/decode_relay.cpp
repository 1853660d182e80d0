// A relay that reads the log: the inserts of the hand-written outbox table as wal2json or pgoutput
// tell them, or events that were written to the log as logical messages and to no table. Appends
// with pipelined XADDs, and confirms a transaction to the server when Redis has all of it.
#include "appender.hpp"
#include "walsender.hpp"

#include <algorithm>
#include <csignal>
#include <deque>
#include <memory>
#include <vector>
#ifdef WITH_SIMDJSON
#include <simdjson.h>
#endif

namespace {

volatile std::sig_atomic_t stopping = 0;

// What a message of the output plugin is.
enum class kind { event, commit, other };

class decoder {
  public:
    virtual ~decoder() = default;
    // the fields of an event are there until the next call
    virtual kind decode(std::string_view message, event_fields &fields) = 0;
};

// the columns of bench.outbox that are fields, in the order of appender::names
constexpr std::array<std::string_view, 8> columns = {"event_id",     "event_type", "aggregate_type",
                                                     "aggregate_id", "version",    "occurred_at",
                                                     "headers",      "payload"};
constexpr int occurred_at = 5;

int field_of(std::string_view column) {
    for (std::size_t i = 0; i < columns.size(); ++i)
        if (columns[i] == column)
            return static_cast<int>(i);
    return -1;
}

// https://www.postgresql.org/docs/15/protocol-logicalrep-message-formats.html, the values as text
class pgoutput_table : public decoder {
  public:
    kind decode(std::string_view message, event_fields &fields) override {
        switch (message[0]) {
        case 'R':
            relation(message);
            return kind::other;
        case 'I':
            insert(message.data() + 1, fields);
            return kind::event;
        case 'C':
            return kind::commit;
        default:
            return kind::other;
        }
    }

  private:
    void relation(std::string_view message) {
        const char *at = message.data() + 5;
        at += std::strlen(at) + 1; // namespace
        at += std::strlen(at) + 1; // name
        at += 1;                   // replica identity
        int count = read_uint16(at);
        at += 2;
        fields_.clear();
        for (int i = 0; i < count; ++i) {
            at += 1; // flags
            fields_.push_back(field_of(at));
            at += std::strlen(at) + 1 + 8; // type, modifier
        }
    }

    void insert(const char *at, event_fields &fields) {
        at += 4 + 1; // relation, 'N'
        std::size_t count = read_uint16(at);
        at += 2;
        if (count != fields_.size())
            options::fail("pgoutput sent a row of an unknown table");
        for (std::size_t i = 0; i < count; ++i) {
            std::string_view value;
            if (*at++ == 't') {
                std::size_t length = read_uint32(at);
                value = {at + 4, length};
                at += 4 + length;
            }
            if (fields_[i] >= 0)
                fields[static_cast<std::size_t>(fields_[i])] = value;
        }
        fields[occurred_at] = iso_time(fields[occurred_at], time_);
    }

    std::vector<int> fields_; // of each column that comes
    std::array<char, 40> time_;
};

// pg_logical_emit_message(true, …, the eight fields with \x1f between them): no control character
// can be in them, JSON escapes it
class pgoutput_message : public decoder {
  public:
    kind decode(std::string_view message, event_fields &fields) override {
        if (message[0] == 'C')
            return kind::commit;
        if (message[0] != 'M')
            return kind::other;
        const char *at = message.data() + 1 + 1 + 8; // flags, LSN
        at += std::strlen(at) + 1;                   // prefix
        std::string_view text = {at + 4, read_uint32(at)};
        for (std::size_t i = 0; i < fields.size(); ++i) {
            std::size_t end = i + 1 < fields.size() ? text.find('\x1f') : text.size();
            if (end == text.npos)
                options::fail("a logical message has not eight fields");
            fields[i] = text.substr(0, end);
            text.remove_prefix(i + 1 < fields.size() ? end + 1 : end);
        }
        return kind::event;
    }
};

#ifdef WITH_SIMDJSON
// format version 2: an object for each row, {"action":"I", …, "columns":[{"name":…,"value":…}, …]}
class wal2json : public decoder {
  public:
    kind decode(std::string_view message, event_fields &fields) override {
        text_.assign(message); // for the room that the parser wants behind it
        text_.reserve(message.size() + simdjson::SIMDJSON_PADDING);
        simdjson::ondemand::document row = parser_.iterate(
            simdjson::padded_string_view(text_.data(), text_.size(), text_.capacity()));
        std::string_view action = row["action"].get_string();
        if (action != "I")
            return action == "C" ? kind::commit : kind::other;
        for (simdjson::ondemand::object column : row["columns"].get_array()) {
            int field = field_of(column["name"].get_string());
            if (field < 0)
                continue;
            simdjson::ondemand::value value = column["value"];
            std::string_view &to = fields[static_cast<std::size_t>(field)];
            if (value.type() == simdjson::ondemand::json_type::string)
                to = value.get_string();
            else
                to = value.raw_json_token(); // the version: digits
        }
        fields[occurred_at] = iso_time(fields[occurred_at], time_);
        return kind::event;
    }

  private:
    simdjson::ondemand::parser parser_;
    std::string text_;
    std::array<char, 40> time_;
};
#endif

#ifdef WITH_SIMDJSON
constexpr const char *formats =
    "pgoutput, wal2json: inserts of bench.outbox; message: logical messages";
#else
constexpr const char *formats = "pgoutput: inserts of bench.outbox; message: logical messages";
#endif

struct format {
    std::unique_ptr<decoder> reader;
    std::string settings; // of the output plugin
};

format choose(const std::string &name, const std::string &publication) {
    if (name == "pgoutput")
        return {std::make_unique<pgoutput_table>(),
                "proto_version '1', publication_names '" + publication + "'"};
    if (name == "message")
        return {std::make_unique<pgoutput_message>(),
                "proto_version '1', publication_names '" + publication + "', messages 'true'"};
#ifdef WITH_SIMDJSON
    if (name == "wal2json")
        return {std::make_unique<wal2json>(),
                "\"format-version\" '2', \"include-types\" 'false', \"add-tables\" 'bench.outbox'"};
#endif
    options::fail(std::string("there is no format \"") + name + "\": " + formats);
}

} // namespace

int main(int argc, char **argv) {
    options given(argc, argv,
                  "Reads events from a logical slot and appends them to a Redis stream.",
                  {"conninfo",    "",         "of the database",
                   "redis",       "",         "path of a unix socket, or port of 127.0.0.1",
                   "stream",      "",         "key of the stream",
                   "format",      "pgoutput", formats,
                   "slot",        "bench",    "the slot, of the plugin that the format names",
                   "publication", "bench",    "of the table, for pgoutput",
                   "events",      "0",        "end after so many; 0: at SIGTERM"});
    struct sigaction action = {};
    action.sa_handler = [](int) { stopping = 1; };
    sigaction(SIGTERM, &action, nullptr);
    auto wanted = static_cast<std::uint64_t>(given.number("events"));
    format chosen = choose(given.text("format"), given.text("publication"));
    appender redis(given.text("redis"), given.text("stream"));

    double cpu = cpu_seconds();
    std::int64_t began = now_ns();
    walsender source(given.text("conninfo"), given.text("slot"), chosen.settings);

    struct transaction {
        std::uint64_t events; // appended when it was complete
        std::uint64_t lsn;
    };
    std::deque<transaction> sent;
    std::uint64_t published = 0; // position
    while (!stopping && !(wanted && redis.confirmed() >= wanted)) {
        bool read = false, starved = false;
        while (!redis.full() && !redis.worth_a_write()) {
            auto message = source.next();
            if (!message) {
                if (read) {
                    starved = true;
                    break;
                }
                source.consume();
                read = true;
                continue;
            }
            event_fields fields;
            switch (chosen.reader->decode(message->text, fields)) {
            case kind::event:
                redis.append(fields);
                break;
            case kind::commit:
                sent.push_back({redis.appended(), message->lsn});
                break;
            case kind::other:
                break;
            }
        }
        bool some = redis.exchange();
        while (!sent.empty() && sent.front().events <= redis.confirmed()) {
            published = sent.front().lsn;
            sent.pop_front();
        }
        if (sent.empty() && redis.confirmed() == redis.appended())
            published = std::max(published, source.keepalive());
        source.confirm(published);
        if (some || (!starved && !redis.full()))
            continue;
        // The server sends every change on its own. To wake up for each costs half of the CPU and
        // makes nothing come sooner, so while Redis works there is a pause for some of them; longer
        // ones make the server wait for room in the socket.
        if (redis.confirmed() < redis.appended())
            usleep(200);
        pollfd ready[] = {{source.fd(), static_cast<short>(starved ? POLLIN : 0), 0},
                          {redis.fd(), redis.events_to_wait_for(), 0}};
        if (poll(ready, 2, 1000) < 0 && errno != EINTR)
            options::fail(std::string("poll: ") + std::strerror(errno));
    }
    source.confirm(published, true);
    double seconds = static_cast<double>(now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    auto events = static_cast<double>(redis.confirmed());
    std::printf(R"({"events":%.0f,"seconds":%.6f,"rate":%.0f,"cpu":%.6f,"cpu_us":%.4f})"
                "\n",
                events, seconds, events / seconds, cpu, events > 0 ? cpu / events * 1e6 : 0);
}

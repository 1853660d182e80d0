// outboxctl tail: the entries of the streams, in order, and what comes.
#include <algorithm>
#include <chrono>
#include <deque>

#include <poll.h>

#include "ctl/context.hpp"
#include "ctl/streams.hpp"
#include "ctl/table.hpp"
#include "ctl/when.hpp"
#include "src/entry.hpp"

namespace outbox::ctl {

namespace {

struct request {
    std::vector<std::string> topics; // empty: all, also those that come
    std::string since;
    std::size_t count = 10;
    bool counted = false;
    bool ends = false;
};

struct entry {
    detail::entry_id id;
    std::string key;
    json fields; // an object of texts; of two alike the first
};

entry read_entry(const std::string &key, const detail::raw_entry &raw) {
    entry one{{}, key, json::object()};
    if (!detail::parse(raw.id, one.id))
        throw reply_error("the reply is not that of Redis to " + key);
    for (std::size_t i = 0; raw.fields != nullptr && i + 1 < raw.fields->elements; i += 2)
        one.fields.emplace(detail::text(*raw.fields->element[i]), std::string(detail::text(*raw.fields->element[i + 1])));
    return one;
}

std::vector<entry> read_entries(const std::string &key, const redisReply &reply) {
    std::vector<entry> entries;
    for (std::size_t i = 0; i < reply.elements; ++i) {
        detail::raw_entry raw;
        if (!detail::interpret_entry(*reply.element[i], raw))
            throw reply_error("the reply is not that of Redis to " + key);
        entries.push_back(read_entry(key, raw));
    }
    return entries;
}

bool earlier(const entry &a, const entry &b) { return a.id < b.id; }

// Where the reading of a stream is, and what of it has been fetched and not been shown.
struct reader {
    std::string key;
    detail::entry_id last; // fetched
    std::deque<entry> ahead;
    bool at_end = false;
};

class tail {
  public:
    tail(context &context, const request &wanted) : context_(context), redis_(context.redis()), wanted_(wanted) {}

    exit_code run() {
        auto now = std::chrono::duration_cast<std::chrono::milliseconds>(redis_.time().time_since_epoch()).count();
        detail::entry_id since;
        if (!wanted_.since.empty() && !parse_when(wanted_.since, now, since))
            throw failure(exit_code::usage, "\"" + wanted_.since + "\" is no point in time",
                          "Use 10m, 2h, 3d, 2026-11-21T08:55:15Z, or a position such as 1795273184059-0.");
        if (wanted_.since.empty() || wanted_.counted)
            show_last(since);
        else
            show_since(since);
        if (!wanted_.ends)
            follow();
        return exit_code::ok;
    }

  private:
    std::vector<std::string> keys() {
        std::vector<std::string> found;
        for (const auto &topic : wanted_.topics)
            found.push_back("outbox:{" + topic + "}");
        if (found.empty())
            for (auto &key : redis_.streams("outbox:{*}"))
                if (!topic_of(key).empty())
                    found.push_back(std::move(key));
        return found;
    }

    // The last entries of all streams together, behind which the following begins.
    void show_last(detail::entry_id since) {
        std::vector<entry> entries;
        auto count = std::to_string(std::max<std::size_t>(wanted_.count, 1));
        for (const auto &key : keys()) {
            auto reply = redis_.command({"XREVRANGE", key, "+", detail::to_string(since), "COUNT", count});
            auto of_stream = read_entries(key, *reply);
            readers_.push_back({key, of_stream.empty() ? detail::predecessor(since) : of_stream.front().id, {}, false});
            entries.insert(entries.end(), of_stream.begin(), of_stream.end());
        }
        std::sort(entries.begin(), entries.end(), earlier);
        auto from = entries.size() - std::min(entries.size(), wanted_.count);
        for (std::size_t i = from; i < entries.size(); ++i)
            show(entries[i]);
    }

    // All from there on, in order, a page of each stream at a time.
    void show_since(detail::entry_id since) {
        for (auto &key : keys())
            readers_.push_back({key, detail::predecessor(since), {}, false});
        for (;;) {
            reader *first = nullptr;
            for (auto &one : readers_) {
                if (one.ahead.empty() && !one.at_end)
                    fetch(one);
                if (!one.ahead.empty() && (first == nullptr || earlier(one.ahead.front(), first->ahead.front())))
                    first = &one;
            }
            if (first == nullptr)
                return;
            show(first->ahead.front());
            first->ahead.pop_front();
        }
    }

    void fetch(reader &one) {
        constexpr std::size_t page = 100;
        // 0-0 is the ID of no entry, so this misses nothing where `last` is the predecessor of the first
        auto reply =
            redis_.command({"XRANGE", one.key, "(" + detail::to_string(one.last), "+", "COUNT", std::to_string(page)});
        for (auto &next : read_entries(one.key, *reply)) {
            one.last = next.id;
            one.ahead.push_back(std::move(next));
        }
        one.at_end = one.ahead.size() < page;
    }

    void follow() {
        using clock = std::chrono::steady_clock;
        constexpr auto between_looks = std::chrono::seconds(1);
        for (auto looked = clock::now();;) {
            if (wanted_.topics.empty() && clock::now() - looked >= between_looks) {
                add_new();
                looked = clock::now();
            }
            if (readers_.empty())
                poll(nullptr, 0, 200); // until the first stream appears
            else
                read_next();
        }
    }

    void add_new() {
        for (auto &key : keys())
            if (std::none_of(readers_.begin(), readers_.end(), [&](const reader &one) { return one.key == key; }))
                readers_.push_back({std::move(key), {}, {}, false});
    }

    void read_next() {
        redis::words words{"XREAD", "COUNT", "100", "BLOCK", "1000", "STREAMS"};
        std::vector<std::string> ids;
        for (const auto &one : readers_) {
            words.push_back(one.key);
            ids.push_back(detail::to_string(one.last));
        }
        words.insert(words.end(), ids.begin(), ids.end());
        auto reply = redis_.command(words);
        std::vector<detail::raw_stream> streams;
        if (!detail::interpret_read(*reply, streams))
            throw reply_error("the reply to XREAD is not that of Redis");
        std::vector<entry> entries;
        for (const auto &stream : streams)
            for (const auto &raw : stream.entries)
                entries.push_back(read_entry(std::string(stream.key), raw));
        std::stable_sort(entries.begin(), entries.end(), earlier);
        for (const auto &one : entries) {
            show(one);
            for (auto &reader : readers_)
                if (reader.key == one.key)
                    reader.last = std::max(reader.last, one.id);
        }
    }

    void show(const entry &one) {
        auto topic = topic_of(one.key);
        if (context_.common().json) {
            json line = {{"position", detail::to_string(one.id)}, {"stream", one.key}, {"topic", topic}};
            line.update(one.fields);
            write(line_of(line));
            return;
        }
        auto field = [&](const char *name) {
            auto found = one.fields.find(name);
            return found != one.fields.end() && *found != "" ? plain(*found) : std::string("-");
        };
        bool colours = shows_colours(stdout);
        std::size_t left = is_terminal(stdout) ? terminal_size().columns : std::string::npos;
        std::string line;
        auto add = [&](const std::string &text, colour is) {
            auto part = cut(line.empty() ? text : "  " + text, left);
            if (left != std::string::npos)
                left -= width(part);
            line += in(is, part, colours);
        };
        add(time_of(static_cast<std::int64_t>(std::min<std::uint64_t>(one.id.ms, INT64_MAX / 2))), colour::dim);
        add(detail::to_string(one.id), colour::none);
        add(topic, colour::none);
        add(field("event_type"), colour::bold);
        add(field("aggregate_id"), colour::none);
        add(field("event_id"), colour::dim);
        add(field("payload"), colour::none);
        write(line + "\n");
    }

    context &context_;
    redis &redis_;
    const request &wanted_;
    std::vector<reader> readers_;
};

} // namespace

void add_tail(CLI::App &app, options &common, action &chosen) {
    CLI::App *command = add_command(app, "tail", "Follow the streams, like tail -f",
                                    "outboxctl tail\n"
                                    "outboxctl tail wallet --count 0\n"
                                    "outboxctl tail --since 10m --no-follow --json | jq -r .event_type | sort | uniq -c\n"
                                    "outboxctl tail --since 1795273184059-0",
                                    common);
    auto wanted = std::make_shared<request>();
    command->add_option("topic", wanted->topics, "only the streams of these topics, also if they do not exist yet")
        ->type_name("TOPIC");
    command->add_option("-n,--count", wanted->count, "begin with the last N entries (of those since --since); default: 10")
        ->type_name("N")
        ->check(CLI::Range(0, 1'000'000));
    command->add_option("--since", wanted->since, "begin there: 10m, 2h, 3d, 2026-11-21T08:55:15Z, or a position")
        ->type_name("TIME");
    command->add_flag("--no-follow", wanted->ends, "end with the last entry that is there");
    command->callback([&chosen, wanted, command] {
        wanted->counted = command->count("--count") > 0;
        chosen = [wanted](context &context) {
            for (const auto &topic : wanted->topics)
                require_topic(topic);
            return tail(context, *wanted).run();
        };
    });
}

} // namespace outbox::ctl

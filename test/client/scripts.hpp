// A Redis for the scripts that the client runs there, with the keys of a topic, and each script as a function.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "servers.hpp"
#include "src/keys.hpp"
#include "src/scripts.hpp"

namespace outbox::test {

using detail::script;
using strings = std::vector<std::string>;

// [0, [5-1, nil]]; an error as "(error) WRONGTYPE …".
inline std::string show(const redisReply &reply) {
    switch (reply.type) {
    case REDIS_REPLY_INTEGER: return std::to_string(reply.integer);
    case REDIS_REPLY_NIL: return "nil";
    case REDIS_REPLY_ERROR: return "(error) " + std::string(reply.str, reply.len);
    case REDIS_REPLY_ARRAY: {
        std::string result = "[";
        for (std::size_t i = 0; i < reply.elements; ++i)
            result += (i > 0 ? ", " : "") + show(*reply.element[i]);
        return result + "]";
    }
    default: return {reply.str, reply.len};
    }
}

class scripts : public testing::Test {
  protected:
    static void SetUpTestSuite() { server_ = std::make_unique<redis_server>(); }
    static void TearDownTestSuite() { server_.reset(); }

    void SetUp() override {
        command("FLUSHALL");
        command("CONFIG", "SET", "maxmemory", "0");
        command("XGROUP", "CREATE", keys.stream, "billing", "0", "MKSTREAM");
        command("XGROUP", "CREATE", keys.redrive, "billing", "0", "MKSTREAM");
    }
    void TearDown() override { command("CONFIG", "SET", "maxmemory", "0"); }

    template <typename... Words> static std::string command(const Words &...words) {
        return show(*server_->command(words...));
    }

    static std::string eval(const script &script, const strings &keys, const strings &arguments) {
        strings words{"EVAL", script.text, std::to_string(keys.size())};
        words.insert(words.end(), keys.begin(), keys.end());
        words.insert(words.end(), arguments.begin(), arguments.end());
        return show(*server_->command(words));
    }

    // An event in the topic's stream, or another; its ID.
    std::string emit(const std::string &event_id, const std::string &aggregate_id = "a", std::string stream = "") {
        return command("XADD", stream.empty() ? keys.stream : stream, "*", "event_id", event_id, "event_type",
                       "wallet.created", "aggregate_type", "wallet", "aggregate_id", aggregate_id, "version", "1",
                       "occurred_at", "", "headers", "{}", "payload", "{}");
    }

    // A consumer reads everything that is new; how much that was.
    std::size_t read(const std::string &consumer = "me", std::string stream = "", int count = 1000) {
        if (stream.empty())
            stream = keys.stream;
        auto reply = server_->command("XREADGROUP", "GROUP", "billing", consumer, "COUNT", count, "STREAMS", stream, ">");
        return reply->type == REDIS_REPLY_ARRAY ? reply->element[0]->element[1]->elements : 0;
    }

    // An entry that this consumer has.
    std::string delivered(const std::string &event_id, const std::string &aggregate_id = "a",
                          const std::string &consumer = "me") {
        auto id = emit(event_id, aggregate_id);
        read(consumer);
        return id;
    }

    std::string attempts_of(const std::string &stream) const {
        return detail::topic_keys::attempts(stream, "billing");
    }
    strings begin_keys(const std::string &stream) const {
        return {stream, attempts_of(stream), keys.parked, keys.stream, keys.redrive, keys.dead};
    }

    struct beginning {
        std::string consumer = "me";
        std::string prefix = "outbox:{wallet}:event:billing:";
        bool park = false, check = false;
        std::string stream = "";
        std::string ttl = "60000";
    };
    // Of entries {id, event id, attempt, aggregate key}, one after the other.
    std::string begin(const strings &entries, beginning how) const {
        strings arguments{"billing", how.consumer, how.prefix, how.ttl, how.park ? "1" : "0", how.check ? "1" : "0"};
        arguments.insert(arguments.end(), entries.begin(), entries.end());
        return eval(detail::begin, begin_keys(how.stream.empty() ? keys.stream : how.stream), arguments);
    }
    std::string begin(const strings &entries) const { return begin(entries, beginning()); }
    static beginning parking(std::string consumer = "me") {
        beginning how;
        how.consumer = std::move(consumer);
        how.park = true;
        return how;
    }
    beginning draining(std::string consumer = "me") const {
        auto how = parking(std::move(consumer));
        how.stream = keys.redrive;
        return how;
    }

    std::string finish(const strings &entries, bool fenced = false, const std::string &consumer = "me",
                       std::string stream = "") const {
        bool drop = stream == keys.redrive;
        if (stream.empty())
            stream = keys.stream;
        strings arguments{"billing", consumer, keys.event, "60000", drop ? "1" : "0", fenced ? "1" : "0"};
        arguments.insert(arguments.end(), entries.begin(), entries.end());
        return eval(detail::finish, {stream, attempts_of(stream)}, arguments);
    }

    struct burial {
        std::string consumer = "me";
        std::string aggregate = "6:walleta";
        bool park = false;
        std::string stream = "";
        std::string key = "";
        std::string error = "no such wallet";
    };
    std::string bury(const std::string &id, burial how) const {
        auto stream = how.stream.empty() ? keys.stream : how.stream;
        return eval(detail::bury, {stream, attempts_of(stream), keys.dead, keys.parked, keys.redrive},
                    {"billing", how.consumer, id, how.error, "3", how.aggregate, how.park ? "1" : "0", how.key});
    }
    std::string bury(const std::string &id) const { return bury(id, burial()); }
    std::string bury_and_park(const std::string &id, std::string stream = "") const {
        burial how;
        how.park = true;
        how.stream = std::move(stream);
        return bury(id, how);
    }

    std::string take_over(const std::string &consumer, const std::string &min_idle = "0", int count = 100,
                          const std::string &after = "-", bool mine = false, std::string stream = "") const {
        if (stream.empty())
            stream = keys.stream;
        return eval(detail::take_over, {stream, attempts_of(stream), keys.dead},
                    {"billing", consumer, min_idle, std::to_string(count), after, mine ? "1" : "0"});
    }
    std::string redrive(const std::string &id) const {
        return eval(detail::redrive, {keys.dead, keys.redrive, keys.parked}, {id});
    }
    std::string discard(const std::string &id) const {
        return eval(detail::discard, {keys.dead, keys.redrive, keys.parked}, {id});
    }

    // IDs that are pending, of one consumer or of all.
    strings pending(const std::string &consumer = "", std::string stream = "") const {
        if (stream.empty())
            stream = keys.stream;
        strings words{"XPENDING", stream, "billing", "-", "+", "1000"};
        if (!consumer.empty())
            words.push_back(consumer);
        auto reply = server_->command(words);
        strings result;
        for (std::size_t i = 0; i < reply->elements; ++i)
            result.emplace_back(reply->element[i]->element[0]->str);
        return result;
    }
    long long idle(const std::string &id, std::string stream = "") const {
        if (stream.empty())
            stream = keys.stream;
        return server_->command("XPENDING", stream, "billing", id, id, 1)->element[0]->element[2]->integer;
    }
    // Since the consumer was heard of, in ms.
    long long consumer_idle(const std::string &name) const {
        auto rows = server_->command("XINFO", "CONSUMERS", keys.stream, "billing");
        for (std::size_t i = 0; i < rows->elements; ++i)
            if (const redisReply &row = *rows->element[i]; show(*row.element[1]) == name)
                return row.element[5]->integer;
        return -1;
    }
    long long deliveries(const std::string &id) const {
        return server_->command("XPENDING", keys.stream, "billing", id, id, 1)->element[0]->element[3]->integer;
    }

    // The event ids in a stream, in order.
    strings events(const std::string &stream) const {
        auto reply = server_->command("XRANGE", stream, "-", "+");
        strings result;
        for (std::size_t i = 0; i < reply->elements; ++i) {
            const auto &fields = *reply->element[i]->element[1];
            for (std::size_t f = 0; f + 1 < fields.elements; f += 2)
                if (show(*fields.element[f]) == "event_id")
                    result.push_back(show(*fields.element[f + 1]));
        }
        return result;
    }
    strings ids(const std::string &stream) const {
        auto reply = server_->command("XRANGE", stream, "-", "+");
        strings result;
        for (std::size_t i = 0; i < reply->elements; ++i)
            result.emplace_back(reply->element[i]->element[0]->str);
        return result;
    }
    std::string field(const std::string &stream, const std::string &id, const std::string &name) const {
        auto reply = server_->command("XRANGE", stream, id, id);
        if (reply->elements == 0)
            return "no entry";
        const auto &fields = *reply->element[0]->element[1];
        for (std::size_t f = 0; f + 1 < fields.elements; f += 2)
            if (show(*fields.element[f]) == name)
                return show(*fields.element[f + 1]);
        return "no field";
    }

    // No memory for commands that need some.
    static void run_out_of_memory() { command("CONFIG", "SET", "maxmemory", "1"); }

    static inline std::unique_ptr<redis_server> server_;
    const detail::topic_keys keys{"wallet", "billing"};
    const std::string a = "6:walleta";
};

} // namespace outbox::test

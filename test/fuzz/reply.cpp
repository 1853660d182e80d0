// What Redis may answer: trees of every shape, made here and not by hiredis, and every error text.
#include "bgworker/entry.hpp"
#include "bgworker/reply.hpp"

#include "test/fuzz/fuzz.hpp"

#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace {

class forest {
  public:
    forest(const std::uint8_t *data, std::size_t size) : at_(data), end_(data + size) {}

    redisReply *tree(int depth) {
        static const int types[] = {REDIS_REPLY_STRING, REDIS_REPLY_ARRAY,   REDIS_REPLY_STRING, REDIS_REPLY_ARRAY,
                                    REDIS_REPLY_STATUS, REDIS_REPLY_INTEGER, REDIS_REPLY_NIL,    REDIS_REPLY_ERROR};
        redisReply *reply = &replies_.emplace_back();
        *reply = {};
        reply->type = types[byte() % 8];
        if (reply->type == REDIS_REPLY_ARRAY && depth == 0)
            reply->type = REDIS_REPLY_NIL;
        if (reply->type == REDIS_REPLY_ARRAY) {
            std::vector<redisReply *> children(byte() % 8);
            for (auto &child : children)
                child = tree(depth - 1);
            reply->elements = children.size();
            arrays_.push_back(std::move(children));
            // as hiredis does for an empty array
            reply->element = reply->elements ? arrays_.back().data() : nullptr;
        } else if (reply->type == REDIS_REPLY_INTEGER) {
            reply->integer = static_cast<long long>(byte()) - 1;
        } else if (reply->type != REDIS_REPLY_NIL) {
            texts_.push_back(text());
            reply->str = texts_.back().data();
            reply->len = static_cast<decltype(reply->len)>(texts_.back().size());
        }
        return reply;
    }

  private:
    std::uint8_t byte() { return at_ == end_ ? 0 : *at_++; }

    std::string text() {
        static const char *const known[] = {"last-generated-id", "max-deleted-entry-id", "entries-added", "first-entry", "event_id",
                                            "1790000000000-3", "0-1", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f", "no such key", "5-x"};
        std::size_t choice = byte() % 16;
        if (choice < std::size(known))
            return known[choice];
        std::string result;
        for (std::size_t length = byte() % 40; result.size() < length && at_ != end_;)
            result += static_cast<char>(byte());
        return result;
    }

    const std::uint8_t *at_, *end_;
    // a deque never moves what is in it
    std::deque<redisReply> replies_;
    std::deque<std::vector<redisReply *>> arrays_;
    std::deque<std::string> texts_;
};

bool is_text(const redisReply &reply) { return reply.type == REDIS_REPLY_STRING || reply.type == REDIS_REPLY_STATUS; }

void look(const redisReply &reply) {
    auto info = outbox::read_stream_info(reply);
    EXPECT(info.exists == (reply.type == REDIS_REPLY_ARRAY));
    EXPECT(info.is_stream || reply.type == REDIS_REPLY_ERROR);
    EXPECT(info.last.ms >= 0 && info.last.n >= -1 && info.first.ms >= 0 && info.deleted.ms >= 0);

    unsigned char id[16];
    char text[36];
    bool pair = reply.type == REDIS_REPLY_ARRAY && reply.elements == 2;
    if (outbox::read_event_id(reply, id)) {
        EXPECT(pair && reply.element[1]->type == REDIS_REPLY_ARRAY && reply.element[1]->elements >= 2);
        EXPECT(std::strcmp(reply.element[1]->element[0]->str, "event_id") == 0);
        unsigned char again[16];
        outbox::print_uuid(id, text);
        EXPECT(outbox::parse_uuid(std::string_view(text, sizeof text), again) && std::memcmp(id, again, 16) == 0);
    }
    outbox::position at;
    if (outbox::read_entry_id(reply, at))
        EXPECT(pair && is_text(*reply.element[0]) && at.ms >= 0 && at.n >= 0);

    for (std::size_t i = 0; i < reply.elements; ++i)
        look(*reply.element[i]);
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    look(*forest(data, size).tree(4));

    // An error is never taken for success; what is refused in the queue is never blamed on an ID.
    std::string_view error = text_of(data, size);
    auto queued = outbox::blame_for(error, true), run = outbox::blame_for(error, false);
    EXPECT(queued != outbox::blame::rejected);
    EXPECT(run != outbox::blame::rejected || error.find("equal or smaller") != std::string_view::npos);
    EXPECT(queued != outbox::blame::stream || error.starts_with("NOPERM"));
    EXPECT(*outbox::hint_for(error) != '\0');
    return 0;
}

#include "common/sentinel.hpp"

#include <string_view>

namespace outbox {

static std::string_view text(const redisReply &reply) {
    return reply.str ? std::string_view(reply.str, static_cast<std::size_t>(reply.len)) : std::string_view();
}

static bool is_text(const redisReply &reply) { return reply.type == REDIS_REPLY_STRING || reply.type == REDIS_REPLY_STATUS; }

bool read_master_address(const redisReply &reply, redis_url::server &server, std::string &why) {
    if (reply.type == REDIS_REPLY_ERROR) {
        why = text(reply);
        return false;
    }
    if (reply.type == REDIS_REPLY_NIL) {
        why = "it knows no master of this name";
        return false;
    }
    if (reply.type == REDIS_REPLY_ARRAY && reply.elements == 2 && is_text(*reply.element[0]) && is_text(*reply.element[1]) &&
        parse_server_address(text(*reply.element[0]), text(*reply.element[1]), server))
        return true;
    why = "its answer is no address";
    return false;
}

bool is_master(const redisReply &reply, std::string &why) {
    if (reply.type == REDIS_REPLY_ERROR) {
        why = text(reply);
        return false;
    }
    if (reply.type == REDIS_REPLY_ARRAY && reply.elements > 0 && is_text(*reply.element[0]) && text(*reply.element[0]) == "master")
        return true;
    why = "the server that the sentinel named is no master";
    return false;
}

} // namespace outbox

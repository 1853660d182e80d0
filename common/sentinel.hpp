// What a Sentinel answers when it is asked for a master, and what a server says about itself: pure.
#pragma once

#include "common/url.hpp"

#include <string>

#include <hiredis/hiredis.h>

namespace outbox {

// The reply to SENTINEL GET-MASTER-ADDR-BY-NAME. False, with the reason, where it names no server.
bool read_master_address(const redisReply &reply, redis_url::server &server, std::string &why);

// The reply to ROLE. False, with the reason, unless it is a master's: a Sentinel may not know yet what has become of it.
bool is_master(const redisReply &reply, std::string &why);

} // namespace outbox

// What a process of outbox waits for, as pg_stat_activity.wait_event shows it. Names of its own an extension has since PostgreSQL 17;
// before, all of them are "Extension".
#pragma once

#include "extension/pg.hpp"

namespace outbox {

enum class waiting_for { launcher, work, retry, linger, redis_connect, redis_reply, confirmation, flush };

uint32 wait_event(waiting_for what);

} // namespace outbox

// PostgreSQL counts from 2000, the rest of the world from 1970.
#pragma once

#include <time.h>

#include "extension/pg.hpp"

namespace outbox {

inline int64 unix_us(TimestampTz time) {
    return time + INT64CONST(1000000) * (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
}

inline int64 unix_ms(TimestampTz time) { return unix_us(time) / 1000; }

// For intervals within a process, in microseconds as a TimestampTz: it is never set, as the clock on the wall may be.
inline TimestampTz steady_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<TimestampTz>(now.tv_sec) * USECS_PER_SEC + now.tv_nsec / 1000;
}

} // namespace outbox

// What a consumer has done so far, and what it holds now.
#pragma once

#include <cstdint>

namespace outbox {

/// A snapshot: counts since the consumer was made, and gauges of this moment. Taken without stopping anything, so the
/// numbers may be an event apart from one another.
struct consumer_stats {
    // counts
    std::uint64_t read = 0;          ///< entries that came from Redis, also again
    std::uint64_t handled = 0;       ///< handlers that finished well
    std::uint64_t failed = 0;        ///< attempts that failed
    std::uint64_t retried = 0;       ///< attempts after the first
    std::uint64_t dead_lettered = 0; ///< moved to the dead letters
    std::uint64_t parked = 0;        ///< set aside behind a dead letter of their aggregate
    std::uint64_t duplicates = 0;    ///< events found done, in Redis or in the inbox, and not handled again
    std::uint64_t unhandled = 0;     ///< events that no handler is for
    std::uint64_t acknowledged = 0;  ///< entries that are no longer pending
    std::uint64_t claimed = 0;       ///< entries taken over from other consumers
    std::uint64_t lost_leases = 0;   ///< entries that others took over from this one
    std::uint64_t trimmed = 0;       ///< entries that were trimmed away before they were handled
    std::uint64_t reconnects = 0;    ///< connections made anew
    std::uint64_t groups_created = 0; ///< groups made, at the start or again

    // gauges
    std::uint64_t held = 0;          ///< entries in this process that are not finished
    std::uint64_t held_bytes = 0;    ///< the memory of the replies they are in
    std::uint64_t running = 0;       ///< handlers that run, or have not completed
    std::uint64_t waiting_retry = 0; ///< entries that wait for their next attempt
    bool connected = false;
};

} // namespace outbox

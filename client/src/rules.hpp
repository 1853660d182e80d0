// What is decided alike on Redis and in memory: which topics a consumer reads, what an entry that comes in is, and what
// becomes of it when its handler is through.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <outbox/consumer.hpp>

#include "src/counters.hpp"
#include "src/delivery.hpp"
#include "src/handlers.hpp"

namespace outbox::detail {

// The topics: as the options say, or those of the patterns. Sorted, each once.
// Throws std::invalid_argument if no handler is registered, or no topic can be told.
std::vector<std::string> topics_of(const consumer_options &options, const handlers &handlers);

// Finds the handler of an entry that came in; one.reason already says why it is no event, if it is none. False if nobody is
// to handle it, and it is to be settled as it is. If there is a reason afterwards it is a dead letter.
bool prepare(delivery &one, const consumer_options &options, const handlers &handlers, counters &counters);

// What becomes of a delivery that its handler is through with.
struct verdict {
    enum class kind { settle, retry, die } is;
    std::chrono::milliseconds delay{}; // of retry
};

// Counts the attempt, which was one: one.end is neither `stale` nor `unavailable`. One that is to die has its reason then.
// `random` in [0, 1) is where in the jitter the next attempt falls.
verdict judge(delivery &one, const consumer_options &options, counters &counters, double random);

// It is among the dead letters now.
void note_burial(const delivery &one, std::string_view stream_key, const consumer_options &options, counters &counters);

} // namespace outbox::detail

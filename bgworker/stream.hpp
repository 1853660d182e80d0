// What the worker knows of one stream of its sink.
#pragma once

#include "bgworker/position.hpp"
#include "extension/event_type.hpp"
#include "extension/pg.hpp"

namespace outbox {

struct stream_state {
    char topic[max_topic_length + 1]; // the key of the table, zero-padded

    position tail;        // the last entry that was confirmed to us; Redis may have lost it since
    int64 appended;       // entries that we have appended, as Redis should count them
    bool dirty;           // the two above are newer than what is stored
    position top;         // the last entry ID of the stream, ours or not, as Redis said; not stored
    int64 added;          // the entries that it has counted, or -1; not stored
    bool whole;           // nothing was ever taken out of it
    position first, deleted; // its first entry, and the highest that was deleted
    bool exists;          // seen since the last reconciliation: XADD goes with NOMKSTREAM
    position floor;       // events up to here are not sent again (reconciliation found them settled)
    bool lost;            // Redis lost entries of it: an entry that is not there was not trimmed, it is missing

    // A stream that refuses entries is held from its first failed event on, so that nothing overtakes it.
    bool held;
    position held_from;
    bool in_doubt;        // an attempt's replies may have been lost
    position doubt_upto;  // while it is held: earlier tries of events up to here may have gone through
    int64 released;       // the number of repairs that the last release went with
    position unconfirmed_from; // it was held from here on, and what was released since is not confirmed yet; ms 0: nothing is
    position tried; // the last event of the attempts counted here
    int attempts;
    TimestampTz retry_at;
    TimestampTz failed_at;
    char error[256];

    std::string_view name() const { return topic; }
};

} // namespace outbox

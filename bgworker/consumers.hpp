// The consumer groups of all streams, as the workers saw them last: a table of a fixed size in shared memory. It may be lost at any
// time; the workers fill it again within seconds.
#pragma once

#include "extension/event_type.hpp"
#include "extension/pg.hpp"

namespace outbox::consumers {

struct group {
    // the key, zero-padded
    Oid database;
    int sink_id;
    uint64 name_hash; // of the whole name
    char topic[104];

    char name[128]; // cut off where it is longer
    int64 lag;      // -1: not known
    int64 pending;
    int64 oldest_pending_ms; // of its position; -1: none
    int64 consumers;
    int64 dead_letters;
    TimestampTz refreshed_at;
    uint32 pass; // of its worker, that it was seen in last
};
static_assert(sizeof(group::topic) > max_topic_length);

void request(); // at load time: reserve the memory

// With the names filled in, the key and the numbers are kept. Groups that there is no room for are left out.
void set_key(group &target, int sink_id, std::string_view topic, std::string_view name);
void keep(const group &seen);

// All groups of a sink, or those that were not seen in this pass.
void forget(Oid database, int sink_id);
void forget_others(int sink_id, uint32 pass);

// Those of this database, in the current memory context.
group *all(int &count);

} // namespace outbox::consumers

// What is remembered durably of a sink, apart from events and ticks. Everything here is rare: nothing is written per event.
// All functions run in a transaction of the caller.
#pragma once

#include <initializer_list>
#include <utility>

#include "bgworker/batch.hpp"
#include "bgworker/confirm_level.hpp"
#include "bgworker/naming.hpp"
#include "bgworker/position.hpp"
#include "bgworker/stream.hpp"
#include "extension/pg.hpp"

namespace outbox::state {

struct sink_row {
    char name[NAMEDATALEN];
    char uuid[40];
    char url[512];    // empty: outbox.redis_url
    char stream[128] = "outbox:{%t}"; // %t is the topic
    int32 anchor;
    bool paused;
    bool take_over;
    bool used;      // it may have sent something
    position start; // the first that belongs to it
    enum trim_mode { off, consumed, limits } trimming;
    int64 max_length; // entries; 0: no limit
    int64 max_age;    // ms; 0: no limit
    confirm_level confirm;

    // Points into the row.
    stream_naming naming() const {
        std::string_view whole = stream;
        auto at = std::min(whole.find("%t"), whole.size());
        return {whole.substr(0, at), whole.substr(std::min(at + 2, whole.size()))};
    }
    // Where its cursor is before anything was sent; an event there is none of its own.
    position before_start() const {
        return start.n > 0 ? position{start.ms, start.n - 1} : start.ms > 0 ? position{start.ms - 1, 0} : position{};
    }
};

// The position of some events of a batch was somebody else's: n to upto_n of the topic are at to_ms instead.
struct move {
    char topic[max_topic_length + 1];
    int64 n, upto_n, to_ms;
};

bool load_sink(int sink_id, sink_row &row);
void keep_default_sink();
// Of our anchor's newest tick in a partition; in the current memory context. Null when there is none.
const stored_snapshot *last_snapshot_in(int sink_id, int partition);
void load_sizes(int64 *bytes); // of each partition of events with that of its ticks
TimestampTz generation_start(int64 generation); // when the ring moved on to it; 0 when it has not
void keep_ring(); // it begins to turn with the first worker
bool has_native_events(); // or delayed ones
void clear_take_over(int sink_id);
void set_used(int sink_id);

// Every sink, with what it has confirmed durably and where the first of its held streams is held.
struct sink_progress {
    int id;
    char name[NAMEDATALEN];
    position confirmed;
    int64 start_ms;
    TimestampTz confirmed_at; // when that was written down; 0: it never was
    int64 held_ms;            // PG_INT64_MAX: none
    char held_topic[max_topic_length + 1];
    TimestampTz held_since;
};
sink_progress *load_progress(int &count); // in the current memory context

void add_incarnation(int sink_id, const char *incarnation);
bool knows_incarnation(int sink_id, std::string_view incarnation);

position load_checkpoint(int sink_id);
void save_checkpoint(int sink_id, position cursor);
int64 highest_ms(int sink_id); // of all ticks and moves

using stream_callback = void (*)(void *to, const stream_state &loaded);
void load_streams(int sink_id, stream_callback add, void *to);
void save_stream(int sink_id, const stream_state &stream);

// An event as it is known for good: its id alone may be used again.
struct event_key {
    pg_uuid_t id;
    int64 seq;
};

using key_callback = void (*)(void *to, const event_key &key);
void load_settled(int sink_id, key_callback add, void *to);

bool has_moves(int sink_id);
// Those of one batch, oldest first, at most `limit`; in the current memory context.
move *load_moves(int sink_id, int64 ms, int &count);
void add_move(int sink_id, int64 ms, const move &added);

void add_placed(int sink_id, const event_key &key, std::string_view topic, position where);

// Forgets the places above a position in a stream that has lost its entries, and tells whose they were.
void take_placed(int sink_id, std::string_view topic, position above, key_callback add, void *to);

// The sink's dead letters, and one that somebody else has redriven: it is placed, and no dead letter any more.
void load_letters(int sink_id, key_callback add, void *to);
void place_letter(int sink_id, const event_key &key, std::string_view topic, position where);
void add_dead_letter(int sink_id, const event_row &event, position where, const stream_state &stream);

// Event ids and topics that the snapshot does not see; the worker asks when Redis is ahead of this database.
using candidate_callback = void (*)(void *to, const event_key &key, std::string_view event_type, std::string_view topic);
void load_unpublished(int sink_id, const stored_snapshot *published, candidate_callback add, void *to);

// Anchors other than ours that have events, and the end of their transactions.
using anchor_callback = void (*)(void *to, int32 anchor, FullTransactionId last);
void load_foreign_anchors(anchor_callback add, void *to);

// -- for outbox.verify()

// By name; false where there is none. The default sink is there before it has a row: its uuid is empty then.
bool find_sink(const char *name, int &sink_id, sink_row &row);
position confirmed(int sink_id); // by the worker's own word, or as it was written down last
int64 count_ticks(int sink_id, int64 from_ms, int64 upto_ms);
int64 last_tick_in(int sink_id, int partition); // its ms; 0 where there is none
int64 first_tick_of(int sink_id, int32 anchor); // the same

using topic_callback = void (*)(void *to, std::string_view topic);
void load_topics(int sink_id, topic_callback add, void *to);

// Where events of batches up to `last` were moved to, above `after` and up to `upto`, in order; `ms` is their batch. At
// most `limit`.
using moved_callback = void (*)(void *to, int64 to_ms, int64 ms);
void load_moved(int sink_id, int64 last, int64 after, int64 upto, int limit, moved_callback add, void *to);

// Events that another server appended, by position.
using placed_callback = void (*)(void *to, std::string_view topic, position at, const pg_uuid_t &id);
int64 last_placed(int sink_id); // the highest ms; 0 where there is none
void load_placed(int sink_id, int64 after_ms, int64 upto_ms, placed_callback add, void *to);

// Where the retained events with these ids should be. Null position: not in a batch yet.
struct event_place {
    pg_uuid_t id;
    char topic[max_topic_length + 1];
    char at[position_text_size + 1];
    bool dead;
};
using place_callback = void (*)(void *to, const event_place &place);
void load_places(int sink_id, const pg_uuid_t *ids, int count, place_callback add, void *to);

// Runs a statement; returns how many rows it touched. Raises an error when it fails.
uint64 execute(const char *statement, std::initializer_list<std::pair<Oid, Datum>> arguments = {});

} // namespace outbox::state

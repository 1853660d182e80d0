// The shared memory: one slot for each worker, what the launcher is asked to do, and nothing else. Everything in it may be
// lost with the server; nothing that a promise rests on is kept here.
#pragma once

#include "extension/pg.hpp"

namespace outbox::shared {

enum class worker_state : int {
    idle, connecting, streaming, healing, unconfirmed, backing_off, fenced, paused, restored, disabled, wrong_version
};
const char *name_of(worker_state state);

// Does Redis remove keys without a time to live, such as streams, when it is full?
enum class eviction : int { unknown, no, yes };

// What a worker says of itself. Written by that worker only, under the lock.
struct worker_stats {
    worker_state state;
    TimestampTz since;        // of this state
    int64 cursor_ms;          // last position known to be settled, and
    int64 cursor_n;
    int64 tick_ms;            // the batch being sent
    int64 passed_ms;          // batches up to here are done as a whole
    TimestampTz confirmed_at; // when the cursor moved last
    int64 published;
    int64 batches;
    int64 errors;
    int64 duplicates_rejected;
    int64 healed;
    bool heals;        // what Redis had lost is not all there again
    int64 trimmed;     // entries
    eviction evicts;
    double throughput; // events a second
    TimestampTz last_error_at;
    char last_error[256];
    // What the look at the ring came to that this worker took last.
    TimestampTz looked_at;
    char held_back_by[400]; // why a partition that was due could not be dropped
    int64 held_back_generation;
    TimestampTz held_back_since; // by that
};

struct slot {
    Oid database; // invalid where the slot is free
    int sink_id;
    int pid; // 0 while no process serves it
    Latch *latch;
    pg_atomic_uint32 woken; // a commit has set the latch since the worker began to listen, or it does not listen
    bool reload;            // look at the sink's row again
    bool served;            // this worker has got as far as Redis, so the next one need not wait long to start
    pg_atomic_uint64 next_due; // when the next delayed event is due, as far as is known: until then the worker may sleep
    pg_atomic_uint64 flush_requested;
    pg_atomic_uint64 flush_done;
    worker_stats stats;
};

// One run of outbox.verify(). Written by its worker under the lock, up to its last message; `over` is its caller's.
struct verification {
    Oid database; // invalid where it is free
    int pid;      // of the worker
    int caller;   // of the backend that waits for it
    bool over;    // the caller has its answer, and the worker is about to exit
    int sink_id;
    TimestampTz started_at;
    int64 ticks_total;
    int64 ticks;
    int64 upto_ms; // checked up to here
    int64 events;
    int64 entries;
    int64 findings;
};

void request(); // at load time: reserve the memory

// From the commit callback; none of them can fail.
void wake_workers(Oid database);
void request_reload(Oid database);
void expect_due(Oid database, TimestampTz due); // a delayed event has been committed
void request_look(); // there may be a new database

// Can an event emitted now count on a worker?
enum class outlook { good, not_loaded, no_process, no_slot };
outlook worker_outlook(Oid database);

// For the worker: take the slot as this process's own until it exits. Null when it is not for us.
slot *attach(int index, Oid database, int sink_id);
// The sink or the extension is gone: nobody shall start a worker for it again.
void release(slot *own);
void publish(slot *own, const worker_stats &stats);
// Shall the next commit set the latch? To be said before looking for events. While the worker does not listen, no commit pays for
// waking it.
void listen(slot *own, bool wanted);
// When is the next delayed event due? The worker says that it does not know of any before it looks for them.
TimestampTz next_due(slot *own);
void expect_no_due(slot *own);
void expect_due(slot *own, TimestampTz due); // unless it is expected earlier already
// Was the worker asked to read its sink's row again since the last call?
bool take_reload(slot *own);

// A copy of slot `index`, false where it is free.
bool read(int index, slot &copy);
slot *at(int index);
int slot_count();

// For the worker of outbox.verify(): a place of its own until it exits. Null when all are taken, or a command needs the
// database to itself.
verification *attach_verification(Oid database, int caller);
void publish(verification *own, const verification &progress);
void end_verification(); // by the caller: it is done
// A copy of place `index`; false where it is free or over.
bool read(int index, verification &copy);
int verification_count();

// For the worker of outbox.replay(): be the one of this sink until it exits. False where there is another, or a command needs the
// database or the sink to itself.
bool attach_replayer(Oid database, int sink_id);
bool has_replayer(Oid database, int sink_id);

// For the scout: make sure the sink has a slot. False when all are taken.
bool claim(Oid database, int sink_id);

// For the launcher.
void attach_launcher();
bool take_scout_request(Oid &database); // InvalidOid: all of them
bool take_look();
void attach_scout(Oid database);
bool is_blocked(Oid database, int sink_id = 0); // 0: as a whole
void set_trouble(outlook kind, bool present);
void free_slots(Oid database);

// There may be a sink of this database that has no worker yet.
void look_for_sinks(Oid database);

// Ends the worker of a sink, and keeps others away until this backend says restart_workers(), at the end of its transaction.
// False where it does not end.
bool stop_worker(Oid database, int sink_id);
void restart_workers(Oid database);

// Around a DDL command that needs the database to itself: ends its workers and keeps new ones away until unblock().
void block(Oid database);
void unblock(Oid database);

} // namespace outbox::shared

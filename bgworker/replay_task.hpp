// One outbox.replay(), as it is recorded: what was asked for, and how far it is. All functions run in a transaction of the caller.
#pragma once

#include "bgworker/naming.hpp"
#include "bgworker/position.hpp"
#include "extension/pg.hpp"

namespace outbox::replay {

struct task {
    int64 id;
    char uuid[40];
    char into[128]; // template of its streams; empty: those of the sink
    position since, until;
    position at; // all up to here is done
    int64 done;
    int64 total; // -1: not counted yet
    int rate;    // events per second; 0: no limit
    int attempts;
    int topic_count; // -1: all
    std::string_view *topics;

    bool takes(std::string_view topic) const;
};

// The sink's next one, from now on running; what it points to lives in the context. False where there is none.
bool take(int sink_id, MemoryContext context, task &taken);
bool any(int sink_id);

// Each of these is false where it was cancelled. The first keeps it from being cancelled until the transaction ends.
bool lock(const task &own);
bool save(const task &own);
bool end(const task &own, const char *state, const char *error);

// Something went wrong that may be over the next time.
void note_trouble(const task &own, const char *error);
void note_dropped(const task &own, int64 ms);

// The first event of each replay that has not ended is in a batch of this ms, or behind it.
struct need {
    int64 id;
    int sink_id;
    int64 ms;
};
need *needs(int &count); // in the current memory context

} // namespace outbox::replay

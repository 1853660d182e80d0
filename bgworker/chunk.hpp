// A chunk: some events of one batch, appended whole or not at all. MULTI, one XADD for each event, SET of the marker, EXEC; and
// behind it WATCH and GET of the marker for the next chunk, which goes only if nobody else has written it since.
#pragma once

#include "bgworker/batch.hpp"
#include "bgworker/marker.hpp"
#include "bgworker/position.hpp"
#include "bgworker/stream.hpp"
#include "extension/pg.hpp"

#include <string>

namespace outbox {

constexpr int max_chunk_events = 256;
// Events that a chunk may cover, most of which may not need to be sent.
constexpr int max_chunk_span = 1024;
constexpr std::size_t max_chunk_bytes = 512 * 1024; // but always room for one event

struct chunk_entry {
    stream_state *stream;
    position event; // its place in the batch: what the cursor counts
    position at;    // its entry ID
    pg_uuid_t id;
};

struct chunk {
    std::string *commands = nullptr; // these live as long as the process
    std::string *answers = nullptr;  // to the entries, inside EXEC's, when all goes well
    std::string *answer = nullptr;   // to the whole chunk
    chunk_entry entries[max_chunk_events];
    int count = 0;               // entries to be sent
    int events = 0;              // events covered, with those that need not be sent
    position last;               // the last event covered
    batch_reader::place begin;   // before the first
    bool renews_lease = false;
    char marker[marker_text_size] = "";
    position sealed; // the marker's position

    void clear() {
        commands->clear();
        answers->clear();
        count = events = 0;
        renews_lease = false;
    }
    bool full() const { return count == max_chunk_events || commands->size() >= max_chunk_bytes; }
    std::size_t queued() const { return static_cast<std::size_t>(count) + 1; } // replies to MULTI and the entries
    std::size_t replies() const { return queued() + (renews_lease ? 5 : 4); }  // and to SET, perhaps the lease, EXEC, WATCH, GET
};

} // namespace outbox

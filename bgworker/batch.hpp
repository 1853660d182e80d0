// The events of one tick, in order, in bounded memory. A pass over the index collects where the events are (16 bytes each) and
// sorts them by seq; a batch of many millions takes several passes, each with the next events in order. Between two calls of
// next() the transaction may end: no snapshot and no lock is held while anybody waits.
#pragma once

#include "bgworker/tick.hpp"
#include "extension/sinks.hpp"
#include "extension/storage.hpp"

namespace outbox {

// One event as it is stored, in the server encoding. What it points to is good until the next event is read.
struct event_row {
    int64 n; // index among all events of the batch
    int64 seq;
    const pg_uuid_t *event_id;
    std::string_view event_type, topic;
    TimestampTz occurred_at;
    TimestampTz recorded_at; // when it was delivered or appended again; else as occurred_at
    int only_sink; // appended again for this sink alone; 0: an event for all

    // Does the sink take it? `filter`, which may be null, is that of its tick. What is appended again was taken once.
    bool is_for(int sink_id, const sinks::filter *filter) const {
        return only_sink != 0 ? only_sink == sink_id : !filter || filter->takes(event_type, topic);
    }

    // Only after load(): these may have to be fetched and decompressed, into the memory context that is current.
    std::string_view aggregate_type, aggregate_id, headers, payload;
    bool has_aggregate_type, has_aggregate_id, has_headers;
    int32 version;
};

class batch_reader {
  public:
    // A place between two events.
    struct place {
        int64 seq = 0; // of the event before
        int64 n = -1;  // its index
    };

    void init(MemoryContext context);

    // The batch between the snapshots; `previous` may be null. Both are copied. Nothing is read yet.
    void open(const tick &current, const stored_snapshot *previous);
    const tick &current() const { return current_; }

    // Does the batch have an index entry at all? (An entry may belong to a rolled back savepoint.) Inside a transaction.
    bool probe();

    // The next event, false at the end. Inside a transaction, between begin() and end().
    void begin();
    bool next(event_row &row);
    void load(event_row &row); // the rest of the event that next() gave
    std::size_t size() const;  // of that rest, about, without fetching it
    void end();

    place where() const { return place_; }
    void seek(place target);

  private:
    struct item {
        int64 seq;
        BlockNumber block;
        OffsetNumber offset;
        uint16 part;
    };

    bool is_member(FullTransactionId xid) const;
    void collect();
    void collect_range(const storage::partition &part, int number, ScanKeyData *keys, int key_count);
    void add(const item &candidate);
    bool fetch(const item &at, event_row &row);
    const storage::partition &partition(int number);

    MemoryContext context_ = nullptr;
    tick current_;
    const stored_snapshot *previous_ = nullptr;
    stored_snapshot *current_copy_ = nullptr, *previous_copy_ = nullptr;

    item *items_ = nullptr;
    std::size_t count_ = 0, capacity_ = 0, next_ = 0;
    bool collected_ = false;
    bool more_ = false; // events were put off to the next pass: those from limit_ on
    int64 limit_ = 0;
    int64 began_ = 0; // the seq behind which this pass collected
    place place_;

    Oid files_[storage::partitions] = {}; // the table's file when it was collected; VACUUM FULL makes another
    storage::partition open_[storage::partitions];
    TupleTableSlot *slots_[storage::partitions] = {};
    IndexFetchTableData *fetches_[storage::partitions] = {}; // each keeps its last page at hand: the next event is on it, mostly
    TupleTableSlot *slot_ = nullptr; // of the event that next() gave
};

} // namespace outbox

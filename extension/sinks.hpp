// The sinks of this database, and which events each of them takes: read straight from their tables, without a look at the
// caller's privileges, since views and flush() need it for people who may not read these tables.
#pragma once

#include "bgworker/position.hpp"
#include "extension/pg.hpp"
#include "extension/transform.hpp"

namespace outbox::sinks {

constexpr int max_id = 65000; // locks are told apart by 16 bits

// Its id, 0 where there is none. The sink "default" is there before it has a row.
int find(const char *name);

// All of them, "default" first, as an array in the current memory context.
int *all(int &count);

// The first position that belongs to the sink. Ticks before it are there to begin from.
position start_of(int sink_id);

// What a sink takes, as it was said with create_sink() or alter_sink(): each version counts from its tick on, so that a batch
// that is sent again, or compared, has the events that it had the first time.
class filter {
  public:
    bool takes(std::string_view event_type, std::string_view topic) const;
    const transform::function &transform_function() const { return transform_; } // what it takes goes through this

  private:
    friend class filters;
    struct list {
        int count; // -1: no limit
        std::string_view *patterns;
    };
    static list copy(MemoryContext context, Datum array, bool null);
    static bool any(const list &patterns, std::string_view text);

    int64 from_ms_;
    list topics_, event_types_;
    transform::function transform_;
};

class filters {
  public:
    // In a transaction; what is read lives in the context.
    void load(int sink_id, MemoryContext context);

    // Null where the sink takes every event of that tick.
    const filter *at(int64 ms) const;

    // Is there, or was there, a filter that takes it, or none at all?
    bool ever_take(std::string_view event_type, std::string_view topic) const;

  private:
    int count_ = 0;
    filter *versions_ = nullptr; // by from_ms_
};

} // namespace outbox::sinks

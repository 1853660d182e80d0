// Where the entries of a sink should be, by what the database has: ticks and moves in the order of the positions that they gave
// out, a window of them at a time. A window is read as often as it takes, event by event, in bounded memory and short
// transactions.
#pragma once

#include "bgworker/batch.hpp"
#include "bgworker/state.hpp"
#include "extension/sinks.hpp"

namespace outbox {

struct expected_entry {
    position at;
    pg_uuid_t id;
    bool optional;    // may be there or not: not confirmed yet, or held back by its stream
    std::size_t size; // about
    bool failed = false; // optional only because its sink's transform cannot be asked now
};

class expectation {
  public:
    // In a transaction, after what the sink has confirmed was read. Holds and dead letters are recorded before the sink
    // confirms what is behind them, so what is read of them now is enough to know all. Up to `reach` there may be entries of
    // events that are not confirmed.
    void load(int sink_id, position before_start, position confirmed, int64 reach, int64 since_ms, int64 until_ms);

    void release(); // what load() has made

    // Nothing below is judged. Moves on past ticks whose events were dropped.
    position floor() const { return floor_; }
    bool any() const { return any_; } // is there something to check?
    int64 unchecked() const { return unchecked_; }
    // Is all up to there before what is retained, of which the ring has dropped something? In a transaction.
    bool was_dropped_upto(int64 ms) const;

    // The next window. False when there is none. In no transaction.
    bool next_window();
    position upto() const { return upto_; } // its end
    int64 ticks() const { return ticks_; }  // read so far

    // Calls visit(topic, entry) for each entry of the window, in the order of positions but for those of `placed`, which come
    // at the end. In no transaction; visit is called in one.
    template <typename Visitor> void for_each(Visitor visit);

    // A part of it, of about so many events: what is left of the window comes with the next call, after rewind() with the first.
    // `last` is called at the end of the transaction. False at the end of the window; those of `placed` are left out.
    template <typename Visitor, typename Last> bool some(int64 limit, Visitor visit, Last last);
    // Inside of visit(): the event as a whole; and to come back from some() before the next one.
    const event_row &event();
    const sinks::filter *filter() const { return filter_; } // of its tick
    const sinks::filter *filter_at(int64 ms) const { return filters_.at(ms); }
    void stop() { stopped_ = true; }

    // The same in pieces and of one topic, in order of positions throughout: the next entries, in an array that lives until
    // the next call. 0 at the end.
    void rewind();
    int next(std::string_view topic, const expected_entry *&entries);

    void begin_transaction();
    void commit_transaction();

    MemoryContext scratch = nullptr; // the current one outside of transactions; reset by the owner

  private:
    // Events of one batch that are at one place: those of a tick that were not moved, or those that were moved together.
    struct span {
        int64 at;
        tick source;
        const stored_snapshot *previous;
    };
    struct placed_entry {
        char topic[max_topic_length + 1];
        expected_entry entry;
    };
    struct anchor_end {
        int32 anchor;
        const stored_snapshot *snapshot;
    };
    struct held_stream {
        char topic[max_topic_length + 1];
        position from;
    };

    void find_horizon(int32 anchor);
    bool is_retained(const tick &current, const stored_snapshot *previous);
    const stored_snapshot *previous_of(const tick &current);
    void remember(const tick &current);
    void skip_upto(int64 ms);
    bool add_span(int64 at, const tick &source, const stored_snapshot *previous);
    void check_ring();
    int64 oldest_generation() const;
    bool is_settled(const event_row &event) const;
    bool is_optional(std::string_view topic, position where) const;
    template <typename Visitor> bool advance(int64 limit, Visitor visit) {
        return some(limit, visit, [] {});
    }

    int sink_id_ = 0;
    position before_start_; // nothing up to here is the sink's
    position confirmed_;
    sinks::filters filters_;
    const sinks::filter *filter_ = nullptr; // of the span that is being read
    int64 reach_ = 0; // the last tick that is looked at
    int64 until_ms_ = 0;
    MemoryContext run_ = nullptr, window_ = nullptr, event_ = nullptr;
    batch_reader reader_;
    HTAB *settled_ = nullptr;
    held_stream *held_ = nullptr;
    int held_count_ = 0;
    bool any_moves_ = false;
    int64 last_placed_ = 0;
    int64 generation_ = 0; // the oldest that still has ticks
    int32 horizon_anchor_ = 0;
    FullTransactionId horizon_ = {}; // a batch with a transaction below may have events that were dropped

    bool any_ = false;
    position floor_, upto_;
    int64 tick_ms_ = 0; // ticks up to here are in windows already, or skipped
    int64 ticks_ = 0, unchecked_ = 0;
    anchor_end *ends_ = nullptr; // the last tick read of each anchor
    int end_count_ = 0;

    span *spans_ = nullptr;
    int span_count_ = 0;
    placed_entry *placed_ = nullptr;
    int placed_count_ = 0;

    // where for_each() and next() are
    int at_span_ = 0;
    bool opened_ = false;
    int at_placed_ = 0;
    bool stopped_ = false;
    event_row *visited_ = nullptr;
    state::move *moves_ = nullptr;
    int move_count_ = 0;
    expected_entry *entries_ = nullptr;
};

template <typename Visitor, typename Last> bool expectation::some(int64 limit, Visitor visit, Last last) {
    begin_transaction();
    check_ring();
    int64 read = 0;
    stopped_ = false;
    while (at_span_ < span_count_ && read < limit && !stopped_) {
        const span &current = spans_[at_span_];
        if (!opened_) {
            reader_.open(current.source, current.previous);
            filter_ = filters_.at(current.source.ms);
            MemoryContext old = MemoryContextSwitchTo(window_);
            moves_ = nullptr;
            move_count_ = 0;
            if (any_moves_)
                moves_ = state::load_moves(sink_id_, current.source.ms, move_count_);
            MemoryContextSwitchTo(old);
            opened_ = true;
        }
        reader_.begin();
        event_row event;
        bool more = true;
        while (read < limit && !stopped_ && (more = reader_.next(event))) {
            ++read;
            visited_ = &event;
            position where = {current.source.ms, event.n};
            if (where <= before_start_ || !event.is_for(sink_id_, filter_))
                continue;
            position at = where;
            for (int i = 0; i < move_count_; ++i)
                if (event.topic == moves_[i].topic && where.n >= moves_[i].n && where.n <= moves_[i].upto_n)
                    at.ms = std::max(at.ms, moves_[i].to_ms);
            if (at.ms != current.at || is_settled(event))
                continue;
            bool optional = is_optional(event.topic, where);
            bool failed = false;
            std::size_t size = reader_.size();
            if (filter_ && filter_->transform_function().name) {
                MemoryContext old = MemoryContextSwitchTo(event_);
                reader_.load(event);
                transform::outcome made = transform::apply(filter_->transform_function(), event, true).what;
                MemoryContextSwitchTo(old);
                MemoryContextReset(event_);
                if (made == transform::outcome::withheld)
                    continue;
                failed = made == transform::outcome::failed && !optional;
                optional = optional || failed;
            }
            visit(event.topic, expected_entry{at, *event.event_id, optional, size, failed});
        }
        reader_.end();
        if (!more) {
            ++at_span_;
            opened_ = false;
        }
        ++read; // also a batch without an event takes its time
    }
    bool more = at_span_ < span_count_;
    last();
    commit_transaction();
    return more;
}

constexpr int64 events_at_once = 4096; // in one transaction

template <typename Visitor> void expectation::for_each(Visitor visit) {
    rewind();
    while (advance(events_at_once, visit))
        CHECK_FOR_INTERRUPTS();
    for (int i = 0; i < placed_count_; ++i)
        visit(std::string_view(placed_[i].topic), placed_[i].entry);
}

} // namespace outbox

#include "bgworker/expectation.hpp"

namespace outbox {

using storage::partitions;

// A window ends with the span that reaches one of these.
constexpr int max_spans = 256;
constexpr int64 window_events = 20000;

void expectation::begin_transaction() {
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    const storage::relations &relations = storage::require();
    // DROP EXTENSION locks this first: it waits for us or we for it, but never both.
    LockDatabaseObject(ExtensionRelationId, relations.extension, 0, AccessShareLock);
    storage::require();
}

void expectation::commit_transaction() {
    CommitTransactionCommand();
    MemoryContextSwitchTo(scratch);
}

// Generations are dropped from the oldest on. In a transaction.
int64 expectation::oldest_generation() const {
    const storage::relations &relations = storage::require();
    for (int64 generation = std::max<int64>(0, relations.generation - partitions + 1); generation < relations.generation;
         ++generation)
        if (state::last_tick_in(sink_id_, static_cast<int>(generation % partitions)) != 0)
            return generation;
    return relations.generation;
}

// What was dropped ended with a tick that is kept. Its own events are gone, and some of the batches behind it may be: those with
// transactions that had emitted before the ring moved on. They had their ids before the tick after it was recorded, in a
// transaction that the second tick sees. The xmax of the first one itself need not be above them: it is one more than the last id
// that had come to its end.
// Transactions are those of the anchor: of what came with a dump the predecessor may have dropped as much.
void expectation::find_horizon(int32 anchor) {
    horizon_ = InvalidFullTransactionId;
    horizon_anchor_ = anchor;
    tick next;
    next.ms = generation_ == 0 ? 0 : state::first_tick_of(sink_id_, anchor); // it ends what was dropped
    for (int found = 0; found < 2 && next.ms != 0 && first_tick_after(sink_id_, next.ms, next);)
        if (next.anchor == anchor) {
            horizon_ = next.snapshot->xmax;
            ++found;
        }
}

// Can the whole batch still be there?
bool expectation::is_retained(const tick &current, const stored_snapshot *previous) {
    if (generation_ == 0)
        return true;
    if (!previous)
        return false;
    FullTransactionId begins = previous->xmin;
    if (horizon_anchor_ != current.anchor)
        find_horizon(current.anchor);
    return !FullTransactionIdIsValid(horizon_) || !FullTransactionIdPrecedes(begins, horizon_);
}

// Events that are dropped while they are compared would look as if they had never been committed.
void expectation::check_ring() {
    int64 oldest = oldest_generation();
    if (oldest == generation_)
        return;
    generation_ = oldest;
    find_horizon(storage::anchor());
    int64 kept = state::first_tick_of(sink_id_, storage::anchor());
    bool touched = span_count_ == 0 && tick_ms_ < kept;
    for (int i = 0; i < span_count_; ++i)
        touched = touched || spans_[i].source.ms <= kept || !is_retained(spans_[i].source, spans_[i].previous);
    if (touched)
        ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("events were dropped by retention while they were verified"),
                errhint("Run outbox.verify() again."));
}

void expectation::load(int sink_id, position before_start, position confirmed, int64 reach, int64 since_ms, int64 until_ms) {
    sink_id_ = sink_id;
    before_start_ = before_start;
    confirmed_ = confirmed;
    reach_ = std::max(confirmed.ms, reach);
    until_ms_ = until_ms;
    run_ = AllocSetContextCreate(TopMemoryContext, "outbox expectation", ALLOCSET_DEFAULT_SIZES);
    window_ = AllocSetContextCreate(TopMemoryContext, "outbox window", ALLOCSET_DEFAULT_SIZES);
    event_ = AllocSetContextCreate(run_, "outbox event", ALLOCSET_DEFAULT_SIZES);
    reader_.init(run_);
    filters_.load(sink_id, run_);

    state::load_streams(
        sink_id,
        [](void *to, const stream_state &stream) {
            auto *self = static_cast<expectation *>(to);
            if (!stream.held)
                return;
            MemoryContext old = MemoryContextSwitchTo(self->run_);
            Size size = sizeof(held_stream) * static_cast<Size>(self->held_count_ + 1);
            self->held_ = static_cast<held_stream *>(self->held_ ? repalloc(self->held_, size) : palloc(size));
            held_stream &added = self->held_[self->held_count_++];
            strlcpy(added.topic, stream.topic, sizeof added.topic);
            added.from = stream.held_from;
            MemoryContextSwitchTo(old);
        },
        this);

    HASHCTL control = {};
    control.keysize = control.entrysize = sizeof(state::event_key);
    control.hcxt = run_;
    settled_ = hash_create("outbox settled events", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    state::load_settled(
        sink_id,
        [](void *to, const state::event_key &key) { hash_search(static_cast<HTAB *>(to), &key, HASH_ENTER, nullptr); },
        settled_);
    any_moves_ = state::has_moves(sink_id);
    last_placed_ = std::min(state::last_placed(sink_id), until_ms);

    generation_ = oldest_generation();
    find_horizon(storage::anchor());
    tick_ms_ = since_ms - 1;
    tick before, first;
    bool follows = last_tick_before(sink_id, tick_ms_ + 1, before);
    bool begins = first_tick_after(sink_id, tick_ms_, first) && first.ms <= std::min(until_ms, reach_);
    if (!follows && !begins)
        return;
    // What is older than the first tick that there is was never ours, or is no longer known.
    floor_ = upto_ = {follows ? tick_ms_ : first.ms - 1, PG_INT64_MAX};
    any_ = true;
}

bool expectation::was_dropped_upto(int64 ms) const {
    tick first;
    return generation_ > 0 && first_tick_after(sink_id_, 0, first) && first.ms > ms;
}

void expectation::release() {
    MemoryContextDelete(window_);
    MemoryContextDelete(run_);
}

// Where the batch begins; null where it is the first, or that is no longer known.
const stored_snapshot *expectation::previous_of(const tick &current) {
    for (int i = 0; i < end_count_; ++i)
        if (ends_[i].anchor == current.anchor)
            return ends_[i].snapshot;
    return predecessor(sink_id_, current).snapshot;
}

static const stored_snapshot *copy(MemoryContext context, const stored_snapshot *snapshot) {
    if (!snapshot)
        return nullptr;
    void *result = MemoryContextAlloc(context, VARSIZE(snapshot));
    memcpy(result, static_cast<const void *>(snapshot), VARSIZE(snapshot));
    return static_cast<const stored_snapshot *>(result);
}

// The batch of the anchor's next tick begins where this one's ends.
void expectation::remember(const tick &current) {
    int i = 0;
    while (i < end_count_ && ends_[i].anchor != current.anchor)
        ++i;
    if (i == end_count_) {
        MemoryContext old = MemoryContextSwitchTo(run_);
        Size size = sizeof(anchor_end) * static_cast<Size>(++end_count_);
        ends_ = static_cast<anchor_end *>(ends_ ? repalloc(ends_, size) : palloc(size));
        MemoryContextSwitchTo(old);
        ends_[i] = {current.anchor, nullptr};
    }
    if (ends_[i].snapshot)
        pfree(const_cast<stored_snapshot *>(ends_[i].snapshot));
    ends_[i].snapshot = copy(run_, current.snapshot);
}

void expectation::skip_upto(int64 ms) {
    ++unchecked_;
    floor_ = {ms, PG_INT64_MAX};
    upto_ = std::max(upto_, floor_);
}

bool expectation::add_span(int64 at, const tick &source, const stored_snapshot *previous) {
    span &added = spans_[span_count_++];
    added.at = at;
    added.source = source;
    added.source.snapshot = copy(window_, source.snapshot);
    added.previous = copy(window_, previous);
    upto_ = {at, PG_INT64_MAX};
    return span_count_ < max_spans;
}

bool expectation::next_window() {
    MemoryContextReset(window_);
    spans_ = static_cast<span *>(MemoryContextAlloc(window_, sizeof(span) * max_spans));
    span_count_ = placed_count_ = 0;
    placed_ = nullptr;
    entries_ = nullptr;
    moves_ = nullptr;
    position began = upto_;
    int64 last_ms = std::min(reach_, until_ms_);

    begin_transaction();
    check_ring();
    struct moved {
        int64 to_ms[max_spans], ms[max_spans];
        int count, next;
    };
    auto *moves = static_cast<moved *>(MemoryContextAlloc(window_, sizeof(moved)));
    auto load_moves = [&] {
        moves->count = moves->next = 0;
        if (any_moves_)
            state::load_moved(
                sink_id_, reach_, upto_.ms, until_ms_, max_spans,
                [](void *to, int64 to_ms, int64 ms) {
                    auto *list = static_cast<moved *>(to);
                    list->to_ms[list->count] = to_ms;
                    list->ms[list->count++] = ms;
                },
                moves);
    };
    load_moves();

    int64 events = 0, seq = 0;
    tick next;
    bool ticked = first_tick_after(sink_id_, tick_ms_, next) && next.ms <= last_ms;
    while (events < window_events) {
        bool more_moves = moves->next < moves->count;
        if (more_moves && (!ticked || moves->to_ms[moves->next] < next.ms)) {
            int64 to_ms = moves->to_ms[moves->next], ms = moves->ms[moves->next];
            ++moves->next;
            tick source;
            bool found = first_tick_after(sink_id_, ms - 1, source) && source.ms == ms;
            const stored_snapshot *previous = found ? predecessor(sink_id_, source).snapshot : nullptr;
            if (!found || !is_retained(source, previous)) {
                if (span_count_ > 0)
                    break;
                skip_upto(to_ms);
                continue;
            }
            if (!add_span(to_ms, source, previous))
                break;
            continue;
        }
        if (moves->count == max_spans && !more_moves) {
            load_moves(); // there may be more before the next tick
            continue;
        }
        if (!ticked)
            break;
        const stored_snapshot *previous = previous_of(next);
        if (!is_retained(next, previous)) {
            if (span_count_ > 0)
                break;
            skip_upto(next.ms);
        } else {
            events += seq > 0 && next.seq > seq ? next.seq - seq : 0;
            seq = next.seq;
            ++ticks_;
            bool room = add_span(next.ms, next, previous);
            remember(next);
            tick_ms_ = next.ms;
            if (!room)
                break;
        }
        if (tick_ms_ < next.ms) {
            remember(next);
            tick_ms_ = next.ms;
        }
        ticked = first_tick_after(sink_id_, tick_ms_, next) && next.ms <= last_ms;
    }
    if (span_count_ == 0 && last_placed_ > upto_.ms)
        upto_ = {last_placed_, PG_INT64_MAX};
    if (last_placed_ > began.ms)
        state::load_placed(
            sink_id_, std::max(began.ms, floor_.ms), upto_.ms,
            [](void *to, std::string_view topic, position at, const pg_uuid_t &id) {
                auto *self = static_cast<expectation *>(to);
                MemoryContext old = MemoryContextSwitchTo(self->window_);
                auto count = static_cast<Size>(self->placed_count_);
                if (!self->placed_)
                    self->placed_ = static_cast<placed_entry *>(palloc(sizeof(placed_entry)));
                else if ((count & (count - 1)) == 0)
                    self->placed_ = static_cast<placed_entry *>(
                        repalloc_huge(self->placed_, sizeof(placed_entry) * count * 2));
                placed_entry &added = self->placed_[self->placed_count_++];
                added = {};
                memcpy(added.topic, topic.data(), std::min(topic.size(), max_topic_length));
                added.entry = {at, id, false, 0};
                MemoryContextSwitchTo(old);
            },
            this);
    commit_transaction();
    return span_count_ > 0 || placed_count_ > 0;
}

bool expectation::is_settled(const event_row &event) const {
    if (hash_get_num_entries(settled_) == 0)
        return false;
    state::event_key key = {*event.event_id, event.seq};
    return hash_search(settled_, &key, HASH_FIND, nullptr) != nullptr;
}

bool expectation::is_optional(std::string_view topic, position where) const {
    if (where > confirmed_)
        return true;
    for (int i = 0; i < held_count_; ++i)
        if (topic == held_[i].topic)
            return where >= held_[i].from;
    return false;
}

const event_row &expectation::event() {
    reader_.load(*visited_);
    return *visited_;
}

void expectation::rewind() {
    at_span_ = at_placed_ = 0;
    opened_ = false;
}

int expectation::next(std::string_view topic, const expected_entry *&entries) {
    if (!entries_)
        entries_ = static_cast<expected_entry *>(MemoryContextAllocHuge(
            window_, sizeof(expected_entry) * static_cast<Size>(events_at_once + placed_count_)));
    int count = 0;
    auto add_placed = [&](position before) {
        for (; at_placed_ < placed_count_ && placed_[at_placed_].entry.at < before; ++at_placed_)
            if (topic == placed_[at_placed_].topic)
                entries_[count++] = placed_[at_placed_].entry;
    };
    while (count == 0 && at_span_ < span_count_)
        advance(events_at_once, [&](std::string_view of, const expected_entry &entry) {
            if (of != topic)
                return;
            add_placed(entry.at);
            entries_[count++] = entry;
        });
    if (at_span_ == span_count_)
        add_placed({PG_INT64_MAX, PG_INT64_MAX});
    entries = entries_;
    return count;
}

} // namespace outbox

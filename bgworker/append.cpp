// Appending: events are made into chunks, and every reply to a chunk is classified (judge.cpp) before the next one is executed. While
// Redis works on one chunk, the next is read, encoded and sent as far as its EXEC: Redis queues it, and has it at hand when EXEC comes.
// Up to then it has no effect, and DISCARD takes it back where the chunk before it did not go as it should.

#include "bgworker/dispatcher.hpp"
#include "bgworker/entry.hpp"
#include "bgworker/fields.hpp"
#include "bgworker/reply.hpp"
#include "common/resp.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

// A foreign entry further in the future than this does not drag our positions behind it: its stream is held instead.
constexpr int64 far_future = INT64CONST(24) * 3600 * 1000; // ms

stream_state *dispatcher::stream_of(std::string_view topic) {
    if (last_stream_ && topic == last_stream_->name())
        return last_stream_; // none is ever removed
    char key[max_topic_length + 1] = {};
    memcpy(key, topic.data(), std::min(topic.size(), max_topic_length));
    bool found;
    auto *stream = static_cast<stream_state *>(hash_search(streams_, key, HASH_ENTER, &found));
    if (!found) {
        *stream = {};
        memcpy(stream->topic, key, sizeof key);
    }
    return last_stream_ = stream;
}

// As Redis knows it, for messages; in the current memory context.
const char *dispatcher::name_of(const stream_state &stream) const {
    return psprintf("%.*s%s%.*s", static_cast<int>(naming_.before.size()), naming_.before.data(), stream.topic,
                    static_cast<int>(naming_.behind.size()), naming_.behind.data());
}

bool dispatcher::is_settled(const event_row &event) const {
    state::event_key key = {*event.event_id, event.seq};
    return hash_get_num_entries(settled_) > 0 && hash_search(settled_, &key, HASH_FIND, nullptr);
}

void dispatcher::settle(const state::event_key &key) { hash_search(settled_, &key, HASH_ENTER, nullptr); }

// In a transaction.
void dispatcher::load_moves(int64 ms) {
    if (moves_ms_ == ms)
        return;
    moves_ms_ = ms;
    if (moves_)
        pfree(moves_);
    moves_ = nullptr;
    move_count_ = 0;
    if (!any_moves_)
        return;
    MemoryContext old = MemoryContextSwitchTo(batches_);
    moves_ = state::load_moves(sink_id_, ms, move_count_);
    MemoryContextSwitchTo(old);
}

// The entry ID of the event at `where`: that place itself, or where its batch's events of the topic were moved last.
position dispatcher::place_of(std::string_view topic, position where) const {
    position at = where;
    for (int i = 0; i < move_count_; ++i)
        if (topic == moves_[i].topic && where.n >= moves_[i].n && where.n <= moves_[i].upto_n)
            at.ms = std::max(at.ms, moves_[i].to_ms);
    return at;
}

// Gives events n to upto_n of a batch a place above everything in the stream. Recorded durably before anything is sent there:
// after a crash in between, the batch is sent to the same new place again. False where the stream is too far ahead to follow.
bool dispatcher::move_up(stream_state &stream, int64 ms, int64 n, int64 upto_n) {
    if (stream.top.ms > unix_ms(GetCurrentTimestamp()) + far_future)
        return false;
    state::move added = {};
    strlcpy(added.topic, stream.topic, sizeof added.topic);
    added.n = n;
    added.upto_n = upto_n;
    added.to_ms = next_ms(stream.top.ms);
    begin_transaction();
    state::add_move(sink_id_, ms, added);
    commit_transaction();
    OUTBOX_CRASH_POINT("moved");
    last_ms_ = added.to_ms;
    any_moves_ = true;
    moves_ms_ = 0;
    return true;
}

// Could an entry for the event have been appended before, without our knowing it? Of a held stream only by an attempt whose
// replies were lost.
bool dispatcher::may_be_there(const stream_state &stream, position where) const {
    if (stream.held && where >= stream.held_from)
        return stream.in_doubt;
    return where <= believed_;
}

// What is to be done with an event. `stop`: not in this chunk, its stream's tail must be dealt with first.
dispatcher::verdict dispatcher::consider(const event_row &event, position where, stream_state *&stream, position &at,
                                         bool from_hold) {
    if (!event.is_for(sink_id_, filter_))
        return verdict::skip;
    stream = stream_of(event.topic);
    if (where <= stream->floor || is_settled(event))
        return verdict::skip;
    if (!from_hold) {
        if (stream->held && where >= stream->held_from)
            return verdict::skip;
        for (int i = 0; i < settled_count_; ++i)
            if (settled_n_[i] == where.n)
                return verdict::skip;
    }
    at = place_of(event.topic, where);
    if (!from_hold && where <= present_upto_) {
        return verdict::learn;
    }
    // Never sent before, and the stream is above its place already: it would be refused.
    if (at <= stream->top && !may_be_there(*stream, where))
        return verdict::stop;
    return verdict::send;
}

// The marker says that it is there; what an earlier worker knew of the stream is learned on the way.
static void learn(stream_state &stream, position at) {
    stream.tail = std::max(stream.tail, at);
    ++stream.appended;
    stream.dirty = true;
}

bool dispatcher::has_transform() const { return filter_ && filter_->transform_function().name; }

// What the sink's transform makes of an event that was loaded.
transform::result dispatcher::transformed(event_row &event) const {
    if (!has_transform())
        return {transform::outcome::given, event.payload, nullptr};
    transform::result result = transform::apply(filter_->transform_function(), event, true);
    if (result.what == transform::outcome::given)
        event.payload = result.payload;
    return result;
}

void dispatcher::encode(chunk &target, const event_row &event, position where, stream_state *stream, position at) {
    const entry_fields fields = fields_of(event, naming_, at, stream->exists);
    cpp_call([&] { append_entry(*target.commands, *target.answers, fields); });
    target.entries[target.count++] = {stream, where, at, *event.event_id};
}

void dispatcher::begin(chunk &target) {
    target.clear();
    cpp_call([&] { resp::append(*target.commands, "MULTI"); });
}

// The next events of the batch. Ends early, with what can go now, before an event whose stream is in its way.
void dispatcher::fill(chunk &target) {
    begin(target);
    target.begin = reader_.where();
    int64 ms = reader_.current().ms;
    filter_ = filters_.at(ms);
    for (;;) {
        stream_state *blocked = nullptr;
        position blocked_at;
        const char *error = nullptr; // what its transform has failed with
        begin_transaction();
        load_moves(ms);
        reader_.begin();
        while (!target.full() && target.events < max_chunk_span) {
            batch_reader::place before = reader_.where();
            event_row event;
            if (!reader_.next(event))
                break;
            position where = {ms, event.n};
            stream_state *stream;
            position at;
            verdict decided = consider(event, where, stream, at, false);
            if (decided == verdict::stop) {
                reader_.seek(before);
                blocked = stream;
                blocked_at = where;
                break;
            }
            if (decided == verdict::send && !has_transform()) {
                reader_.load(event);
                encode(target, event, where, stream, at);
            } else if (decided == verdict::learn && !has_transform()) {
                learn(*stream, at);
            } else if (decided != verdict::skip) {
                MemoryContext old = MemoryContextSwitchTo(event_);
                reader_.load(event);
                transform::result made = transformed(event);
                if (made.what == transform::outcome::given && decided == verdict::send)
                    encode(target, event, where, stream, at);
                else if (made.what == transform::outcome::given)
                    learn(*stream, at);
                else if (made.what == transform::outcome::failed && decided == verdict::send)
                    error = MemoryContextStrdup(round_, made.error);
                MemoryContextSwitchTo(old);
                MemoryContextReset(event_); // many may be withheld in a row
                if (error) {
                    reader_.seek(before);
                    blocked = stream;
                    blocked_at = where;
                    break;
                }
            }
            target.last = where;
            ++target.events;
            if (settled_count_ > 0 && where >= remade_upto_)
                break;
        }
        reader_.end();
        commit_transaction();
        if (!blocked || target.events > 0)
            return;
        if (error)
            hold(*blocked, blocked_at, blocked_at, error);
        else if (!move_up(*blocked, ms, blocked_at.n, PG_INT64_MAX))
            hold(*blocked, blocked_at, blocked_at, "the stream's last entry ID is too far in the future");
    }
}

bool dispatcher::lease_is_due() const {
    return TimestampDifferenceExceeds(leased_at_, steady_now(), std::min(settings::lease_timeout / 5, 1000));
}

// The end of a chunk: the marker, perhaps the lease, EXEC, and the look at the marker for the next one.
void dispatcher::seal(chunk &target, position marker, position settled) {
    target.sealed = marker = std::max(marker, marker_);
    sink_marker text = {incarnation_, marker, repairs_, settled.ms == marker.ms ? marker.n - settled.n : marker.n + 1, {}};
    if (const carried_tick *carried = make_durable(marker.ms))
        text.tick = *carried;
    print(text, target.marker);
    target.renews_lease = lease_is_due();
    char lease[96];
    pg_snprintf(lease, sizeof lease, "%s@%s", incarnation_, instance_);
    char timeout[16];
    pg_snprintf(timeout, sizeof timeout, "%d", settings::lease_timeout);
    cpp_call([&] {
        if (target.renews_lease)
            resp::append(*target.commands, "SET", lease_key_, lease, "PX", timeout);
        resp::append(*target.commands, "SET", marker_key_, target.marker);
        resp::append(*target.commands, "EXEC");
        resp::append(*target.commands, "WATCH", marker_key_);
        resp::append(*target.commands, "GET", marker_key_);
        std::size_t executed = static_cast<std::size_t>(target.count) + (target.renews_lease ? 2 : 1);
        std::string &answer = *target.answer;
        answer = "+OK\r\n";
        for (std::size_t i = 0; i < executed; ++i)
            answer.append("+QUEUED\r\n");
        resp::command(answer, executed);
        answer.append(*target.answers);
        answer.append(target.renews_lease ? "+OK\r\n+OK\r\n" : "+OK\r\n"); // SET
        answer.append("+OK\r\n");                                           // WATCH
        resp::argument(answer, target.marker);
    });
    if (target.renews_lease)
        leased_at_ = steady_now();
}

// Sends the batch, chunk by chunk, up to its end or until something else is due.
sent dispatcher::run_batch() {
    chunk *flying = nullptr;
    int next = 0;
    for (;;) {
        chunk &filled = chunks_[next];
        TimestampTz retry = next_retry();
        bool leave = ConfigReloadPending || slot_->reload || (retry != 0 && retry <= GetCurrentTimestamp()) ||
                     confirmation_is_due();
        const chunk *queued = nullptr;
        if (!leave) {
            fill(filled);
            if (filled.events > 0)
                queued = &filled;
            // With nothing to wait for, all of it goes in one write.
            if (queued && flying) {
                if (!link_.send(*filled.commands))
                    return sent::lost;
                OUTBOX_CRASH_POINT("chunk_queued");
            }
        }
        if (flying) {
            bool none = !queued;
            sent result = conclude(*flying, queued);
            if (result == sent::lost)
                return result;
            bool taken_back = !none && !queued;
            if (result == sent::again || taken_back) {
                reader_.seek(result == sent::again ? flying->begin : filled.begin);
                flying = nullptr;
                continue;
            }
            flying = nullptr;
        }
        if (leave)
            return sent::good;
        if (!queued) {
            batch_open_ = false;
            passed_ms_ = reader_.current().ms;
            ++stats_.batches;
            return sent::good;
        }
        seal(filled, filled.last, std::max(cursor_, present_upto_));
        if (!link_.send(*filled.commands))
            return sent::lost;
        OUTBOX_CRASH_POINT("chunk_written");
        flying = &filled;
        next = 1 - next;
    }
}

// An empty chunk: says that this worker lives, and notices when Redis is not what it was.
bool dispatcher::renew_lease() {
    begin(hold_chunk_);
    seal(hold_chunk_, cursor_, std::max(cursor_, present_upto_));
    if (!link_.send(*hold_chunk_.commands) || !link_.receive(hold_chunk_.replies()))
        return false;
    bool settled[max_chunk_events];
    return judge(hold_chunk_, settled) == sent::good;
}

} // namespace outbox

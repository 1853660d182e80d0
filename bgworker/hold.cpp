// Streams that refuse entries. Such a stream is held as a whole from its first failed event on, so that nothing overtakes it,
// and is tried again on its own while the others go on. After outbox.max_attempts the tried events become dead letters.

#include "bgworker/backoff.hpp"
#include "bgworker/dispatcher.hpp"
#include "common/crash_point.hpp"
#include "extension/settings.hpp"

#include "extension/printable.hpp"

extern "C" {
#include "common/pg_prng.h"
}

namespace outbox {

// Until the cursor has passed the event that failed there is nothing to try. Without an attempt nothing has failed since the
// last progress. After a crash the cursor is behind what the marker covers, and until it has passed that the stream stays held:
// of a stream that is not, all that the marker covers is taken to be in Redis.
bool dispatcher::is_waiting(const stream_state &stream) const {
    return stream.held && cursor_ >= present_upto_ && (stream.attempts == 0 || stream.held_from <= cursor_);
}

// The next due time of any held stream; 0 when none is held.
TimestampTz dispatcher::next_retry() const {
    TimestampTz next = 0;
    if (held_streams_ == 0)
        return next;
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, streams_);
    while (auto *stream = static_cast<stream_state *>(hash_seq_search(&scan)))
        if (is_waiting(*stream) && (next == 0 || stream->retry_at < next))
            next = stream->retry_at;
    return next;
}

stream_state *dispatcher::due_hold() const {
    TimestampTz next = next_retry();
    if (next == 0 || next > GetCurrentTimestamp())
        return nullptr;
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, streams_);
    while (auto *stream = static_cast<stream_state *>(hash_seq_search(&scan)))
        if (is_waiting(*stream) && stream->retry_at == next) {
            hash_seq_term(&scan);
            return stream;
        }
    return nullptr;
}

// Recorded durably: after a crash the later events of the stream must not pass the failed one.
void dispatcher::save_hold(const stream_state &stream) {
    begin_transaction();
    save_stream(stream);
    commit_transaction();
}

// Events `from` to `tried` of the stream were refused.
void dispatcher::hold(stream_state &stream, position from, position tried, const char *error) {
    TimestampTz now = GetCurrentTimestamp();
    if (!stream.held) {
        stream.held = true;
        ++held_streams_;
        stream.attempts = 0;
        stream.tried = {};
        stream.in_doubt = from <= believed_; // perhaps an earlier try went through, and only its reply was lost
        stream.doubt_upto = stream.in_doubt ? believed_ : position{};
    }
    if (stream.attempts == 0 || stream.held_from != from) {
        stream.attempts = 0;
        stream.failed_at = now;
        stream.held_from = from;
        stream.tried = std::max(stream.tried, tried);
    }
    ++stream.attempts;
    ++stats_.errors;
    strlcpy(stream.error, printable(error, sizeof stream.error - 1), sizeof stream.error);
    strlcpy(stats_.last_error, stream.error, sizeof stats_.last_error);
    stats_.last_error_at = now;
    const int delay = backoff(stream.attempts, settings::retry_min, settings::retry_max,
                              pg_prng_double(&pg_global_prng_state));
    stream.retry_at = TimestampTzPlusMilliseconds(now, delay);
    if (stream.attempts == 1)
        ereport(WARNING,
                errmsg("stream \"%s\" of sink \"%s\" refused an event: %s", name_of(stream), sink_.name,
                       stream.error),
                errdetail("The stream is held from this event on; it is tried again %d times.",
                          settings::max_attempts - 1),
                errhint("Other streams go on. See outbox.event and outbox.stat_sink."));
    save_hold(stream);
    OUTBOX_CRASH_POINT("held");
    // Counted from here: writing it down may have taken longer than the delay.
    stream.retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
    if (stream.attempts >= settings::max_attempts)
        bury(stream);
}

// Calls visit(event, where) for the events of the stream from where it is held up to `upto`, in order, until it returns false.
// All of it is one transaction, which the visitor may write in.
template <typename Visitor>
void dispatcher::for_each_held(stream_state &stream, position upto, Visitor visit) {
    begin_transaction();
    tick current;
    bool more = first_tick_after(sink_id_, stream.held_from.ms - 1, current);
    while (more && current.ms <= upto.ms) {
        CHECK_FOR_INTERRUPTS();
        load_moves(current.ms);
        filter_ = filters_.at(current.ms);
        hold_reader_.open(current, predecessor(sink_id_, current).snapshot);
        hold_reader_.begin();
        event_row event;
        while (more && hold_reader_.next(event)) {
            position where = {current.ms, event.n};
            if (where > upto)
                more = false;
            else if (where >= stream.held_from && event.topic == stream.name() && event.is_for(sink_id_, filter_)) {
                MemoryContext old = has_transform() ? MemoryContextSwitchTo(event_) : CurrentMemoryContext;
                hold_reader_.load(event);
                more = visit(event, where);
                MemoryContextSwitchTo(old);
                if (has_transform())
                    MemoryContextReset(event_); // many may be withheld in a row
            }
        }
        hold_reader_.end();
        more = more && first_tick_after(sink_id_, current.ms, current);
    }
    commit_transaction();
}

// One attempt: the first events that are held, as one chunk. When nothing is left up to the cursor, the stream is free.
sent dispatcher::retry(stream_state &stream) {
    begin(hold_chunk_);
    // An attempt on the stream counts for all that wait in it. What comes after the first of them waits for the outcome.
    if (stream.attempts == 0)
        stream.tried = cursor_;
    position upto = std::min(stream.tried, cursor_);
    position blocked_at;
    bool blocked = false;
    const char *error = nullptr; // what its transform has failed with
    for_each_held(stream, upto, [&](const event_row &event, position where) {
        stream_state *found;
        position at;
        event_row sent = event;
        verdict decided = consider(event, where, found, at, true);
        if (decided == verdict::stop) {
            blocked = true;
            blocked_at = where;
            return false;
        }
        if (decided != verdict::send)
            return !hold_chunk_.full();
        transform::result made = transformed(sent);
        if (made.what == transform::outcome::failed) {
            blocked_at = where;
            error = MemoryContextStrdup(round_, made.error);
            return false;
        }
        if (made.what == transform::outcome::given)
            encode(hold_chunk_, sent, where, &stream, at);
        return !hold_chunk_.full();
    });
    if (error && hold_chunk_.count == 0) {
        stream.tried = blocked_at; // what is behind it was not tried, and is not given up with it
        hold(stream, blocked_at, blocked_at, error);
        return sent::good;
    }
    if (blocked && hold_chunk_.count == 0) {
        if (!move_up(stream, blocked_at.ms, blocked_at.n, PG_INT64_MAX))
            hold(stream, blocked_at, blocked_at, "the stream's last entry ID is too far in the future");
        return sent::good;
    }
    if (hold_chunk_.count == 0) {
        if (upto < cursor_) {
            stream.held_from = {upto.ms, upto.n + 1};
            stream.attempts = 0;
        } else {
            stream.held = false;
            --held_streams_;
            ereport(LOG, errmsg("stream \"%s\" of sink \"%s\" is in order again", name_of(stream), sink_.name));
        }
        save_hold(stream);
        return sent::good;
    }
    ++repairs_; // part of the marker, and so of what Redis may lose
    seal(hold_chunk_, cursor_, std::max(cursor_, present_upto_));
    stream.in_doubt = true; // until every reply was seen
    note_unconfirmed();
    if (unconfirmed_ > 0 && stream.unconfirmed_from.ms == 0) {
        stream.unconfirmed_from = stream.held_from;
        releases_unconfirmed_ = true;
    }
    if (!link_.send(*hold_chunk_.commands))
        return sent::lost;
    OUTBOX_CRASH_POINT("release_written");
    if (!link_.receive(hold_chunk_.replies()))
        return sent::lost;
    bool settled[max_chunk_events] = {};
    sent result = judge(hold_chunk_, settled);
    if (result == sent::lost)
        return result;
    stream.in_doubt = hold_chunk_.entries[hold_chunk_.count - 1].event < stream.doubt_upto;
    // Up to the first that is not settled it went well; what hold() has recorded meanwhile begins there.
    int done = 0;
    while (done < hold_chunk_.count && (result == sent::good || settled[done]))
        ++done;
    OUTBOX_CRASH_POINT("released");
    stream.released = repairs_;
    if (done > 0) {
        position behind = hold_chunk_.entries[done - 1].event;
        ++behind.n;
        if (stream.held_from < behind) {
            stream.held_from = behind;
            stream.attempts = 0;
            stream.retry_at = GetCurrentTimestamp();
            save_hold(stream);
        }
    }
    publish();
    return sent::good;
}

// Gives the tried events up: they become dead letters, and what is behind them gets attempts of its own.
void dispatcher::bury(stream_state &stream) {
    auto *keys = static_cast<state::event_key *>(palloc(sizeof(state::event_key) * max_chunk_events));
    int64 buried = 0;
    for (bool more = true; more;) {
        int count = 0;
        std::size_t bytes = 0;
        more = false;
        position last = stream.tried;
        for_each_held(stream, stream.tried, [&](const event_row &event, position where) {
            if (count == max_chunk_events || bytes > max_chunk_bytes) {
                more = true;
                return false;
            }
            last = where;
            event_row lost = event;
            if (!is_settled(event) && transformed(lost).what != transform::outcome::withheld) {
                state::add_dead_letter(sink_id_, event, place_of(event.topic, where), stream);
                keys[count++] = {*event.event_id, event.seq};
                bytes += event.payload.size();
            }
            return true;
        });
        // Only now are they recorded; until then a crash would have them tried again.
        for (int i = 0; i < count; ++i)
            settle(keys[i]);
        buried += count;
        if (!more)
            last = stream.tried;
        stream.held_from = {last.ms, last.n + 1};
    }
    pfree(keys);
    ereport(WARNING,
            errmsg("%lld events of stream \"%s\" of sink \"%s\" are dead letters after %d attempts: %s",
                   static_cast<long long>(buried), name_of(stream), sink_.name, stream.attempts, stream.error),
            errhint("They are in outbox.dead_letter."));
    stream.attempts = 0;
    stream.retry_at = GetCurrentTimestamp();
    save_hold(stream);
}

} // namespace outbox

// What became of a chunk, from Redis' replies to it: each entry was appended, is there from before, belongs to a stream that refuses
// it, or is to be sent again. Nothing is confirmed that was not answered for.

#include "bgworker/dispatcher.hpp"
#include "bgworker/entry.hpp"
#include "bgworker/fields.hpp"
#include "bgworker/reply.hpp"
#include "common/crash_point.hpp"
#include "common/resp.hpp"

#include "extension/guard.hpp"

namespace outbox {

void dispatcher::accept(const chunk_entry &entry, bool duplicate) {
    stream_state &stream = *entry.stream;
    stream.tail = std::max(stream.tail, entry.at);
    stream.top = std::max(stream.top, entry.at);
    stream.exists = stream.dirty = true;
    if (duplicate) {
        ++stats_.duplicates_rejected;
        return;
    }
    ++stream.appended;
    ++stats_.published;
    if (entry.event <= heal_until_)
        ++stats_.healed;
}

// An error in reply to a queued command has aborted the whole chunk: nothing of it is in Redis.
sent dispatcher::refuse_in_queue(chunk &target) {
    for (int i = 0; i < target.count; ++i) {
        const redisReply &queued = link_.reply(static_cast<std::size_t>(i) + 1);
        if (queued.type != REDIS_REPLY_ERROR || blame_for(queued.str, true) != blame::stream)
            continue;
        const redisReply &marker = link_.reply(target.replies() - 1);
        if (marker.type != REDIS_REPLY_STRING || strcmp(marker_text_, marker.str) != 0)
            break; // first of all reconcile
        stream_state *stream = target.entries[i].stream;
        position tried = target.entries[i].event;
        for (int j = i + 1; j < target.count; ++j)
            if (target.entries[j].stream == stream)
                tried = target.entries[j].event;
        hold(*stream, target.entries[i].event, tried, pstrdup(queued.str));
        return sent::again;
    }
    // The first error is the reason; EXEC's own, where nothing else was refused.
    const char *reason = link_.reply(target.replies() - 3).str;
    for (std::size_t i = target.replies(); i-- > 0;)
        if (link_.reply(i).type == REDIS_REPLY_ERROR && i + 3 != target.replies())
            reason = link_.reply(i).str;
    link_.fail(pstrdup(reason ? reason : "unexpected reply"));
    return sent::lost;
}

// Entries whose ID was not above their stream's last. A rejection is believed only once the entry at that ID is seen to be this
// event; otherwise somebody else owns the ID, and the event gets a higher one.
sent dispatcher::verify(chunk &target, const bool *rejected, bool *settled) {
    std::size_t asked = 0;
    cpp_call([&] {
        commands_->clear();
        for (int i = 0; i < target.count; ++i)
            if (rejected[i]) {
                char at[position_text_size];
                std::string_view id(at, print(target.entries[i].at, at));
                append_xrange(*commands_, target.entries[i].stream->name(), id, id, 1, naming_);
                ++asked;
            }
    });
    if (!link_.ask(*commands_, asked))
        return sent::lost;
    bool missing[max_chunk_events] = {};
    bool any_missing = false;
    std::size_t next = 0;
    for (int i = 0; i < target.count; ++i) {
        if (!rejected[i])
            continue;
        const redisReply &found = link_.reply(next++);
        if (found.type == REDIS_REPLY_ERROR) {
            link_.fail(pstrdup(found.str));
            return sent::lost;
        }
        pg_uuid_t id;
        if (found.type == REDIS_REPLY_ARRAY && found.elements == 1 && read_event_id(*found.element[0], id.data) &&
            memcmp(id.data, target.entries[i].id.data, UUID_LEN) == 0) {
            accept(target.entries[i], true);
            settled[i] = true;
        } else {
            missing[i] = any_missing = true;
        }
    }

    // What is not there, or is not ours. Stream by stream: what does Redis know of it?
    for (int i = 0; any_missing && i < target.count; ++i) {
        if (!missing[i])
            continue;
        stream_state *stream = target.entries[i].stream;
        cpp_call([&] {
            commands_->clear();
            append_xinfo(*commands_, stream->name(), naming_);
        });
        if (!link_.ask(*commands_, 1))
            return sent::lost;
        stream_info info = read_stream_info(link_.reply(0));
        stream->top = std::max(stream->top, info.last);
        // Nothing was ever taken out of it, or nothing at this place: then what is not there never was.
        bool countable = info.knows_deleted && info.first.ms > 0;
        int first = -1, last = -1; // a run of events to be moved
        auto move_run = [&](bool open_ended) {
            if (first < 0)
                return true;
            position from = target.entries[first].event;
            int64 upto = open_ended ? PG_INT64_MAX : target.entries[last].event.n;
            first = -1;
            return move_up(*stream, from.ms, from.n, upto);
        };
        bool followed = true;
        position failed_from = target.entries[i].event, failed_to = failed_from;
        for (int j = i; j < target.count; ++j) {
            const chunk_entry &entry = target.entries[j];
            if (entry.stream != stream)
                continue;
            bool ours = false;
            if (missing[j]) {
                missing[j] = false;
                // Sent before, perhaps: then it was appended and has been deleted or trimmed since, unless Redis can tell
                // that nothing so high ever was.
                bool never_there = info.is_whole() || (countable && info.first <= entry.at && info.deleted < entry.at);
                ours = may_be_there(*stream, entry.event) && !stream->lost && !never_there;
                if (ours)
                    settled[j] = true;
            } else {
                ours = true; // it is in the stream
            }
            if (ours || (first >= 0 && entry.event.ms != target.entries[first].event.ms))
                followed = move_run(false) && followed;
            if (!ours) {
                first = first < 0 ? j : first;
                last = j;
                failed_to = entry.event;
            }
        }
        followed = move_run(first >= 0 && !may_be_there(*stream, target.entries[last].event)) && followed;
        if (!followed)
            hold(*stream, failed_from, failed_to, "the stream's last entry ID is too far in the future");
    }
    return sent::again;
}

// What became of each entry of an executed chunk. `settled` gets those that need not be sent again. `queued`: a chunk behind it
// that was taken back, and whose replies and retract()'s are the last ones.
sent dispatcher::judge(chunk &target, bool *settled, const chunk *queued) {
    for (std::size_t i = 0; i < target.replies(); ++i) {
        const redisReply &reply = link_.reply(i);
        bool is_exec = i + 3 == target.replies();
        if (reply.type == REDIS_REPLY_ERROR && !is_exec)
            return refuse_in_queue(target);
    }
    const redisReply &exec = link_.reply(target.replies() - 3);
    if (exec.type == REDIS_REPLY_NIL) {
        // Somebody else appends, or Redis has lost data: nothing of the chunk is in it.
        link_.fail(changed_marker);
        reconnect_at_once_ = true;
        return sent::lost;
    }
    if (exec.type == REDIS_REPLY_ERROR)
        return refuse_in_queue(target);
    if (exec.type != REDIS_REPLY_ARRAY || exec.elements < static_cast<std::size_t>(target.count)) {
        link_.fail("unexpected reply to EXEC");
        return sent::lost;
    }
    // Before anything else is asked, which takes the replies' place.
    auto says_marker = [&](const redisReply &reply) {
        return reply.type == REDIS_REPLY_STRING && strcmp(reply.str, target.marker) == 0;
    };
    bool marker_is_ours = says_marker(link_.reply(target.replies() - 1));
    if (queued) {
        // DISCARD has ended the watch, too: the marker is seen again under a new one.
        const redisReply &discard = link_.reply(link_.received() - 3), &watch = link_.reply(link_.received() - 2);
        if (discard.type == REDIS_REPLY_ERROR) {
            link_.fail(pstrdup(discard.str));
            return sent::lost;
        }
        marker_is_ours = marker_is_ours && watch.type == REDIS_REPLY_STATUS &&
                         says_marker(link_.reply(link_.received() - 1));
    }

    strlcpy(marker_text_, target.marker, sizeof marker_text_);
    marker_ = std::max(marker_, target.sealed); // also when this chunk must be made again, nothing sets it back

    bool rejected[max_chunk_events] = {};
    bool any_rejected = false, all = true;
    struct failure {
        stream_state *stream;
        position from, tried;
        const char *error;
    } failures[max_chunk_events];
    int failed = 0;
    for (int i = 0; i < target.count; ++i) {
        const redisReply &reply = *exec.element[i];
        const chunk_entry &entry = target.entries[i];
        if (reply.type == REDIS_REPLY_STRING || reply.type == REDIS_REPLY_STATUS) {
            accept(entry, false);
            settled[i] = true;
            continue;
        }
        all = false;
        if (reply.type == REDIS_REPLY_NIL) {
            if (entry.stream->exists)
                ereport(WARNING,
                        errmsg("stream \"%s\" of sink \"%s\" was deleted from Redis", name_of(*entry.stream), sink_.name),
                        errdetail("New events go on into a new stream of that name; entries up to %lld are gone.",
                                  static_cast<long long>(entry.stream->tail.ms)),
                        errhint("If that was not intended, check Redis' eviction policy."));
            entry.stream->exists = false;
            entry.stream->tail = entry.stream->top = {};
            entry.stream->appended = 0;
            ++stats_.errors;
            continue;
        }
        const char *error = reply.type == REDIS_REPLY_ERROR ? reply.str : "unexpected reply";
        switch (blame_for(error, false)) {
        case blame::sink:
            link_.fail(pstrdup(error));
            return sent::lost;
        case blame::rejected:
            rejected[i] = any_rejected = true;
            break;
        case blame::stream: {
            int k = 0;
            while (k < failed && failures[k].stream != entry.stream)
                ++k;
            if (k == failed)
                failures[failed++] = {entry.stream, entry.event, entry.event, pstrdup(error)};
            failures[k].tried = entry.event;
            break;
        }
        }
    }
    if (!marker_is_ours) {
        // The chunk itself was appended, but the next one must not go without a look. What was refused in it is not lost: the
        // marker that we saw was ours until EXEC, and reconciliation sends the chunk again.
        link_.fail(changed_marker);
        reconnect_at_once_ = true;
        return sent::lost;
    }
    for (int k = 0; k < failed; ++k)
        hold(*failures[k].stream, failures[k].from, failures[k].tried, failures[k].error);
    if (any_rejected)
        return verify(target, rejected, settled);
    return all ? sent::good : sent::again;
}

// A chunk of which every answer is the best one.
void dispatcher::adopt(chunk &target) {
    strlcpy(marker_text_, target.marker, sizeof marker_text_);
    for (int i = 0; i < target.count; ++i)
        accept(target.entries[i], false);
}

// Takes back what is queued since MULTI. Three replies.
bool dispatcher::retract() {
    cpp_call([&] {
        commands_->clear();
        resp::append(*commands_, "DISCARD");
        resp::append(*commands_, "WATCH", marker_key_);
        resp::append(*commands_, "GET", marker_key_);
    });
    return link_.send(*commands_);
}

// Waits for the replies to a chunk. `queued`: the one behind it, which is sent up to its EXEC; null when it was taken back.
sent dispatcher::conclude(chunk &target, const chunk *&queued) {
    bool as_expected;
    if (!link_.expect(*target.answer, as_expected))
        return sent::lost;
    bool settled[max_chunk_events] = {};
    sent result = sent::good;
    if (as_expected) {
        adopt(target);
    } else {
        if (queued && !retract())
            return sent::lost;
        if (!link_.receive(target.replies() + (queued ? queued->queued() + 3 : 0)))
            return sent::lost;
        result = judge(target, settled, queued);
        queued = nullptr;
    }
    if (result == sent::lost)
        return result;
    int open = 0;
    for (int i = 0; i < target.count; ++i)
        open += settled[i] || result == sent::good ? 0 : 1;
    if (open > 0) {
        // The chunk is made again without those that are settled, and goes no further than this time.
        for (int i = 0; i < target.count && settled_count_ < max_chunk_events; ++i)
            if (settled[i])
                settled_n_[settled_count_++] = target.entries[i].event.n;
        remade_upto_ = target.last;
        ++repairs_;
        return sent::again;
    }
    settled_count_ = 0;
    OUTBOX_CRASH_POINT("classified");
    note_unconfirmed();
    cursor_ = target.last;
    marker_ = std::max(marker_, cursor_);
    unsaved_ = true;
    if (unconfirmed_ == 0)
        stats_.confirmed_at = GetCurrentTimestamp();
    OUTBOX_CRASH_POINT(cursor_ < heal_until_ ? "healing" : "confirmed");
    publish();
    return sent::good;
}

} // namespace outbox

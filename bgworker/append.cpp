// Appending: events are made into chunks, and every reply to a chunk is classified before the next one is executed. While Redis
// works on one chunk, the next is read, encoded and sent as far as its EXEC: Redis queues it, and has it at hand when EXEC comes.
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

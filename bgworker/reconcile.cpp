// Reconciling: after every connect, and so after every refusal, the marker and the streams tell what Redis has.
//
//   marker                                   what it means                      what is done
//   ours, at or beyond our cursor            as we left it                      go on from the marker; the chunk before it
//                                                                               is sent again, as its replies may be lost
//   ours, below our cursor, or none at all   Redis lost data                    go back, send what is missing, same IDs
//   at a tick that this database has not     it crashed before that was durable record the tick, which the marker carries
//                                            or it lost more                    record which of our events are there
//   a living worker elsewhere wrote it       clone, split brain                 stop until it is gone or resume says so

#include "bgworker/dispatcher.hpp"
#include "bgworker/entry.hpp"
#include "bgworker/reply.hpp"
#include "common/resp.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

constexpr int streams_at_once = 32; // XINFO and XRANGE answer with whole entries

static std::string_view text_of(const redisReply &reply) {
    return reply.type == REDIS_REPLY_STRING ? std::string_view(reply.str, static_cast<std::size_t>(reply.len))
                                            : std::string_view();
}

// The marker is taken from a worker of this very server, from one that is gone, or when an administrator says so.
bool dispatcher::may_take_over(std::string_view marker, std::string_view lease) {
    auto at = lease.find('@');
    bool elsewhere = at != std::string_view::npos && lease.substr(at + 1) != instance_;
    if (marker.empty() || !elsewhere || sink_.take_over)
        return true;
    set_state(shared::worker_state::fenced);
    fenced_ = true;
    if (TimestampDifferenceExceeds(complained_at_, GetCurrentTimestamp(), 60000)) {
        complained_at_ = GetCurrentTimestamp();
        ereport(WARNING,
                errmsg("sink \"%s\" is served by a worker of another server", sink_.name),
                errdetail("Redis at \"%s\" holds a live lease of worker \"%s\"; nothing is sent from here.",
                          link_.endpoint(), printable(lease)),
                errhint("A clone should have its own Redis. To replace a server that is gone, wait until its lease has "
                        "expired; to displace one that lives, run SELECT outbox.resume('%s', take_over => true).",
                        sink_.name));
    }
    return false;
}

// In the current memory context.
stream_state **dispatcher::all_streams(int &count) const {
    long total = hash_get_num_entries(streams_);
    auto **streams = static_cast<stream_state **>(palloc(sizeof(stream_state *) * static_cast<Size>(total + 1)));
    count = 0;
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, streams_);
    while (auto *stream = static_cast<stream_state *>(hash_seq_search(&scan)))
        streams[count++] = stream;
    return streams;
}

// An error that is not about the one stream: without the right to look, nothing can be concluded.
bool dispatcher::is_sinks_fault(const redisReply &reply) {
    if (reply.type != REDIS_REPLY_ERROR || blame_for(reply.str, false) != blame::sink)
        return false;
    link_.fail(pstrdup(reply.str));
    return true;
}

// While healing: a stream that looks long enough may have been made so by others, who appended after the loss. Is the last
// entry that was confirmed to us there? If not, and it was not trimmed, it is lost.
bool dispatcher::look_for_tails() {
    int count;
    stream_state **streams = all_streams(count);
    for (int i = 0; i < count; ++i) {
        stream_state &stream = *streams[i];
        if (stream.lost || !stream.exists || stream.tail.ms == 0)
            continue;
        cpp_call([&] {
            char text[position_text_size];
            std::string_view id(text, print(stream.tail, text));
            commands_->clear();
            append_xrange(*commands_, stream.name(), id, id, 1, naming_);
        });
        if (!link_.ask(*commands_, 1) || is_sinks_fault(link_.reply(0)))
            return false;
        const redisReply &found = link_.reply(0);
        bool absent = found.type == REDIS_REPLY_ARRAY && found.elements == 0;
        bool never_there = stream.whole || (stream.first.ms > 0 && stream.first <= stream.tail && stream.deleted < stream.tail);
        if (absent && never_there) {
            stream.lost = true;
            stream.floor = covered_;
            heal_from_ = std::min(heal_from_, covered_);
        }
    }
    pfree(streams);
    return true;
}

// Asks Redis for the last ID of every stream that we know, and settles which events must not be sent again.
bool dispatcher::look_at_streams() {
    int count;
    stream_state **streams = all_streams(count);
    for (int begin = 0; begin < count; begin += streams_at_once) {
        int end = std::min(count, begin + streams_at_once);
        cpp_call([&] {
            commands_->clear();
            for (int i = begin; i < end; ++i)
                append_xinfo(*commands_, streams[i]->name(), naming_);
        });
        if (!link_.ask(*commands_, static_cast<std::size_t>(end - begin)))
            return false;
        for (int i = begin; i < end; ++i) {
            stream_state &stream = *streams[i];
            const redisReply &reply = link_.reply(static_cast<std::size_t>(i - begin));
            if (is_sinks_fault(reply))
                return false;
            stream_info info = read_stream_info(reply);
            stream.exists = info.exists;
            stream.lost = false;
            // In the middle of healing, what was found to be there still is.
            if (healing_ || cursor_ >= heal_until_ || info.last < stream.floor)
                stream.floor = {};
            if (!info.is_stream) {
                // XADD will say what is wrong.
                stream.top = stream.tail;
                stream.added = stream.appended;
                continue;
            }
            bool fewer = info.entries_added >= 0 && info.entries_added < stream.appended;
            bool is_short = info.last < stream.tail;
            if (healing_) {
                // Nothing up to the cursor is missing from a stream whose last ID is still there, trimmed or not; and nothing
                // above its last ID is there from one that is short. One to which others have added since the loss has at
                // least what the marker covers.
                stream.lost = is_short || fewer;
                stream.floor = is_short ? info.last : fewer ? covered_ : cursor_;
                if (stream.lost)
                    heal_from_ = std::min(heal_from_, stream.floor);
            } else if (is_short && stream.tail <= believed_ && cursor_ >= heal_until_) {
                // The marker is intact, so this stream alone was deleted or evicted. That is not ours to undo; but what is
                // in doubt may have been refused because of it.
                stream.floor = doubt_from_;
                ++stats_.errors;
                ereport(WARNING,
                        errmsg("stream \"%s\" of sink \"%s\" has lost its entries up to %lld-%lld",
                               name_of(stream), sink_.name, static_cast<long long>(stream.tail.ms),
                               static_cast<long long>(stream.tail.n)),
                        errdetail("Redis has the other streams and the marker, so somebody deleted it or it was evicted."),
                        errhint("If that was not intended, check Redis' eviction policy."));
            }
            stream.top = info.last;
            stream.added = info.entries_added;
            stream.whole = info.is_whole();
            stream.first = info.first;
            stream.deleted = info.knows_deleted ? info.deleted : position{PG_INT64_MAX, 0};
            // Held events are not in Redis, wherever they lie.
            if (stream.held)
                stream.floor = std::min(stream.floor, position{stream.held_from.ms, stream.held_from.n - 1});
        }
    }
    pfree(streams);
    return true;
}

// The look was followed by a successful take-over: from now on its findings hold. Before, a second look must come to the same.
void dispatcher::accept_look() {
    int count;
    stream_state **streams = all_streams(count);
    for (int i = 0; i < count; ++i) {
        stream_state &stream = *streams[i];
        if (stream.top >= stream.tail && stream.added >= stream.appended)
            continue;
        if (stream.added >= 0)
            stream.appended = stream.added;
        // What healing owes to a stream stays its tail until it is paid.
        if (!healing_ && cursor_ >= heal_until_)
            stream.tail = std::min(stream.tail, stream.top);
        stream.dirty = true;
    }
    pfree(streams);
}

// Events with one id: what was emitted, and what redrive() and replay() appended again. They are in the stream in the order of
// their sequence numbers.
struct dispatcher::candidate {
    pg_uuid_t id; // the key of the table
    int count;
    int64 *seqs;
};

void dispatcher::add_candidate(candidate &of, int64 seq, bool known) const {
    Size size = sizeof(int64) * static_cast<Size>(known ? of.count + 1 : 1);
    of.seqs = static_cast<int64 *>(known ? repalloc(of.seqs, size) : MemoryContextAlloc(round_, size));
    of.count = known ? of.count + 1 : 1;
    of.seqs[of.count - 1] = seq;
    std::sort(of.seqs, of.seqs + of.count);
}

void dispatcher::take_out(candidate &of, int64 seq) {
    of.count = static_cast<int>(std::remove(of.seqs, of.seqs + of.count, seq) - of.seqs);
}

// What the sink has confirmed of the batch that its cursor is in looks for no entry: one behind the cursor that has the same id
// is of another event. In a transaction.
void dispatcher::leave_out_upto(position above, HTAB *candidates) {
    tick last;
    if (!first_tick_after(sink_id_, above.ms - 1, last) || last.ms != above.ms)
        return;
    reader_.open(last, predecessor(sink_id_, last).snapshot);
    reader_.begin();
    event_row event;
    while (reader_.where().n < above.n && reader_.next(event))
        if (auto *found = static_cast<candidate *>(hash_search(candidates, event.event_id, HASH_FIND, nullptr)))
            take_out(*found, event.seq);
    reader_.end();
}

// Another server of this lineage has appended what we do not know of, or this one before a crash. Entries above a position that are
// events of ours, and in no tick before `before_ms`, are recorded as placed, so that they are not appended a second time.
bool dispatcher::match_entries_of_others(int64 before_ms, position above) {
    HASHCTL control = {};
    control.keysize = sizeof(pg_uuid_t);
    control.entrysize = sizeof(candidate);
    control.hcxt = round_;
    HTAB *candidates = hash_create("outbox unpublished events", 1024, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

    struct both {
        HTAB *candidates;
        dispatcher *self;
        bool twice;
    } to = {candidates, this, false};
    begin_transaction();
    tick before;
    bool known = last_tick_before(sink_id_, before_ms, before) && before.anchor == storage::anchor();
    state::load_unpublished(
        sink_id_, known ? before.snapshot : nullptr,
        [](void *argument, const state::event_key &key, std::string_view event_type, std::string_view topic) {
            auto *into = static_cast<both *>(argument);
            if (!into->self->filters_.ever_take(event_type, topic) ||
                hash_search(into->self->settled_, &key, HASH_FIND, nullptr))
                return;
            bool found;
            auto *first = static_cast<candidate *>(hash_search(into->candidates, &key.id, HASH_ENTER, &found));
            into->twice = into->twice || found;
            into->self->add_candidate(*first, key.seq, found);
            into->self->stream_of(topic); // a topic that a restored database has no tail for
        },
        &to);
    if (to.twice)
        leave_out_upto(above, candidates);
    // A dead letter that is in its stream was redriven by a predecessor whose redrive this database has not seen.
    control.entrysize = sizeof(state::event_key);
    HTAB *letters = hash_create("outbox dead letters", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    state::load_letters(
        sink_id_,
        [](void *into, const state::event_key &key) {
            static_cast<state::event_key *>(hash_search(static_cast<HTAB *>(into), &key.id, HASH_ENTER, nullptr))->seq = key.seq;
        },
        letters);
    commit_transaction();

    int64 placed = 0;
    int count;
    stream_state **streams = all_streams(count);
    for (int i = 0; i < count; ++i) {
        position from = above;
        for (bool more = true; more;) {
            char text[position_text_size + 1] = "(";
            std::string_view exclusive(text, 1 + print(from, text + 1));
            cpp_call([&] {
                commands_->clear();
                append_xrange(*commands_, streams[i]->name(), from.n < 0 ? exclusive.substr(1) : exclusive, "+",
                              streams_at_once, naming_);
            });
            if (!link_.ask(*commands_, 1) || is_sinks_fault(link_.reply(0)))
                return false;
            const redisReply &page = link_.reply(0);
            more = page.type == REDIS_REPLY_ARRAY && page.elements > 0;
            if (!more)
                break;
            begin_transaction();
            for (std::size_t k = 0; k < page.elements; ++k) {
                pg_uuid_t id;
                if (!read_entry_id(*page.element[k], from)) {
                    more = false;
                    break;
                }
                if (!read_event_id(*page.element[k], id.data))
                    continue;
                auto *found = static_cast<candidate *>(hash_search(candidates, &id, HASH_FIND, nullptr));
                state::event_key ours = {id, 0};
                if (found && found->count > 0) {
                    ours.seq = found->seqs[0];
                    take_out(*found, ours.seq);
                    state::add_placed(sink_id_, ours, streams[i]->name(), from);
                } else if (auto *letter = static_cast<state::event_key *>(hash_search(letters, &id, HASH_REMOVE, nullptr))) {
                    ours.seq = letter->seq;
                    state::place_letter(sink_id_, ours, streams[i]->name(), from);
                } else {
                    continue;
                }
                settle(ours);
                last_ms_ = std::max(last_ms_, from.ms);
                ++placed;
            }
            commit_transaction();
        }
    }
    hash_destroy(candidates);
    hash_destroy(letters);
    pfree(streams);
    if (placed > 0)
        ereport(LOG,
                errmsg("sink \"%s\" is ahead of this database: %lld of its events were found in their streams", sink_.name,
                       static_cast<long long>(placed)),
                errdetail("It was restored or promoted with less than its predecessor had published, or it crashed and the sink's marker "
                          "is gone."));
    return true;
}

// Events that were found in a stream which has lost them since are appended again like any others, where their batches have them.
void dispatcher::forget_lost_places() {
    int count;
    stream_state **streams = all_streams(count);
    begin_transaction();
    for (int i = 0; i < count; ++i)
        if (streams[i]->lost)
            state::take_placed(
                sink_id_, streams[i]->name(), streams[i]->top,
                [](void *settled, const state::event_key &key) {
                    hash_search(static_cast<HTAB *>(settled), &key, HASH_REMOVE, nullptr);
                },
                settled_);
    commit_transaction();
    pfree(streams);
}

// Compare-and-set: EXEC is refused when somebody has touched the marker since WATCH. Also the last word of a dead connection
// of ours is refused from here on.
bool dispatcher::take_over(position marker, position settled, bool &refused) {
    marker_ = {};
    leased_at_ = 0;
    begin(hold_chunk_);
    seal(hold_chunk_, marker, settled);
    if (!link_.send(*hold_chunk_.commands) || !link_.receive(hold_chunk_.replies()))
        return false;
    const redisReply &exec = link_.reply(link_.received() - 3);
    refused = exec.type == REDIS_REPLY_NIL;
    if (refused)
        return false;
    bool none[max_chunk_events];
    return judge(hold_chunk_, none) == sent::good;
}

bool dispatcher::reconcile() {
    fenced_ = false;
    bool first = !*incarnation_; // since this process began
    if (first) {
        // Recorded before Redis sees it. This is also the fresh durable commit without which nothing may be sent after a
        // start: what earlier commits made visible may not have reached a synchronous standby yet, after this one it has.
        unsigned char random[12];
        if (!pg_strong_random(random, sizeof random))
            ereport(ERROR, errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values"));
        for (std::size_t i = 0; i < sizeof random; ++i)
            pg_snprintf(incarnation_ + 2 * i, 3, "%02x", random[i]);
        begin_transaction();
        state::add_incarnation(sink_id_, incarnation_);
        commit_transaction();
    }

    for (int tries = 0; tries < 10; ++tries) {
        cpp_call([&] {
            commands_->clear();
            // DISCARD is needed when something goes wrong; whether it is allowed shall be known before.
            resp::append(*commands_, "MULTI");
            resp::append(*commands_, "DISCARD");
            resp::append(*commands_, "WATCH", marker_key_);
            resp::append(*commands_, "GET", marker_key_);
            resp::append(*commands_, "GET", lease_key_);
        });
        constexpr std::size_t marker_reply = 3, lease_reply = 4, replies = 5;
        if (!link_.ask(*commands_, replies))
            return false;
        for (std::size_t i = 0; i < replies; ++i)
            if (link_.reply(i).type == REDIS_REPLY_ERROR) {
                link_.fail(pstrdup(link_.reply(i).str));
                return false;
            }
        const char *marker = pnstrdup(link_.reply(marker_reply).str ? link_.reply(marker_reply).str : "",
                                      link_.reply(marker_reply).len);
        if (!may_take_over(marker, text_of(link_.reply(lease_reply)))) {
            link_.close();
            retry_at_ = TimestampTzPlusMilliseconds(steady_now(), std::min(settings::lease_timeout / 5, 1000));
            return false;
        }

        bool mine = text_of(link_.reply(lease_reply)).ends_with(instance_);
        sink_marker seen;
        bool marked = parse(marker, seen);
        position at = seen.at;
        int64 repairs = seen.repairs;
        bool was_used = cursor_.ms > 0;
        // Fewer repairs than we have made: they are lost, though the position is the same.
        healing_ = was_used && (!marked || at < cursor_ || repairs < repairs_);
        bool ahead = false;
        if (marked && at.ms > 0 && at > cursor_) {
            begin_transaction();
            tick there;
            bool found = first_tick_after(sink_id_, at.ms - 1, there) && there.ms == at.ms;
            // with the clock behind, a tick may have been given the ms of the one that the marker carries
            ahead = !found || (seen.tick.ms != 0 && !is_same(there, seen.tick));
            commit_transaction();
            bool restored = false;
            if (!found && !restore_tick(seen, restored))
                return false;
            ahead = ahead && !restored;
        }
        // With a marker that was deleted went the tick that it may have carried when this server crashed.
        bool bereft = !marked && first && loaded_ms_ > 0 && sink_.used;
        if (ahead || bereft) {
            if (!(ahead ? match_entries_of_others(cursor_.ms, cursor_)
                        : match_entries_of_others(loaded_ms_ + 1, {loaded_ms_, PG_INT64_MAX})))
                return false;
            last_ms_ = std::max(last_ms_, at.ms);
        }

        // What may be in Redis already, and from where on is sent again.
        position from = cursor_;
        heal_from_ = cursor_;
        // Without a marker, or in the middle of healing, it could be anything that was ever in a tick; of a sink that never had
        // one, nothing.
        believed_ = ahead || (!marked && !sink_.used) ? cursor_ : marked && !healing_ ? at : position{recorded_ms_, PG_INT64_MAX};
        covered_ = marked ? at : position{};
        // Another server may have known of a held stream what this one does not: then from the cursor on.
        doubt_from_ = marked && !ahead && mine ? std::max(cursor_, position{at.ms, std::max<int64>(-1, at.n - seen.in_doubt)})
                                               : cursor_;
        if (!look_at_streams() || (healing_ && !look_for_tails()))
            return false;
        // What the marker covers is there, but for what was released behind it.
        if (healing_)
            from = !marked ? heal_from_ : repairs >= repairs_ ? at : std::min(at, heal_from_);
        from = std::max(from, sink_.before_start()); // what is before it was never there
        if (healing_ && from >= cursor_)
            healing_ = false; // the marker alone was gone
        position claimed = ahead ? cursor_ : healing_ ? from : marked ? at : cursor_;

        present_upto_ = marked && !ahead && !healing_ ? doubt_from_ : position{};
        OUTBOX_CRASH_POINT("marker_not_taken");
        bool refused = false;
        if (!take_over(claimed, std::max(from, present_upto_), refused)) {
            if (refused)
                continue;
            return false;
        }
        OUTBOX_CRASH_POINT("marker_taken");
        if (!sink_.used) {
            begin_transaction();
            state::set_used(sink_id_);
            commit_transaction();
            sink_.used = true;
        }
        marker_ = claimed;
        repairs_ = std::max(repairs_, repairs);
        accept_look();
        if (sink_.take_over) {
            begin_transaction();
            state::clear_take_over(sink_id_);
            commit_transaction();
            sink_.take_over = false;
        }
        if (healing_) {
            heal_until_ = std::max(heal_until_, cursor_);
            forget_lost_places();
            ereport(WARNING,
                    errmsg("Redis at \"%s\" has lost entries of sink \"%s\"; they are appended again", link_.endpoint(),
                           sink_.name),
                    errdetail("It had confirmed everything up to %lld-%lld and is now at %lld-%lld.",
                              static_cast<long long>(cursor_.ms), static_cast<long long>(std::max<int64>(cursor_.n, 0)),
                              static_cast<long long>(from.ms), static_cast<long long>(std::max<int64>(from.n, 0))),
                    errhint("Consumer groups may have to be created again. To lose less, use Redis' append-only file."));
        }
        doubt_confirmation(from);
        cursor_ = from;
        passed_ms_ = std::max(from.ms > 0 ? from.ms - 1 : 0, sink_.start.ms - 1);
        batch_open_ = false;
        settled_count_ = 0;
        return true;
    }
    link_.fail("the marker changes all the time");
    return false;
}

} // namespace outbox

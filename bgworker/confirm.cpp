// The confirm level of a sink. With more than Redis' memory asked for, an event counts as published only when WAIT or WAITAOF says
// that its entry is that safe: what is told of the cursor, what is written down, what flush() waits for and what retention may drop
// goes by confirmed(). What is to be sent goes by cursor_, which is ahead of it, so that nothing is sent twice for want of a replica.
//
// WAIT blocks the connection, so it is sent between two chunks, for all chunks since the last time. The answer is about what this
// connection has written: after each connect that is the marker, and with it everything that was in Redis before. GET behind it shows
// that Redis still has that: a server that became a replica, took other data over and became a primary again on the same connection
// would answer by offsets that mean something else.
//
// A crash, or a lost connection, leaves confirmed() where it was. The marker in Redis is ahead of it then, and reconciliation goes on
// from there; the next WAIT covers it all.

#include "bgworker/dispatcher.hpp"
#include "common/resp.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"

#include "extension/guard.hpp"

namespace outbox {

constexpr int max_unconfirmed_chunks = 1024;
constexpr int shortest_window = 20;           // ms of work that one WAIT is for, at least
constexpr int shortage_interval = 60000;      // ms between two log lines about it

using shared::worker_state;

position dispatcher::confirmed() const { return unconfirmed_ == 0 ? cursor_ : safe_; }

int64 dispatcher::confirmed_passed() const { return unconfirmed_ == 0 ? passed_ms_ : safe_passed_ms_; }

// What is appended from here on is not confirmed before the next WAIT. Before the cursor moves.
void dispatcher::note_unconfirmed() {
    if (sink_.confirm.is_memory() || unconfirmed_++ > 0)
        return;
    unconfirmed_since_ = steady_now();
    safe_ = cursor_;
    safe_passed_ms_ = passed_ms_;
}

// After a connect, before the cursor is set: nothing new is sent before all that is in Redis is confirmed.
void dispatcher::doubt_confirmation(position from) {
    position known = confirmed();
    if (sink_.confirm.is_memory()) {
        unconfirmed_ = 0;
        return;
    }
    if (unconfirmed_ == 0)
        note_unconfirmed();
    safe_ = std::max(std::min(known, from), sink_.before_start());
    safe_passed_ms_ = std::max(safe_.ms > 0 ? safe_.ms - 1 : 0, sink_.start.ms - 1);
    asking_since_ = steady_now();
    falls_short_ = false;
}

// Slow replicas, or a disk that is written to once a second, may take half of the time, but not more.
bool dispatcher::confirmation_is_due() const {
    if (unconfirmed_ == 0)
        return false;
    return asking_since_ != 0 || unconfirmed_ >= max_unconfirmed_chunks || (flush_asked_ != 0 && passed_ms_ >= flush_ms_) ||
           TimestampDifferenceExceeds(unconfirmed_since_, steady_now(), confirm_window_);
}

// Before anything is sent: can this server, and may this user, say what is asked for?
bool dispatcher::ask_level() {
    if (sink_.confirm.is_memory())
        return true;
    cpp_call([&] {
        commands_->clear();
        if (sink_.confirm.fsync)
            resp::append(*commands_, "WAITAOF", "1", "0", "1");
        else
            resp::append(*commands_, "WAIT", "0", "1");
    });
    if (!link_.ask(*commands_, 1))
        return false;
    const redisReply &answer = link_.reply(0);
    if (answer.type != REDIS_REPLY_ERROR)
        return true;
    bool lacks = sink_.confirm.fsync && strncmp(answer.str, "ERR", 3) == 0;
    link_.fail(lacks ? psprintf("entries cannot be confirmed with WAITAOF: %s", answer.str) : pstrdup(answer.str));
    return false;
}

static const char *command_of(const confirm_level &level) { return level.fsync ? "WAITAOF" : "WAIT"; }

// Asks once. `sent::again`: it is not that safe yet.
sent dispatcher::confirm() {
    if (lease_is_due() && !renew_lease())
        return sent::lost;
    const confirm_level &level = sink_.confirm;
    // The lease has to be renewed between two questions; a replica that lags by more than half of it cannot be waited for.
    int longest = settings::lease_timeout / 2;
    int timeout = std::min(confirm_timeout_ > 0 ? confirm_timeout_ : std::min(settings::lease_timeout / 5, 1000), longest);
    cpp_call([&] {
        commands_->clear();
        std::string limit = std::to_string(timeout);
        if (level.fsync)
            resp::append(*commands_, "WAITAOF", "1", "0", limit);
        else
            resp::append(*commands_, "WAIT", std::to_string(level.replicas), limit);
        resp::append(*commands_, "GET", marker_key_);
    });
    TimestampTz asked_at = steady_now();
    if (!link_.send(*commands_) || !link_.receive(2, timeout))
        return sent::lost;
    int took = static_cast<int>(TimestampDifferenceMilliseconds(asked_at, steady_now()));
    const redisReply &answer = link_.reply(0), &marker = link_.reply(1);
    for (const redisReply *each : {&answer, &marker})
        if (each->type == REDIS_REPLY_ERROR) {
            link_.fail(pstrdup(each->str));
            return sent::lost;
        }
    if (marker.type != REDIS_REPLY_STRING || strcmp(marker.str, marker_text_) != 0) {
        link_.fail(changed_marker);
        reconnect_at_once_ = true;
        return sent::lost;
    }
    const redisReply &count = level.fsync && answer.type == REDIS_REPLY_ARRAY && answer.elements > 0 ? *answer.element[0] : answer;
    if (count.type != REDIS_REPLY_INTEGER) {
        link_.fail(psprintf("unexpected reply to %s", command_of(level)));
        return sent::lost;
    }
    if (count.integer < (level.fsync ? 1 : level.replicas)) {
        confirm_timeout_ = std::min(timeout * 2, longest);
        if (took < timeout / 2)
            link_.wait_for_latch(timeout - took, waiting_for::confirmation);
        fall_short(count.integer);
        return sent::again;
    }
    confirm_timeout_ = 0;
    confirm_window_ = std::clamp(took, shortest_window, longest);
    accept_confirmation();
    return sent::good;
}

// All that was sent is as safe as it was asked to be.
void dispatcher::accept_confirmation() {
    unconfirmed_ = 0;
    asking_since_ = 0;
    unsaved_ = true;
    stats_.confirmed_at = GetCurrentTimestamp();
    if (releases_unconfirmed_) {
        begin_transaction();
        HASH_SEQ_STATUS scan;
        hash_seq_init(&scan, streams_);
        while (auto *stream = static_cast<stream_state *>(hash_seq_search(&scan)))
            if (stream->unconfirmed_from.ms != 0) {
                stream->unconfirmed_from = {};
                save_stream(*stream);
            }
        commit_transaction();
        releases_unconfirmed_ = false;
    }
    if (falls_short_) {
        falls_short_ = false;
        told_short_at_ = 0;
        ereport(LOG, errmsg("the entries of sink \"%s\" are confirmed again", sink_.name));
        set_state(interrupted_); // healing ends by itself
    }
    publish();
}

// Nothing more is sent until it is made up for, and nothing is sent again. For a moment it need not be told.
void dispatcher::fall_short(int64 count) {
    TimestampTz now = steady_now();
    if (asking_since_ == 0)
        asking_since_ = now;
    record_backlog_tick();
    if (!TimestampDifferenceExceeds(asking_since_, now, settings::response_timeout))
        return;
    if (!falls_short_) {
        ++stats_.errors;
        checkpoint(); // the next one may be far
    }
    falls_short_ = true;
    if (sink_.confirm.fsync)
        strlcpy(stats_.last_error, "Redis has not written the entries to its disk", sizeof stats_.last_error);
    else
        pg_snprintf(stats_.last_error, sizeof stats_.last_error, "%lld of %d replicas have the entries",
                    static_cast<long long>(count), sink_.confirm.replicas);
    stats_.last_error_at = GetCurrentTimestamp();
    if (stats_.state != worker_state::unconfirmed)
        interrupted_ = stats_.state;
    set_state(worker_state::unconfirmed);
    publish();
    if (told_short_at_ != 0 && !TimestampDifferenceExceeds(told_short_at_, now, shortage_interval))
        return;
    told_short_at_ = now;
    ereport(WARNING,
            errmsg("entries of sink \"%s\" are not confirmed by Redis at \"%s\": %s", sink_.name, link_.endpoint(),
                   stats_.last_error),
            errdetail("They are in Redis' memory. Nothing more is sent until they are confirmed; events wait in the database."),
            sink_.confirm.fsync
                ? errhint("Check Redis' disk and its setting appendfsync. To ask for less: SELECT outbox.alter_sink('%s', confirm => 'memory').",
                          sink_.name)
                : errhint("Check Redis' replicas with INFO replication. To ask for less: SELECT outbox.alter_sink('%s', confirm => 'memory').",
                          sink_.name));
}

// As it is written down: a held stream whose release is not confirmed yet is still held from where it was.
void dispatcher::save_stream(const stream_state &stream) {
    if (stream.unconfirmed_from.ms == 0) {
        state::save_stream(sink_id_, stream);
        return;
    }
    stream_state shown = stream;
    if (!stream.held || stream.unconfirmed_from < stream.held_from) {
        shown.held = true;
        shown.held_from = stream.unconfirmed_from;
        shown.attempts = 0;
        if (shown.retry_at == 0)
            shown.retry_at = GetCurrentTimestamp();
    }
    state::save_stream(sink_id_, shown);
}

} // namespace outbox

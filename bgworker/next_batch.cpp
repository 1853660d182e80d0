// Which batch is next: that of a tick which is recorded, or what has committed since the last one, for which a tick is recorded now.

#include "bgworker/dispatcher.hpp"

#include "bgworker/worker.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"

#include "extension/guard.hpp"

extern "C" {
#include "access/xlog.h"
}

namespace outbox {

constexpr int ticks_at_once = 4; // without lingering, after a rest

// Records where the batch of everything that committed since the last tick ends, and opens that batch. False when there is nothing.
bool dispatcher::record_tick(bool only_when_full) {
    begin_transaction();
    lock_ticks(sink_id_);
    PushActiveSnapshot(GetLatestSnapshot());
    // whatever the snapshot sees was in the log before
    XLogRecPtr sees_upto = GetXLogInsertRecPtr();
    tick recorded;
    recorded.ms = next_ms();
    recorded.anchor = storage::anchor();
    recorded.seq = storage::last_seq(storage::require());
    recorded.snapshot = active_snapshot();
    if (last_snapshot_ && FullTransactionIdPrecedes(recorded.snapshot->xmax, last_snapshot_->xmax))
        elog(ERROR, "snapshot of a tick is older than that of its predecessor");
    bool wanted;
    if (only_when_full) {
        wanted = recorded.seq - recorded_seq_ >= settings::batch_size;
    } else {
        reader_.open(recorded, last_snapshot_);
        wanted = reader_.probe();
    }
    if (wanted) {
        insert_tick(sink_id_, recorded, confirmed());
        carry(recorded, only_when_full ? InvalidXLogRecPtr : sees_upto);
        remember_tick(recorded);
    }
    PopActiveSnapshot();
    // Nobody waits for it to reach the disk: see make_durable(). Not by SET LOCAL, which costs a walk over all settings.
    synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
    commit_transaction();
    synchronous_commit = SYNCHRONOUS_COMMIT_ON; // as in pin_settings(); an error ends the process
    if (!wanted)
        return false;
    tick_end_ = XactLastCommitEnd;
    OUTBOX_CRASH_POINT("tick_recorded");
    paced_until_ = TimestampTzPlusMilliseconds(std::max(paced_until_, steady_now()), settings::linger);
    return true;
}

// The next batch of our own begins where that of `newest` ends.
void dispatcher::begin_behind(const tick &newest) {
    if (last_snapshot_)
        pfree(last_snapshot_);
    Size size = VARSIZE(newest.snapshot);
    last_snapshot_ = static_cast<stored_snapshot *>(MemoryContextAlloc(batches_, size));
    memcpy(static_cast<void *>(last_snapshot_), static_cast<const void *>(newest.snapshot), size);
    last_snapshot_ms_ = newest.ms;
}

void dispatcher::remember_tick(const tick &newest) {
    last_ms_ = std::max(last_ms_, newest.ms);
    recorded_ms_ = newest.ms;
    recorded_seq_ = newest.seq;
    begin_behind(newest);
}

// While the sink is down or paused, so that what piles up drains in batches of a bounded size.
void dispatcher::record_backlog_tick() {
    if (!memory_loaded_ ||
        !TimestampDifferenceExceeds(backlog_checked_at_, steady_now(), settings::poll_interval))
        return;
    backlog_checked_at_ = steady_now();
    record_tick(true);
}

// Opens the next batch: of a tick that was recorded before, or of a new one.
bool dispatcher::next_batch() {
    if (recorded_ms_ > passed_ms_) {
        begin_transaction();
        tick next;
        bool found = first_tick_after(sink_id_, passed_ms_, next);
        if (found) {
            reader_.open(next, predecessor(sink_id_, next).snapshot);
            if (next.ms == cursor_.ms && cursor_.n >= 0) {
                reader_.begin();
                event_row event;
                while (reader_.where().n < cursor_.n && reader_.next(event)) {
                }
                reader_.end();
            }
        }
        commit_transaction();
        batch_open_ = found;
        if (found)
            return true;
    }
    // Many small ticks would compete with the database for its cores and its log. A few that follow a rest do not wait.
    TimestampTz allowed = TimestampTzPlusMilliseconds(paced_until_, -ticks_at_once * settings::linger);
    if (int rest = static_cast<int>(TimestampDifferenceMilliseconds(steady_now(), allowed)); rest > 0)
        WaitLatch(nullptr, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, rest, wait_event(waiting_for::linger));
    uint64 asked = pg_atomic_read_u64(&slot_->flush_requested);
    // A commit that this tick does not see shall end the rest that follows when there is none to send, but not the wait for
    // Redis' answers.
    shared::listen(slot_, true);
    batch_open_ = record_tick(false);
    if (batch_open_)
        shared::listen(slot_, false);
    if (asked > pg_atomic_read_u64(&slot_->flush_done)) {
        flush_asked_ = asked;
        flush_ms_ = batch_open_ ? recorded_ms_ : passed_ms_;
        answer_flush();
    }
    return batch_open_;
}

// Everything that was committed when flush() was called is in the batches up to flush_ms_.
void dispatcher::answer_flush() {
    if (flush_asked_ == 0 || confirmed_passed() < flush_ms_ || held_streams_ > 0 || releases_unconfirmed_)
        return;
    publish(); // who waits shall see it in the views, too
    pg_atomic_write_u64(&slot_->flush_done, flush_asked_);
    flush_asked_ = 0;
}

} // namespace outbox

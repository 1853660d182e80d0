// A tick that is on its way to the disk. What is sent must be durable, and it mostly is when the tick is taken: its transactions
// have waited for the log themselves, so XLogFlush() has nothing to do. The tick's own record would be a second wait. Until it is
// durable, by whatever flushes the log next, the marker carries the tick: it is in Redis if and only if something of its batch is.
//
// A crash that takes the tick leaves all that it sees. The database then has the log up to where it was when the tick's snapshot
// was taken: every commit that it sees, and the end of every transaction below its xmax that it does not see as running. So no xid
// below xmax is given out a second time, what was running is either committed after it or never, and the snapshot means what it
// meant. The worker records it again from the marker before it does anything else.
//
// Where synchronous standbys are asked for, or many transactions run, the tick itself is made durable first.

#include "bgworker/dispatcher.hpp"
#include "bgworker/entry.hpp"
#include "extension/storage.hpp"

#include "extension/guard.hpp"

extern "C" {
#include "access/timeline.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "replication/syncrep.h"
}

namespace outbox {

// A tick that was just recorded; it sees nothing that is behind `sees_upto` in the log. Invalid: it is not to be carried.
void dispatcher::carry(const tick &recorded, XLogRecPtr sees_upto) {
    carried_.ms = 0;
    if (XLogRecPtrIsInvalid(sees_upto) || (SyncRepStandbyNames && *SyncRepStandbyNames) ||
        recorded.snapshot->nxip > max_carried_xids)
        return;
    // At the end of a page the place for the next record is behind a header that is not written yet.
    if (XLogSegmentOffset(sees_upto, wal_segment_size) == SizeOfXLogLongPHD || sees_upto % XLOG_BLCKSZ == SizeOfXLogShortPHD)
        sees_upto -= sees_upto % XLOG_BLCKSZ;
    carried_.ms = recorded.ms;
    carried_.previous = last_snapshot_ms_;
    carried_.anchor = recorded.anchor;
    carried_.seq = recorded.seq;
    carried_.timeline = GetWALInsertionTimeLine();
    carried_.log_end = sees_upto;
    carried_.xmin = U64FromFullTransactionId(recorded.snapshot->xmin);
    carried_.xmax = U64FromFullTransactionId(recorded.snapshot->xmax);
    carried_.nxip = static_cast<int>(recorded.snapshot->nxip);
    for (int i = 0; i < carried_.nxip; ++i)
        carried_.xip[i] = U64FromFullTransactionId(recorded.snapshot->xip[i]);
}

// To the disk, and to the synchronous standbys, if there are any now.
void dispatcher::flush(XLogRecPtr upto) {
    XLogFlush(upto);
    HOLD_INTERRUPTS();
    SyncRepWaitForLSN(upto, true);
    RESUME_INTERRUPTS();
    heed_end();
}

// Before any EXEC. The tick that its marker has to carry, null when every tick is durable. A tick that another process recorded is
// covered by what this one has written durably before it took the sink over; one that was carried before, by the flush for the
// next one.
const carried_tick *dispatcher::make_durable(int64 marker_ms) {
    if (XLogRecPtrIsInvalid(tick_end_))
        return nullptr;
    if (carried_.ms != 0 && carried_.ms == marker_ms) {
        flush(carried_.log_end);
        if (GetFlushRecPtr(nullptr) < tick_end_)
            return &carried_;
    } else {
        flush(tick_end_);
    }
    carried_.ms = 0;
    tick_end_ = InvalidXLogRecPtr;
    return nullptr;
}

static const stored_snapshot *snapshot_of(const carried_tick &carried) {
    Size size = offsetof(stored_snapshot, xip) + sizeof(FullTransactionId) * static_cast<Size>(carried.nxip);
    auto *snapshot = static_cast<stored_snapshot *>(palloc0(size));
    SET_VARSIZE(snapshot, size);
    snapshot->nxip = static_cast<uint32>(carried.nxip);
    snapshot->xmin = FullTransactionIdFromU64(carried.xmin);
    snapshot->xmax = FullTransactionIdFromU64(carried.xmax);
    for (int i = 0; i < carried.nxip; ++i)
        snapshot->xip[i] = FullTransactionIdFromU64(carried.xip[i]);
    return snapshot;
}

// Is the log up to the tick part of our own? Not where a promotion or a restore went another way before it.
static bool has_log_of(const carried_tick &carried) {
    return carried.log_end <= GetXLogInsertRecPtr() &&
           tliOfPointInHistory(carried.log_end - 1, readTimeLineHistory(GetWALInsertionTimeLine())) == carried.timeline;
}

// Records a tick that the marker carries and that is not here. False when Redis is lost; without `restored`, the tick is not ours.
bool dispatcher::restore_tick(const sink_marker &seen, bool &restored) {
    restored = false;
    if (seen.tick.ms == 0)
        return true;
    begin_transaction();
    const tick lost = {seen.tick.ms, seen.tick.anchor, seen.tick.seq, snapshot_of(seen.tick)};
    const tick before = predecessor(sink_id_, lost);
    tick after;
    bool found = false; // the last event up to the marker's position that was to be sent
    stream_state *stream = nullptr;
    position last;
    pg_uuid_t id;
    if (lost.anchor == storage::anchor() && has_log_of(seen.tick) && state::knows_incarnation(sink_id_, seen.incarnation) &&
        before.ms == seen.tick.previous && (!before.snapshot || before.snapshot->precedes(*lost.snapshot)) &&
        (!first_tick_after(sink_id_, lost.ms, after) ||
         (after.anchor == lost.anchor && lost.snapshot->precedes(*after.snapshot)))) {
        reader_.open(lost, before.snapshot);
        reader_.begin();
        const sinks::filter *filter = filters_.at(lost.ms);
        event_row event;
        while (reader_.where().n < seen.at.n && reader_.next(event))
            if (event.is_for(sink_id_, filter)) {
                if (filter && filter->transform_function().name) {
                    MemoryContext old = MemoryContextSwitchTo(event_);
                    reader_.load(event);
                    bool given = transform::apply(filter->transform_function(), event, true).what == transform::outcome::given;
                    MemoryContextSwitchTo(old);
                    MemoryContextReset(event_);
                    if (!given)
                        continue;
                }
                stream = stream_of(event.topic);
                last = {lost.ms, event.n};
                id = *event.event_id;
                found = true;
            }
        reader_.end();
    }
    commit_transaction();
    if (!found)
        return true;

    // A copy of the files that was put back has a history of its own under the same names. Then the last event is another one: it
    // is not there, or its stream never came so far. (One that was trimmed or deleted since has left that behind.)
    cpp_call([&] {
        char text[position_text_size];
        std::string_view at(text, print(last, text));
        commands_->clear();
        append_xrange(*commands_, stream->name(), at, at, 1, naming_);
        append_xinfo(*commands_, stream->name(), naming_);
    });
    if (!link_.ask(*commands_, 2) || is_sinks_fault(link_.reply(0)) || is_sinks_fault(link_.reply(1)))
        return false;
    const redisReply &page = link_.reply(0);
    pg_uuid_t there;
    bool ours = page.type == REDIS_REPLY_ARRAY && page.elements == 1
                    ? read_event_id(*page.element[0], there.data) && memcmp(there.data, id.data, UUID_LEN) == 0
                    : read_stream_info(link_.reply(1)).last >= last;
    if (!ours)
        return true;

    begin_transaction();
    lock_ticks(sink_id_);
    tick again = lost;
    again.snapshot = snapshot_of(seen.tick);
    PushActiveSnapshot(GetLatestSnapshot());
    bool is_past = again.snapshot->precedes(*active_snapshot());
    PopActiveSnapshot();
    if (!is_past) {
        commit_transaction();
        return true;
    }
    insert_tick(sink_id_, again, confirmed());
    if (again.ms > recorded_ms_)
        remember_tick(again);
    commit_transaction(); // durably
    last_ms_ = std::max(last_ms_, again.ms);
    restored = true;
    ereport(LOG, errmsg("sink \"%s\" has its last batch from Redis' marker: a crash came before it was on the disk", sink_.name));
    return true;
}

} // namespace outbox

// What a sink's worker knows from the database when it begins, and what it writes down there for the next one.

#include "bgworker/dispatcher.hpp"

#include "bgworker/worker.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/storage.hpp"

#include "extension/guard.hpp"

extern "C" {
#include "common/hashfn.h"
}

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace outbox {

// Which server this is, as far as a clone of it differs: its host, its boot and its data directory.
static void print_instance(char *text, Size size) {
    struct {
        uint64 system_identifier;
        Oid database;
        dev_t device;
        ino_t inode;
        char host[64];
        char boot[40];
    } parts;
    memset(static_cast<void *>(&parts), 0, sizeof parts);
    parts.system_identifier = GetSystemIdentifier();
    parts.database = MyDatabaseId;
    struct stat status;
    if (stat(DataDir, &status) == 0) {
        parts.device = status.st_dev;
        parts.inode = status.st_ino;
    }
    gethostname(parts.host, sizeof parts.host - 1);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t count = read(fd, parts.boot, sizeof parts.boot - 1);
        if (count < 0)
            parts.boot[0] = '\0';
        close(fd);
    }
    uint64 hash = hash_bytes_extended(reinterpret_cast<unsigned char *>(&parts), sizeof parts, 0);
    pg_snprintf(text, size, "%016llx", static_cast<unsigned long long>(hash));
}

// The sink's row. False while there is nothing to do for it: the default sink has no row before the first event.
bool dispatcher::load_sink() {
    char known[sizeof sink_.uuid];
    strlcpy(known, sink_.uuid, sizeof known);
    begin_transaction();
    bool found = state::load_sink(sink_id_, sink_);
    if (!found && sink_id_ == default_sink && state::has_native_events()) {
        state::keep_default_sink();
        CommandCounterIncrement();
        found = state::load_sink(sink_id_, sink_);
    }
    if (found) {
        MemoryContextReset(definition_);
        filters_.load(sink_id_, definition_);
        filter_ = nullptr;
        naming_ = sink_.naming();
    }
    commit_transaction();
    if (*known && (!found || strcmp(known, sink_.uuid) != 0))
        start_afresh("the sink was restored from elsewhere");
    if (!found && sink_id_ != default_sink) {
        ereport(LOG, errmsg("outbox worker for database %u ends: sink %d was dropped", MyDatabaseId, sink_id_));
        shared::release(slot_);
        proc_exit(0);
    }
    if (!found)
        return false;
    // With the row of this sink, those of others may have come from a dump.
    if (!*known && sink_id_ == default_sink)
        shared::look_for_sinks(MyDatabaseId);
    sink_known_ = true;
    pg_snprintf(marker_key_, sizeof marker_key_, "outbox:sink:%s", sink_.uuid);
    pg_snprintf(lease_key_, sizeof lease_key_, "outbox:sink:%s:lease", sink_.uuid);
    pg_snprintf(client_name_, sizeof client_name_, "outbox:%s", sink_.uuid);
    if (!*instance_)
        print_instance(instance_, sizeof instance_);
    return true;
}

// What an earlier worker left.
void dispatcher::load_memory() {
    storage::forget_here(); // a dump fills the ring without a word
    begin_transaction();
    state::keep_ring();
    cursor_ = saved_ = state::load_checkpoint(sink_id_);
    state::load_streams(
        sink_id_,
        [](void *self, const stream_state &loaded) {
            auto *own = static_cast<dispatcher *>(self);
            stream_state *stream = own->stream_of(loaded.name());
            *stream = loaded;
            own->held_streams_ += loaded.held ? 1 : 0;
            own->repairs_ = std::max(own->repairs_, loaded.released);
        },
        this);
    state::load_settled(
        sink_id_, [](void *self, const state::event_key &key) { static_cast<dispatcher *>(self)->settle(key); }, this);
    any_moves_ = state::has_moves(sink_id_);
    last_ms_ = state::highest_ms(sink_id_);
    commit_transaction();
    close_foreign_anchors();

    begin_transaction();
    tick last;
    if (last_tick_before(sink_id_, no_tick, last)) {
        recorded_ms_ = last.ms;
        recorded_seq_ = last.anchor == storage::anchor() ? last.seq : 0;
        if (last.anchor != storage::anchor())
            last = predecessor(sink_id_, {no_tick, storage::anchor(), 0, nullptr});
        if (last.snapshot)
            begin_behind(last);
    }
    loaded_ms_ = recorded_ms_;
    commit_transaction();
    passed_ms_ = std::max(cursor_.ms > 0 ? cursor_.ms - 1 : 0, sink_.start.ms - 1);
    unsaved_ = true; // retention goes by a checkpoint of our own
    memory_loaded_ = true;
}

// Events that came with a dump carry transaction ids of another cluster. One tick closes them: its batch is what the old cluster
// had not put into a tick yet. It comes before the first tick of our own.
void dispatcher::close_foreign_anchors() {
    begin_transaction();
    lock_ticks(sink_id_);
    state::load_foreign_anchors(
        [](void *self, int32 anchor, FullTransactionId end) {
            auto *own = static_cast<dispatcher *>(self);
            stored_snapshot closing = {};
            SET_VARSIZE(&closing, offsetof(stored_snapshot, xip));
            closing.xmin = closing.xmax = end;
            tick last = predecessor(own->sink_id_, {no_tick, anchor, 0, nullptr});
            if (last.snapshot && !FullTransactionIdPrecedes(last.snapshot->xmax, end) && last.snapshot->nxip == 0)
                return; // closed already
            own->last_ms_ = own->next_ms();
            insert_tick(own->sink_id_, {own->last_ms_, anchor, 0, &closing}, own->confirmed());
        },
        this);
    commit_transaction();
}

// Writes down how far the sink is. What is lost of it in a crash, Redis' marker knows.
void dispatcher::checkpoint() {
    if (!unsaved_ || confirmed().ms == 0 || confirmed() < heal_until_)
        return;
    begin_transaction();
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, streams_);
    while (auto *stream = static_cast<stream_state *>(hash_seq_search(&scan)))
        if (stream->dirty) {
            save_stream(*stream);
            stream->dirty = false;
        }
    state::save_checkpoint(sink_id_, confirmed());
    saved_ = confirmed();
    commit_transaction();
    OUTBOX_CRASH_POINT("cursor_written");
    saved_at_ = steady_now();
    unsaved_ = false;
    pgstat_report_stat(true);
}

} // namespace outbox

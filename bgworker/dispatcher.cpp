// The loop of one sink: record a tick, read its batch, append it, confirm it, wait for the next. On an error that is not Redis'
// the process ends, and the launcher starts another.

#include "bgworker/dispatcher.hpp"

#include "bgworker/backoff.hpp"
#include "bgworker/reply.hpp"
#include "bgworker/worker.hpp"
#include "common/crash_point.hpp"
#include "extension/clock.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"

#include "extension/guard.hpp"

extern "C" {
#include "access/xlog.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
}

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace outbox {

constexpr int checkpoint_interval = 5000; // ms, while events flow
constexpr int ticks_at_once = 4;          // without lingering, after a rest
constexpr int complaint_interval = 60000; // ms between two log lines about the same trouble

using shared::worker_state;

dispatcher::dispatcher(shared::slot *slot, int sink_id) : slot_(slot), sink_id_(sink_id) {
    round_ = AllocSetContextCreate(TopMemoryContext, "outbox round", ALLOCSET_DEFAULT_SIZES);
    definition_ = AllocSetContextCreate(TopMemoryContext, "outbox sink", ALLOCSET_DEFAULT_SIZES);
    batches_ = AllocSetContextCreate(TopMemoryContext, "outbox batch", ALLOCSET_DEFAULT_SIZES);
    event_ = AllocSetContextCreate(TopMemoryContext, "outbox event", ALLOCSET_DEFAULT_SIZES);
    looks_ = AllocSetContextCreate(TopMemoryContext, "outbox look at streams", ALLOCSET_DEFAULT_SIZES);
    reader_.init(batches_);
    hold_reader_.init(batches_);
    cpp_call([this] {
        commands_ = new std::string;
        for (chunk *each : {&chunks_[0], &chunks_[1], &hold_chunk_})
            each->commands = new std::string, each->answers = new std::string, each->answer = new std::string;
    });
    stats_.since = GetCurrentTimestamp();
    measured_at_ = stats_.since;

    HASHCTL control = {};
    control.keysize = sizeof(stream_state::topic);
    control.entrysize = sizeof(stream_state);
    streams_ = hash_create("outbox streams", 64, &control, HASH_ELEM | HASH_BLOBS);
    control.keysize = control.entrysize = sizeof(state::event_key);
    settled_ = hash_create("outbox settled events", 64, &control, HASH_ELEM | HASH_BLOBS);
}

// The next ms that is free: never one in use, also when the clock goes back.
int64 dispatcher::next_ms(int64 above) const { return std::max({last_ms_ + 1, unix_ms(GetCurrentTimestamp()), above + 1}); }

// What this process remembers belongs to a sink that is no more. The launcher starts another.
void dispatcher::start_afresh(const char *reason) {
    ereport(LOG, errmsg("outbox worker for database %u starts afresh: %s", MyDatabaseId, reason));
    proc_exit(0);
}

void dispatcher::begin_transaction() {
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    const storage::relations *relations = storage::find();
    if (relations) {
        // DROP EXTENSION locks this first: it waits for us or we for it, but never both.
        LockDatabaseObject(ExtensionRelationId, relations->extension, 0, AccessShareLock);
        relations = storage::find();
    }
    if (relations && relations->fit != version::fit::same) {
        AbortCurrentTransaction();
        start_afresh("the extension has another version now");
    }
    if (relations && (extension_ == InvalidOid || extension_ == relations->extension)) {
        extension_ = relations->extension;
        return;
    }
    AbortCurrentTransaction();
    if (relations)
        start_afresh("the extension was created anew");
    ereport(LOG, errmsg("outbox worker for database %u ends: the extension was dropped", MyDatabaseId));
    shared::release(slot_);
    proc_exit(0);
}

void dispatcher::commit_transaction() {
    CommitTransactionCommand();
    MemoryContextSwitchTo(round_);
    heed_end();
}

// The wait for a synchronous standby may have been cut short by the signal to end, or by the end of the server: go no further then.
void dispatcher::heed_end() {
    if (ProcDiePending)
        InterruptPending = true;
    CHECK_FOR_INTERRUPTS();
}

void dispatcher::set_state(worker_state state) {
    if (stats_.state == state)
        return;
    stats_.state = state;
    stats_.since = GetCurrentTimestamp();
    show();
    shared::publish(slot_, stats_);
}

// In the process title, and in pg_stat_activity: which sink, its state, how far it is.
void dispatcher::show() {
    char text[NAMEDATALEN + 128], at[position_text_size] = "";
    if (confirmed().ms > 0)
        print({confirmed().ms, std::max<int64>(confirmed().n, 0)}, at);
    const bool named = *sink_.name != '\0';
    pg_snprintf(text, sizeof text, "%s%s%s%s%s%s", named ? "sink " : "", sink_.name, named ? " " : "", shared::name_of(stats_.state),
                *at ? " at " : "", at);
    set_ps_display(text);
    bool works = stats_.state == worker_state::streaming || stats_.state == worker_state::healing;
    pgstat_report_activity(works ? STATE_RUNNING : STATE_IDLE, text);
}

void dispatcher::publish() {
    TimestampTz now = GetCurrentTimestamp();
    if (TimestampDifferenceExceeds(measured_at_, now, 1000)) {
        stats_.throughput = static_cast<double>(stats_.published - measured_published_) * 1e6 /
                            static_cast<double>(now - measured_at_);
        measured_published_ = stats_.published;
        measured_at_ = now;
        if (confirmed() != shown_) {
            shown_ = confirmed();
            show();
        }
    }
    stats_.cursor_ms = confirmed().ms;
    stats_.cursor_n = confirmed().n;
    stats_.heals = confirmed() < heal_until_;
    stats_.tick_ms = batch_open_ ? reader_.current().ms : passed_ms_;
    stats_.passed_ms = confirmed_passed();
    shared::publish(slot_, stats_);
}

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

// Are the tables those of this library's version? If not, there is nothing to do but to wait until they are.
bool dispatcher::tables_fit() {
    StartTransactionCommand();
    // An update holds this until everybody can see what it has done. The signal that it is committed comes before that.
    if (Oid extension = get_extension_oid("outbox", true); OidIsValid(extension))
        LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
    const storage::relations *relations = storage::find();
    version::fit fit = relations ? relations->fit : version::fit::same; // begin_transaction() knows what to do without tables
    bool told = stats_.state == worker_state::wrong_version;
    if (fit != version::fit::same && !told) {
        const char *message = version::message(relations->version);
        strlcpy(stats_.last_error, message, sizeof stats_.last_error);
        stats_.last_error_at = GetCurrentTimestamp();
        ereport(WARNING, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                errmsg("outbox worker for database %u waits: %s", MyDatabaseId, message), errhint("%s", version::hint(fit)));
    }
    CommitTransactionCommand();
    MemoryContextSwitchTo(round_);
    if (fit != version::fit::same) {
        set_state(worker_state::wrong_version);
        return false;
    }
    if (told) {
        stats_.last_error[0] = '\0';
        stats_.last_error_at = 0;
        set_state(worker_state::connecting);
        ereport(LOG, errmsg("outbox worker for database %u begins: the extension was updated to version %s", MyDatabaseId,
                            version::of_library));
    }
    return true;
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

// The connection is lost, or Redis refuses to work. Logged once a minute.
void dispatcher::lose(const char *doing) {
    link_.close();
    batch_open_ = false;
    if (fenced_)
        return; // may_take_over() has said it all
    ++stats_.errors;
    full_ = std::string_view(link_.error()).starts_with("OOM");
    strlcpy(stats_.last_error, link_.error(), sizeof stats_.last_error);
    stats_.last_error_at = GetCurrentTimestamp();
    // At once, but not again and again.
    TimestampTz now = steady_now();
    bool at_once = reconnect_at_once_ && TimestampDifferenceExceeds(reconnected_at_, now, 1000);
    reconnect_at_once_ = false;
    if (at_once) {
        reconnected_at_ = now;
        ereport(LOG, errmsg("sink \"%s\" looks at Redis again: %s", sink_.name, link_.error()));
        publish();
        return;
    }
    ++failures_;
    int delay =
        backoff(failures_, settings::retry_min, settings::retry_max, pg_prng_double(&pg_global_prng_state));
    retry_at_ = TimestampTzPlusMilliseconds(steady_now(), delay);
    down_ = true;
    set_state(worker_state::backing_off);
    publish();
    if (complained_at_ != 0 &&
        !TimestampDifferenceExceeds(complained_at_, GetCurrentTimestamp(), complaint_interval))
        return;
    complained_at_ = GetCurrentTimestamp();
    ereport(WARNING,
            errmsg("%s Redis at \"%s\" for sink \"%s\": %s", doing, link_.endpoint(), sink_.name, link_.error()),
            errhint("%s", hint_for(link_.error(), sink_id_ == default_sink)));
}

bool dispatcher::connect() {
    reconnect_at_once_ = false;
    if (stats_.state != worker_state::fenced && !down_)
        set_state(worker_state::connecting);
    bool was_fenced = stats_.state == worker_state::fenced;
    if (!link_.open(client_name_, sink_.url)) {
        fenced_ = false;
        lose("could not connect to");
        return false;
    }
    OUTBOX_CRASH_POINT("connected");
    if (!ask_level() || (full_ && !make_room()) || !reconcile()) {
        lose("could not work with");
        return false;
    }
    if (down_ || was_fenced)
        ereport(LOG, errmsg("sink \"%s\" works again with Redis at \"%s\"", sink_.name, link_.endpoint()));
    slot_->served = true;
    look_count_ = look_place_ = 0;
    look_at_ = groups_due_ = redis_due_ = 0;
    trim_refusal_.until = look_refusal_.until = 0;
    down_ = full_ = false;
    failures_ = 0;
    complained_at_ = 0;
    set_state(cursor_ < heal_until_ ? worker_state::healing : worker_state::streaming);
    publish();
    return true;
}

// Everything that Redis had lost is there again, as far as it was retained.
void dispatcher::finish_healing() {
    int count;
    stream_state **streams = all_streams(count);
    for (int i = 0; i < count; ++i) {
        streams[i]->lost = false;
        streams[i]->tail = std::min(streams[i]->tail, streams[i]->top);
        streams[i]->dirty = true;
    }
    pfree(streams);
    unsaved_ = true;
    ereport(LOG, errmsg("sink \"%s\" is healed: Redis has again what it had confirmed", sink_.name));
}

// One piece of work. False when there was none.
bool dispatcher::dispatch() {
    if (!link_.check_idle() || (lease_is_due() && !batch_open_ && !renew_lease())) {
        lose("lost");
        return true;
    }
    if (confirmation_is_due()) {
        if (!batch_open_)
            turn_ring();
        if (confirm() == sent::lost)
            lose("lost");
        else
            answer_flush();
        return true;
    }
    if (stats_.state == worker_state::healing && cursor_ >= heal_until_) {
        finish_healing();
        set_state(worker_state::streaming);
    }
    if (stream_state *stream = due_hold()) {
        if (retry(*stream) == sent::lost)
            lose("lost");
        answer_flush();
        return true;
    }
    if (unsaved_ && TimestampDifferenceExceeds(saved_at_, steady_now(), checkpoint_interval))
        checkpoint();
    if (!batch_open_ && look_is_due() && !look_after_streams()) {
        lose("lost");
        return true;
    }
    if (!batch_open_) {
        turn_ring();
        if (!next_batch()) {
            if (unconfirmed_ == 0)
                return false;
            // With nothing more to send, there is nothing to wait for before asking.
            if (confirm() == sent::lost)
                lose("lost");
            else
                answer_flush();
            return true;
        }
    }
    set_state(cursor_ < heal_until_ ? worker_state::healing : worker_state::streaming);
    if (run_batch() == sent::lost)
        lose("lost");
    else
        answer_flush();
    return true;
}

// Until a commit, a signal or the socket wants something, but not longer.
void dispatcher::wait(int ms) {
    TimestampTz retry = link_.is_open() ? next_retry() : 0;
    if (retry != 0)
        ms = std::min(ms, static_cast<int>(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), retry)));
    if (sink_known_ && replays_ && !replayer_ && !sink_.paused && settings::enabled)
        ms = std::min(ms, static_cast<int>(TimestampDifferenceMilliseconds(steady_now(), replayer_at_)));
    if (link_.is_open()) {
        ms = std::min(ms, std::min(settings::lease_timeout / 5, 1000));
        if (stats_.state == worker_state::streaming && cursor_ >= heal_until_)
            ms = std::min(ms, static_cast<int>(TimestampDifferenceMilliseconds(steady_now(), look_at_)));
    }
    if (delivers_)
        // rounded up: a millisecond too early is a look for nothing
        ms = std::min(ms, static_cast<int>(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), shared::next_due(slot_))));
    link_.wait_for_latch(std::max(ms, 1), stats_.state == worker_state::backing_off ? waiting_for::retry : waiting_for::work);
}

void dispatcher::rest() {
    // Nothing has come for a while: what is known is written down, once.
    if (unsaved_ && TimestampDifferenceExceeds(stats_.confirmed_at, GetCurrentTimestamp(), 1000))
        checkpoint();
    publish();
    pgstat_report_stat(false);
    wait(settings::poll_interval);
}

void dispatcher::run() {
    for (;;) {
        CHECK_FOR_INTERRUPTS();
        MemoryContextReset(round_);
        MemoryContextSwitchTo(round_);
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            bool of_setting = sink_id_ == default_sink;
            char *const &password_file = of_setting ? settings::redis_password_file : settings::sink_password_file;
            char *url = pstrdup(settings::redis_url()), *file = pstrdup(password_file);
            ProcessConfigFile(PGC_SIGHUP);
            if ((of_setting && strcmp(url, settings::redis_url()) != 0) || strcmp(file, password_file) != 0) {
                link_.close(); // also an unclassified chunk is settled by reconciling
                batch_open_ = false;
                replayer_is_old_ = replayer_ != nullptr;
                complained_at_ = retry_at_ = 0;
            }
        }
        if (shared::take_reload(slot_)) {
            sink_known_ = false;
            retry_at_ = 0;
            replays_ = true;
        }
        if (!tables_fit_ && !(tables_fit_ = tables_fit())) {
            wait(settings::poll_interval);
            continue;
        }
        uint64 asked = pg_atomic_read_u64(&slot_->flush_requested);
        if (!sink_known_) {
            shared::listen(slot_, true); // to the first event of all
            shared::expect_no_due(slot_);
            looked_for_due_ = false;
        }
        if (!sink_known_ && !load_sink()) {
            pg_atomic_write_u64(&slot_->flush_done, asked); // nothing was ever emitted
            set_state(worker_state::idle);
            delivers_ = false;
            wait(settings::poll_interval);
            continue;
        }
        keep_replayer();
        bool restored = sink_.anchor != storage::anchor();
        delivers_ = !restored;
        if (restored) {
            looked_for_due_ = false;
        } else if (bool more = deliver_due(); !looked_for_due_) {
            // Before the first look at Redis: what a predecessor has moved and published is then known here as well, by its id.
            if (!more)
                wait(settings::poll_interval);
            continue;
        }
        if (restored || sink_.paused || !settings::enabled) {
            if (restored && stats_.state != worker_state::restored)
                ereport(LOG,
                        errmsg("sink \"%s\" is paused: this database was restored from a dump, copied or upgraded",
                               sink_.name),
                        errhint("If it is the real one, run SELECT outbox.resume('%s').", sink_.name));
            link_.close();
            batch_open_ = false;
            set_state(restored        ? worker_state::restored
                      : sink_.paused  ? worker_state::paused
                                      : worker_state::disabled);
            if (!restored) {
                if (!memory_loaded_)
                    load_memory();
                record_backlog_tick();
                checkpoint();
                turn_ring();
            }
            wait(settings::poll_interval);
            continue;
        }
        if (!memory_loaded_)
            load_memory();
        if (!link_.is_open()) {
            TimestampTz now = steady_now();
            if (now < retry_at_) {
                record_backlog_tick();
                turn_ring();
                wait(std::min(settings::poll_interval,
                              static_cast<int>(TimestampDifferenceMilliseconds(now, retry_at_))));
                continue;
            }
            connect();
            continue;
        }
        if (!dispatch())
            rest();
    }
}

extern "C" {

PGDLLEXPORT void outbox_dispatcher_main(Datum index) {
    worker_identity identity;
    memcpy(&identity, MyBgworkerEntry->bgw_extra, sizeof identity);
    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, die);
    // A cancelled wait for a synchronous standby would look like success.
    pqsignal(SIGINT, SIG_IGN);
    BackgroundWorkerUnblockSignals();

    shared::slot *slot = shared::attach(DatumGetInt32(index), identity.database, identity.sink_id);
    if (!slot)
        proc_exit(0);
    BackgroundWorkerInitializeConnectionByOid(identity.database, InvalidOid, 0);
    if (!act_as_owner()) {
        shared::release(slot);
        proc_exit(0);
    }

    auto *memory = MemoryContextAllocZero(TopMemoryContext, sizeof(dispatcher));
    (new (memory) dispatcher(slot, identity.sink_id))->run();
}
}

} // namespace outbox

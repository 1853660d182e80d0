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
#include "common/pg_prng.h"
}

namespace outbox {

constexpr int checkpoint_interval = 5000; // ms, while events flow
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

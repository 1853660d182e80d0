// The worker of one sink: tick, read, append, confirm, wait. What its parts share.
#pragma once

#include "bgworker/batch.hpp"
#include "bgworker/chunk.hpp"
#include "bgworker/link.hpp"
#include "bgworker/marker.hpp"
#include "bgworker/position.hpp"
#include "bgworker/shared.hpp"
#include "bgworker/state.hpp"
#include "bgworker/stream.hpp"
#include "extension/pg.hpp"
#include "extension/sinks.hpp"

namespace outbox {

enum class sent { good, again, lost };

struct asked_group;

// Something that Redis does not let this user do, and that events do not depend on.
struct refusal {
    TimestampTz until, complained_at; // as steady_now() has it
};

inline constexpr char changed_marker[] = "another worker has taken the sink over, or Redis has lost data";

class dispatcher {
  public:
    dispatcher(shared::slot *slot, int sink_id);
    dispatcher(const dispatcher &) = delete;
    dispatcher &operator=(const dispatcher &) = delete;

    [[noreturn]] void run();

  private:
    // -- dispatcher.cpp: the loop
    [[noreturn]] static void start_afresh(const char *reason);
    void begin_transaction(); // ends the process where the extension is gone
    void commit_transaction();
    static void heed_end();
    bool tables_fit();
    bool has_transform() const;
    transform::result transformed(event_row &event) const;
    bool load_sink();
    void load_memory();
    void close_foreign_anchors();
    bool connect();
    bool dispatch();
    bool next_batch();
    bool record_tick(bool only_when_full);
    void begin_behind(const tick &newest);
    void remember_tick(const tick &newest);
    void record_backlog_tick();
    void checkpoint();
    void answer_flush();
    void wait(int ms);
    void rest();
    void finish_healing();
    void set_state(shared::worker_state state);
    void show();
    void publish();
    void lose(const char *doing);
    int64 next_ms(int64 above = 0) const;

    // -- append.cpp: one chunk
    sent run_batch();
    void fill(chunk &target);
    enum class verdict { skip, learn, send, stop };
    verdict consider(const event_row &event, position where, stream_state *&stream, position &at, bool from_hold);
    void encode(chunk &target, const event_row &event, position where, stream_state *stream, position at);
    void begin(chunk &target);
    void seal(chunk &target, position marker, position settled);
    sent conclude(chunk &target, const chunk *&queued);
    sent judge(chunk &target, bool *settled, const chunk *queued = nullptr);
    void adopt(chunk &target);
    bool retract();
    sent refuse_in_queue(chunk &target);
    sent verify(chunk &target, const bool *rejected, bool *settled);
    void accept(const chunk_entry &entry, bool duplicate);
    bool renew_lease();
    bool lease_is_due() const;
    const char *name_of(const stream_state &stream) const;
    position place_of(std::string_view topic, position where) const;
    bool move_up(stream_state &stream, int64 ms, int64 n, int64 upto_n);
    void load_moves(int64 ms);
    stream_state *stream_of(std::string_view topic);
    stream_state **all_streams(int &count) const;
    bool is_settled(const event_row &event) const;
    bool may_be_there(const stream_state &stream, position where) const;
    void settle(const state::event_key &key);

    // -- confirm.cpp: how safe an entry must be before it counts as published
    position confirmed() const;
    int64 confirmed_passed() const;
    bool ask_level();
    bool confirmation_is_due() const;
    sent confirm();
    void note_unconfirmed();
    void doubt_confirmation(position from);
    void accept_confirmation();
    void fall_short(int64 count);
    void save_stream(const stream_state &stream);

    // -- carry.cpp: a tick that is on its way to the disk
    void carry(const tick &recorded, XLogRecPtr sees_upto);
    static void flush(XLogRecPtr upto);
    const carried_tick *make_durable(int64 marker_ms);
    bool restore_tick(const sink_marker &seen, bool &restored);

    // -- hold.cpp: streams that refuse entries
    void hold(stream_state &stream, position from, position tried, const char *error);
    void save_hold(const stream_state &stream);
    bool is_waiting(const stream_state &stream) const;
    stream_state *due_hold() const;
    TimestampTz next_retry() const;
    sent retry(stream_state &stream);
    void bury(stream_state &stream);
    template <typename Visitor> void for_each_held(stream_state &stream, position upto, Visitor visit);

    // -- reconcile.cpp
    bool reconcile();
    bool may_take_over(std::string_view marker, std::string_view lease);
    bool look_at_streams();
    bool look_for_tails();
    bool is_sinks_fault(const redisReply &reply);
    void accept_look();
    bool match_entries_of_others(int64 before_ms, position above);
    void forget_lost_places();
    struct candidate;
    void add_candidate(candidate &of, int64 seq, bool known) const;
    static void take_out(candidate &of, int64 seq);
    void leave_out_upto(position above, HTAB *candidates);
    bool take_over(position marker, position settled, bool &refused);

    // -- deliver.cpp: delayed events that are due
    bool deliver_due();
    bool move_due(TimestampTz now, int &moved);
    void sweep_delayed();

    // -- look.cpp: the consumers of the streams
    bool look_is_due() const;
    bool look_after_streams();
    bool look_at_groups(stream_state *const *streams, int count);
    bool look_into_groups(asked_group *groups, int count);
    bool complete_lags(asked_group *groups, int count);
    bool look_at_redis();
    static bool is_refusal_of(const redisReply &reply, refusal &of);
    void complain(refusal &about, const char *what, const char *why);

    // -- trim.cpp
    bool trim(stream_state *const *streams, int count, const char *marker);
    bool make_room();

    // -- replays.cpp: the worker of outbox.replay()
    void keep_replayer();

    // -- retention.cpp
    void turn_ring();
    struct ring_size;
    bool is_apart(int64 generation, int64 current, const state::sink_progress *sinks, int count, const ring_size &size,
                  const state::sink_progress *&without);
    bool is_kept_for(const state::sink_progress &sink, int64 generation);
    static const char *replay_that_needs(int number);
    const char *reason_to_keep(int number, const state::sink_progress &sink, TimestampTz &since) const;
    bool drop_partition(int64 generation, TimestampTz replaced_at);
    void hold_back(int64 generation, const char *reason, TimestampTz since);
    void release_ring();
    void sample();
    const VirtualTransactionId *older_snapshot() const;

    shared::slot *slot_;
    int sink_id_;
    MemoryContext round_;   // reset with every turn of the loop
    MemoryContext batches_; // what the readers keep
    MemoryContext event_;   // one event, while a transform is at work on it
    shared::worker_stats stats_ = {};

    Oid extension_ = InvalidOid;
    state::sink_row sink_ = {};
    stream_naming naming_;
    sinks::filters filters_;
    const sinks::filter *filter_ = nullptr; // of the batch that is being read; null: it takes everything
    MemoryContext definition_;              // what is kept of the three above
    bool tables_fit_ = false; // they are of this library's version
    bool sink_known_ = false;
    bool memory_loaded_ = false;
    char incarnation_[40] = "";
    char instance_[40] = "";
    char marker_text_[marker_text_size] = ""; // the marker as we wrote it last
    char marker_key_[96] = "";
    char lease_key_[96] = "";
    char client_name_[NAMEDATALEN + 16] = "";

    link link_;
    batch_reader reader_;
    batch_reader hold_reader_;
    chunk chunks_[2];
    chunk hold_chunk_;
    std::string *commands_ = nullptr;

    HTAB *streams_ = nullptr;
    stream_state *last_stream_ = nullptr; // that was asked for: mostly the next one, too
    int held_streams_ = 0;
    HTAB *settled_ = nullptr; // events that are placed or dead: never sent
    bool any_moves_ = false;
    state::move *moves_ = nullptr; // of the batch moves_ms_
    int move_count_ = 0;
    int64 moves_ms_ = 0;

    position cursor_;        // the last event known to be settled: what the marker says
    int unconfirmed_ = 0;      // chunks that are not confirmed; always 0 where no more than Redis' memory is asked for
    position safe_;            // where the cursor was before them
    int64 safe_passed_ms_ = 0; // and passed_ms_
    TimestampTz unconfirmed_since_ = 0;
    TimestampTz asking_since_ = 0; // it was not as safe as asked for the last time, or nobody has asked since the connect
    int confirm_timeout_ = 0;      // ms, of the next question; 0: the usual
    int confirm_window_ = 0;       // ms of work that the next one is for
    bool falls_short_ = false;     // and has for so long that it is told
    shared::worker_state interrupted_ = shared::worker_state::streaming; // by that
    bool releases_unconfirmed_ = false;
    TimestampTz told_short_at_ = 0;
    position saved_;         // the cursor as it was recorded last
    state::sink_progress *sampled_ = nullptr; // what had been recorded of every sink, some time ago: retention goes by it
    int sampled_count_ = 0;
    VirtualTransactionId *older_ = nullptr; // snapshots that were open then
    int older_count_ = 0;
    bool sampled_is_spent_ = false;
    int64 late_generation_ = -1; // has events in batches of the current one, since before late_until_
    TimestampTz late_until_ = 0;
    int64 late_current_ = 0; // that one, and what it took then
    int64 late_bytes_ = 0;
    position believed_;      // up to here an entry may be in Redis already
    position marker_;        // what the marker says; ahead of the cursor while a chunk in doubt is sent again
    position heal_until_;    // up to here Redis had everything before it lost data
    int64 repairs_ = 0;      // chunks that were sent without moving the marker: releases, and chunks made again
    position present_upto_;  // up to here the marker answers for every event: learn of them, do not send
    position covered_;       // what the marker says is there
    bool fenced_ = false;    // the last reconciliation found a living worker of another server
    position doubt_from_;    // where the chunk whose replies were lost can have begun
    position heal_from_;     // where the first stream that lost entries ends
    bool healing_ = false;   // reconciliation found that Redis lost data
    int64 passed_ms_ = 0;    // ticks up to here are done, also those without an event
    int64 recorded_ms_ = 0;  // the newest tick
    int64 loaded_ms_ = 0;    // the newest one when this process began
    int64 recorded_seq_ = 0; // and where the sequence was then
    int64 last_ms_ = 0;      // the highest ms in use
    bool batch_open_ = false;
    int64 settled_n_[max_chunk_events]; // events of the batch that need not be sent when a chunk is made again
    int settled_count_ = 0;
    position remade_upto_; // the end of that chunk
    bool reconnect_at_once_ = false;
    TimestampTz reconnected_at_ = 0;

    stored_snapshot *last_snapshot_ = nullptr; // of our anchor's newest tick
    int64 last_snapshot_ms_ = 0;
    XLogRecPtr tick_end_ = InvalidXLogRecPtr;  // where the log has to be durable for it to be; invalid: it is
    carried_tick carried_;                     // that tick, where the marker may carry it until then
    BackgroundWorkerHandle *replayer_ = nullptr;
    bool replays_ = false;         // there may be one to be done
    bool replayer_is_old_ = false; // the settings or the sink have changed since it was started
    TimestampTz replayer_at_ = 0;  // none is started before
    int replayer_delay_ = 0;       // ms
    uint64 flush_asked_ = 0;
    int64 flush_ms_ = 0;

    bool delivers_ = false;            // delayed events are this worker's business, too
    bool looked_for_due_ = false;      // there was none left that is due, once at least
    TimestampTz looked_for_due_at_ = 0;
    TimestampTz swept_at_ = 0;
    int due_delay_ = 0; // ms until an event is tried again that somebody else has locked

    MemoryContext looks_;    // what a pass through the streams needs
    stream_state **look_streams_ = nullptr;
    int look_count_ = 0;
    int look_place_ = 0;     // in that pass
    uint32 look_pass_ = 0;
    bool looks_at_groups_ = false; // in this pass
    bool trims_more_ = false;      // something was trimmed in this pass: there may be more
    TimestampTz look_at_ = 0;      // the next step
    TimestampTz groups_due_ = 0;
    TimestampTz redis_due_ = 0;
    refusal trim_refusal_ = {}, look_refusal_ = {};
    bool full_ = false; // Redis has no room

    int failures_ = 0; // in a row
    TimestampTz retry_at_ = 0;
    TimestampTz complained_at_ = 0;
    bool down_ = false;
    TimestampTz paced_until_ = 0; // with a tick each linger, where the last one would be
    TimestampTz leased_at_ = 0;
    TimestampTz saved_at_ = 0;
    TimestampTz turned_at_ = 0;
    TimestampTz backlog_checked_at_ = 0;
    TimestampTz held_back_since_ = 0; // for a line in the log
    TimestampTz measured_at_ = 0;
    position shown_; // in the process title
    int64 measured_published_ = 0;
    bool unsaved_ = false;
};

} // namespace outbox

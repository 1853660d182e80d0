// The worker of outbox.verify(): compares what was committed with what the streams hold. Window by window of the database's
// ticks it reads both sides once and compares, stream by stream, the number of entries, the first, the last and a sum of hashes
// over positions and event ids; where they differ it goes through that stream's part of the window entry by entry. It only
// reads, from both; it takes neither the sink's marker nor its slot, so the sink's own worker goes on, or need not be there.

#include "bgworker/verifier.hpp"

#include "bgworker/reply.hpp"
#include "bgworker/worker.hpp"
#include "extension/clock.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

checked_stream *verifier::stream_of(std::string_view topic) {
    char key[max_topic_length + 1] = {};
    memcpy(key, topic.data(), std::min(topic.size(), max_topic_length));
    bool found;
    auto *stream = static_cast<checked_stream *>(hash_search(streams_, key, HASH_ENTER, &found));
    if (!found) {
        *stream = {};
        memcpy(stream->topic, key, sizeof key);
        stream->taken_out = -1;
    }
    return stream;
}

// In the current memory context.
checked_stream **verifier::all_streams(int &count) {
    auto total = static_cast<Size>(hash_get_num_entries(streams_));
    auto **streams = static_cast<checked_stream **>(palloc(sizeof(checked_stream *) * (total + 1)));
    count = 0;
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, streams_);
    while (auto *stream = static_cast<checked_stream *>(hash_seq_search(&scan)))
        streams[count++] = stream;
    return streams;
}

// -- what is said

void verifier::show(bool now) {
    TimestampTz time = GetCurrentTimestamp();
    if (!now && !TimestampDifferenceExceeds(shown_at_, time, 200))
        return;
    shown_at_ = time;
    progress_.ticks = expectation_.ticks();
    shared::publish(place_, progress_);
    char activity[200];
    pg_snprintf(activity, sizeof activity, "verifying sink \"%s\": tick %lld of %lld", sink_.name,
                static_cast<long long>(progress_.ticks), static_cast<long long>(progress_.ticks_total));
    pgstat_report_activity(STATE_RUNNING, activity);
}

static void put_text(StringInfo message, std::string_view text, bool present) {
    pq_sendint32(message, present ? static_cast<uint32>(text.size()) : PG_UINT32_MAX);
    if (present)
        pq_sendbytes(message, text.data(), static_cast<int>(text.size()));
}

// One finding, to the backend that waits.
void verifier::report(const char *finding, std::string_view topic, const char *at, const pg_uuid_t *id,
                      const char *belongs_topic, const char *belongs_at, int64 entries, const char *detail) {
    ++progress_.findings;
    StringInfoData message;
    pq_beginmessage(&message, verify::finding_message);
    put_text(&message, finding, true);
    put_text(&message, topic, true);
    put_text(&message, at, true);
    pq_sendbyte(&message, id ? 1 : 0);
    if (id)
        pq_sendbytes(&message, reinterpret_cast<const char *>(id->data), UUID_LEN);
    put_text(&message, belongs_topic ? belongs_topic : "", belongs_topic != nullptr);
    put_text(&message, belongs_at ? belongs_at : "", belongs_at != nullptr);
    pq_sendint64(&message, static_cast<uint64>(entries));
    put_text(&message, detail ? detail : "", detail != nullptr);
    pq_endmessage(&message);
}

void verifier::send_sum() {
    StringInfoData message;
    pq_beginmessage(&message, verify::sum_message);
    put_text(&message, sink_.name, true);
    for (int64 number : {confirmed_.ms, confirmed_.n, expectation_.ticks(), expectation_.unchecked(), progress_.events, optional_,
                         progress_.entries, static_cast<int64>(hash_get_num_entries(streams_))})
        pq_sendint64(&message, static_cast<uint64>(number));
    pq_endmessage(&message);
}

void verifier::fail() {
    ereport(ERROR, errcode(ERRCODE_CONNECTION_FAILURE),
            errmsg("could not read the streams of sink \"%s\" from Redis at \"%s\": %s", sink_.name, link_.endpoint(),
                   link_.error()),
            errhint("%s", hint_for(link_.error(), !*sink_.url)));
}

// -- all of it

bool verifier::load() {
    expectation_.begin_transaction();
    if (!state::find_sink(request_.sink, sink_id_, sink_))
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("sink \"%s\" does not exist", request_.sink),
                errhint("The sinks are listed in outbox.sink."));
    state::load_topics(
        sink_id_, [](void *self, std::string_view topic) { static_cast<verifier *>(self)->stream_of(topic); }, this);
    expectation_.commit_transaction();
    progress_.sink_id = sink_id_;
    show(true);
    if (!*sink_.uuid)
        return false; // nothing was ever emitted

    char name[64];
    pg_snprintf(name, sizeof name, "outbox:verify:%s", sink_.uuid);
    naming_ = sink_.naming();
    request_.since_ms = std::max(request_.since_ms, sink_.start.ms);
    if (!link_.open(name, sink_.url))
        fail();
    // First where the streams end, then what is confirmed: so next to nothing of our own is between the two while the sink's
    // worker runs.
    MemoryContextSwitchTo(scratch_);
    int count;
    checked_stream **streams = all_streams(count);
    look_at(streams, count);
    read_marker();
    int64 reach = 0;
    for (int i = 0; i < count; ++i)
        reach = std::max(reach, streams[i]->end.ms);

    // What is confirmed first, then what keeps an event of it from its place: that is recorded before it is confirmed.
    expectation_.begin_transaction();
    tick recorded;
    if (carried_.ms > 0 && last_tick_before(sink_id_, carried_.ms + 1, recorded) && is_same(recorded, carried_))
        carried_.ms = 0; // the database has it, too
    confirmed_ = state::confirmed(sink_id_);
    expectation_.commit_transaction();
    expectation_.begin_transaction();
    expectation_.load(sink_id_, sink_.before_start(), confirmed_, reach, request_.since_ms, request_.until_ms);
    if (expectation_.any())
        progress_.ticks_total = state::count_ticks(sink_id_, std::max(request_.since_ms, expectation_.floor().ms),
                                                   std::min(request_.until_ms, std::max(confirmed_.ms, reach)));
    expectation_.commit_transaction();
    return expectation_.any();
}

void verifier::run() {
    scratch_ = expectation_.scratch = AllocSetContextCreate(TopMemoryContext, "outbox verify", ALLOCSET_DEFAULT_SIZES);
    MemoryContextSwitchTo(scratch_);
    progress_ = *place_;
    extras_ = static_cast<unexplained_entry *>(MemoryContextAlloc(TopMemoryContext, sizeof(unexplained_entry) * max_extras));
    commands_ = cpp_call([] { return new std::string; });
    HASHCTL control = {};
    control.keysize = sizeof(checked_stream::topic);
    control.entrysize = sizeof(checked_stream);
    streams_ = hash_create("outbox checked streams", 64, &control, HASH_ELEM | HASH_BLOBS);

    if (load()) {
        show(true);
        while (expectation_.next_window()) {
            compare_window();
            progress_.upto_ms = expectation_.upto().ms;
            show();
            MemoryContextReset(scratch_);
        }
        compare_tails();
        explain();
        report_trimmed();
    }
    send_sum();
}

extern "C" {

PGDLLEXPORT void outbox_verifier_main(Datum argument) {
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();

    dsm_segment *segment = dsm_attach(DatumGetUInt32(argument));
    if (!segment)
        proc_exit(0); // whoever called has gone
    auto *base = static_cast<char *>(dsm_segment_address(segment));
    verify::request request;
    memcpy(static_cast<void *>(&request), base, sizeof request);
    auto *queue = reinterpret_cast<shm_mq *>(base + verify::queue_at);
    shm_mq_set_sender(queue, MyProc);
    // From here on an error is the caller's, too.
    pq_redirect_to_shm_mq(segment, shm_mq_attach(queue, segment, nullptr));

    shared::verification *place = shared::attach_verification(request.database, request.caller);
    if (!place && shared::is_blocked(request.database))
        ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE), errmsg("a command needs the database to itself"));
    if (!place)
        ereport(ERROR, errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED), errmsg("too many sinks are being verified already"),
                errhint("They are listed in outbox.stat_verify. Try again when one of them is done."));
    BackgroundWorkerInitializeConnectionByOid(request.database, InvalidOid, 0);
    if (!act_as_owner())
        ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("role \"outbox_worker\" does not exist"));

    auto *memory = MemoryContextAllocZero(TopMemoryContext, sizeof(verifier));
    (new (memory) verifier(request, place))->run();
    proc_exit(0);
}
}

} // namespace outbox

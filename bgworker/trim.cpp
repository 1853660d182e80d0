// Trimming: what the operator lets go of. A stream is only ever cut off at its beginning, and only entries that this sink has
// confirmed and written down: what reconciliation knows of streams (their last IDs, the entries they have counted) stays as it is,
// and after a crash an entry that was cut off is not taken for one that was never sent.

#include "bgworker/dispatcher.hpp"
#include "bgworker/trim_script.hpp"
#include "common/resp.hpp"
#include "extension/clock.hpp"

#include "extension/guard.hpp"

namespace outbox {

constexpr int streams_at_once = 16;
constexpr int64 entries_at_once = 10000; // of one stream in one step: a few milliseconds of Redis' time at most

// One step for these streams, as long as the marker is this one. False when Redis is lost.
bool dispatcher::trim(stream_state *const *streams, int count, const char *marker) {
    if (sink_.trimming == state::sink_row::off || saved_.ms == 0 || steady_now() < trim_refusal_.until)
        return true;
    char stays[position_text_size + 1], young[position_text_size + 1] = "", length[24] = "", most[24];
    stays[print({saved_.ms, saved_.n + 1}, stays)] = '\0';
    if (sink_.max_age > 0)
        young[print({std::max<int64>(0, unix_ms(GetCurrentTimestamp()) - sink_.max_age), 0}, young)] = '\0';
    if (sink_.max_length > 0)
        pg_snprintf(length, sizeof length, "%lld", static_cast<long long>(sink_.max_length));
    pg_snprintf(most, sizeof most, "%lld", static_cast<long long>(entries_at_once));
    const char *mode = sink_.trimming == state::sink_row::consumed ? "consumed" : "limits";
    cpp_call([&] {
        commands_->clear();
        for (int i = 0; i < count; ++i)
            resp::append(*commands_, "EVAL", trim_script, "2", name_of(*streams[i]), marker_key_, marker, mode, stays, length, young,
                         most);
    });
    if (!link_.ask(*commands_, static_cast<std::size_t>(count)))
        return false;
    for (int i = 0; i < count; ++i) {
        const redisReply &reply = link_.reply(static_cast<std::size_t>(i));
        if (reply.type == REDIS_REPLY_ERROR) {
            if (is_refusal_of(reply, trim_refusal_))
                complain(trim_refusal_, psprintf("could not trim stream \"%s\" of sink \"%s\"", name_of(*streams[i]), sink_.name), reply.str);
        } else if (reply.type == REDIS_REPLY_INTEGER && reply.integer > 0) {
            stats_.trimmed += reply.integer;
            trims_more_ = true;
        }
    }
    return true;
}

// A Redis that is full refuses the marker, too, so the sink could not be taken over to trim what would make room. Then it is trimmed
// without that: as long as the marker is one of this database's own, is not behind what is written down (so nothing was lost of
// that), and no other server lives that has the sink. False when Redis is lost.
bool dispatcher::make_room() {
    if (sink_.trimming == state::sink_row::off || cursor_ < heal_until_)
        return true;
    checkpoint(); // what was confirmed since may be trimmed as well
    cpp_call([&] {
        commands_->clear();
        resp::append(*commands_, "GET", marker_key_);
        resp::append(*commands_, "GET", lease_key_);
    });
    if (!link_.ask(*commands_, 2))
        return false;
    auto text_of = [](const redisReply &reply) {
        return reply.type == REDIS_REPLY_STRING ? pnstrdup(reply.str, reply.len) : pstrdup("");
    };
    const char *marker = text_of(link_.reply(0)), *lease = text_of(link_.reply(1));
    sink_marker seen;
    if (!parse(marker, seen) || seen.at < saved_ || !may_take_over(marker, lease))
        return true;
    begin_transaction();
    bool known = state::knows_incarnation(sink_id_, seen.incarnation);
    commit_transaction();
    if (!known)
        return true;
    int count;
    stream_state **streams = all_streams(count);
    for (int begin = 0; begin < count; begin += streams_at_once)
        for (trims_more_ = true; trims_more_;) {
            CHECK_FOR_INTERRUPTS();
            trims_more_ = false;
            if (!trim(streams + begin, std::min(streams_at_once, count - begin), marker))
                return false;
        }
    pfree(streams);
    return true;
}

} // namespace outbox

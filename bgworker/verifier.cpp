// The worker of outbox.verify(): compares what was committed with what the streams hold. Window by window of the database's
// ticks it reads both sides once and compares, stream by stream, the number of entries, the first, the last and a sum of hashes
// over positions and event ids; where they differ it goes through that stream's part of the window entry by entry. It only
// reads, from both; it takes neither the sink's marker nor its slot, so the sink's own worker goes on, or need not be there.

#include "bgworker/entry.hpp"
#include "bgworker/expectation.hpp"
#include "bgworker/link.hpp"
#include "bgworker/marker.hpp"
#include "bgworker/reply.hpp"
#include "bgworker/shared.hpp"
#include "bgworker/verify.hpp"
#include "bgworker/worker.hpp"
#include "common/resp.hpp"
#include "extension/clock.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

extern "C" {
#include "common/hashfn.h"
}

namespace outbox {

constexpr std::size_t page_bytes = 1024 * 1024; // of entries that are asked for at once, about
constexpr int max_page = 1000;                  // entries
constexpr int first_page = 16;                  // entries, of a stream that nothing is known of
constexpr int streams_at_once = 16;
constexpr int max_extras = 512; // looked up at once

// A set of entries, in a few bytes: equal sums mean equal sets, but for one chance in 2^128.
struct entry_sum {
    int64 count;
    position first, last;
    uint64 hash[2];

    void add(position at, const pg_uuid_t &id) {
        struct {
            int64 ms, n;
            pg_uuid_t id;
        } key = {at.ms, at.n, id};
        if (count == 0 || at < first)
            first = at;
        if (count == 0 || at > last)
            last = at;
        ++count;
        for (uint64 seed = 0; seed < 2; ++seed)
            hash[seed] += hash_bytes_extended(reinterpret_cast<unsigned char *>(&key), sizeof key, seed);
    }
    bool operator==(const entry_sum &) const = default;
};

struct checked_stream {
    char topic[max_topic_length + 1]; // the key of the table, zero-padded
    bool looked;                      // end is known
    position upto;                    // compared up to here
    position end;                     // the last entry that there was when we came
    std::size_t entry_bytes;          // of the largest that was seen or is expected
    entry_sum expected, found;        // in this window
    bool optional;                    // the window has events of it that may be there or not
    bool empty;                       // it has none of the window, and that is no trimming
    stream_info info;                 // as it was then

    // Entries that are gone from its beginning.
    int64 trimmed;
    position trimmed_first, trimmed_last;
    int64 taken_out; // entries that were ever taken out of it, -1 where Redis does not count
    int64 deleted;   // of these, as we know, by XDEL

    std::string_view name() const { return topic; }
};

// An entry that no event explains, as far as is known before the database is asked for its id.
struct unexplained_entry {
    char topic[max_topic_length + 1];
    char at[64];
    bool has_id;
    pg_uuid_t id;
    char event_type[64];
};

// A page of a stream.
struct stream_page {
    const redisReply *entries;
    bool more; // there may be others behind it
};

class verifier {
  public:
    verifier(const verify::request &request, shared::verification *place) : request_(request), place_(place) {}
    verifier(const verifier &) = delete;
    verifier &operator=(const verifier &) = delete;

    void run();

  private:
    bool load();
    void compare_window();
    void sum_up(checked_stream **streams, int count);
    bool is_gone(checked_stream &stream);
    void compare_entries(checked_stream &stream, position upto, bool tail);
    void look_at(checked_stream **streams, int count);
    void compare_tails();
    void report_trimmed();
    void read_marker();

    void absent(checked_stream &stream, const expected_entry &entry, const stream_info &info);
    void unexplained(const checked_stream &stream, const redisReply &entry);
    void explain();
    void report(const char *finding, std::string_view topic, const char *at, const pg_uuid_t *id, const char *belongs_topic,
                const char *belongs_at, int64 entries, const char *detail);
    void send_sum();

    void append_range(const checked_stream &stream, const char *from, position upto, int count);
    stream_page read_page(checked_stream &stream, std::size_t reply, int count, char *next, Size next_size);
    int page_size(const checked_stream &stream) const;
    position begin_of(const checked_stream &stream) const { return std::max(stream.upto, expectation_.floor()); }
    void ask(std::size_t replies);
    [[noreturn]] void fail();
    checked_stream *stream_of(std::string_view topic);
    checked_stream **all_streams(int &count);
    void show(bool now = false);

    verify::request request_;
    shared::verification *place_;
    shared::verification progress_ = {};
    MemoryContext scratch_ = nullptr; // reset again and again
    int sink_id_ = 0;
    state::sink_row sink_ = {};
    stream_naming naming_;
    position confirmed_;
    carried_tick carried_; // by the sink's marker, and not in this database; ms 0: there is none
    expectation expectation_;
    link link_;
    std::string *commands_ = nullptr;
    HTAB *streams_ = nullptr;
    unexplained_entry *extras_ = nullptr;
    int extra_count_ = 0;
    int64 optional_ = 0;
    TimestampTz shown_at_ = 0;
};

static void print_text(position value, char *text) { text[print(value, text)] = '\0'; }

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

// -- Redis

void verifier::ask(std::size_t replies) {
    if (!link_.ask(*commands_, replies))
        fail();
}

int verifier::page_size(const checked_stream &stream) const {
    if (stream.entry_bytes == 0)
        return first_page;
    return static_cast<int>(std::clamp<std::size_t>(page_bytes / stream.entry_bytes, 1, max_page));
}

void verifier::append_range(const checked_stream &stream, const char *from, position upto, int count) {
    char text[position_text_size + 1];
    print_text(upto, text);
    // beyond what we can count to there may be entries, too
    const char *to = upto.ms == PG_INT64_MAX ? "+" : text;
    cpp_call([&] { append_xrange(*commands_, stream.name(), from, to, count, naming_); });
}

// A key of another type is a stream without entries to us; anything else that keeps us from looking is an error.
stream_page verifier::read_page(checked_stream &stream, std::size_t number, int count, char *next, Size next_size) {
    static const redisReply none = [] {
        redisReply empty = {};
        empty.type = REDIS_REPLY_ARRAY;
        return empty;
    }();
    const redisReply &reply = link_.reply(number);
    if (reply.type == REDIS_REPLY_ERROR && std::string_view(reply.str).starts_with("WRONGTYPE"))
        return {&none, false};
    if (reply.type != REDIS_REPLY_ARRAY) {
        link_.fail(reply.type == REDIS_REPLY_ERROR ? pstrdup(reply.str) : "unexpected reply");
        fail();
    }
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < reply.elements; ++i) {
        const redisReply &entry = *reply.element[i];
        position at;
        if (!read_entry_id(entry, at)) {
            link_.fail("unexpected reply");
            fail();
        }
        std::size_t size = 0;
        const redisReply &fields = *entry.element[1];
        for (std::size_t k = 0; fields.type == REDIS_REPLY_ARRAY && k < fields.elements; ++k)
            size += static_cast<std::size_t>(fields.element[k]->len);
        bytes = std::max(bytes, size);
    }
    // The largest lately: one huge entry shall not make all the others come one by one.
    stream.entry_bytes = std::max({bytes, stream.entry_bytes / 2, std::size_t{64}});
    progress_.entries += static_cast<int64>(reply.elements);
    bool more = reply.elements >= static_cast<std::size_t>(count);
    if (more) {
        const redisReply &last = *reply.element[reply.elements - 1]->element[0];
        pg_snprintf(next, next_size, "(%.*s", static_cast<int>(last.len), last.str);
    }
    return {&reply, more};
}

// Where the streams end now: what is appended later is none of our business.
void verifier::look_at(checked_stream **streams, int count) {
    for (int begin = 0; begin < count; begin += streams_at_once) {
        int end = std::min(count, begin + streams_at_once);
        cpp_call([&] {
            commands_->clear();
            for (int i = begin; i < end; ++i)
                append_xinfo(*commands_, streams[i]->name(), naming_);
        });
        ask(static_cast<std::size_t>(end - begin));
        for (int i = begin; i < end; ++i) {
            const redisReply &reply = link_.reply(static_cast<std::size_t>(i - begin));
            stream_info info = read_stream_info(reply);
            if (!info.is_stream && !std::string_view(reply.str).starts_with("WRONGTYPE")) {
                link_.fail(pstrdup(reply.str));
                fail();
            }
            streams[i]->looked = true;
            streams[i]->end = info.exists ? info.last : position{};
        }
    }
}

// A tick that is in the marker and, after a crash, not in this database yet: the sink's worker will record it.
void verifier::read_marker() {
    cpp_call([&] {
        commands_->clear();
        resp::append(*commands_, "GET", psprintf("outbox:sink:%s", sink_.uuid));
    });
    ask(1);
    const redisReply &reply = link_.reply(0);
    if (reply.type == REDIS_REPLY_ERROR) {
        link_.fail(pstrdup(reply.str));
        fail();
    }
    sink_marker marker;
    if (reply.type == REDIS_REPLY_STRING && parse(std::string_view(reply.str, static_cast<std::size_t>(reply.len)), marker))
        carried_ = marker.tick;
}

// -- one window

void verifier::compare_window() {
    expectation_.for_each([this](std::string_view topic, const expected_entry &entry) {
        checked_stream *stream = stream_of(topic);
        if (entry.optional) {
            stream->optional = true;
            ++optional_;
        } else {
            stream->expected.add(entry.at, entry.id);
            ++progress_.events;
        }
        stream->entry_bytes = std::max(stream->entry_bytes, entry.size);
        show();
    });
    MemoryContextSwitchTo(scratch_);
    // A stream that nothing is expected in waits for the next window in which there is something, or for the end.
    int count;
    checked_stream **streams = all_streams(count);
    auto wanted = [](const checked_stream *stream) { return stream->expected.count > 0 || stream->optional; };
    int chosen = static_cast<int>(std::partition(streams, streams + count, wanted) - streams);
    sum_up(streams, chosen);
    for (int i = 0; i < chosen; ++i) {
        checked_stream &stream = *streams[i];
        if ((stream.optional || !(stream.found == stream.expected)) && !is_gone(stream))
            compare_entries(stream, expectation_.upto(), false);
    }
    // all streams that are gone at once: after a FLUSHALL these are all there are
    if (std::any_of(streams, streams + chosen, [](const checked_stream *stream) { return stream->empty; }))
        expectation_.for_each([this](std::string_view topic, const expected_entry &entry) {
            checked_stream *stream = stream_of(topic);
            if (stream->empty)
                absent(*stream, entry, stream->info);
        });
    MemoryContextSwitchTo(scratch_);
    for (int i = 0; i < chosen; ++i) {
        streams[i]->upto = expectation_.upto();
        streams[i]->expected = streams[i]->found = {};
        streams[i]->optional = streams[i]->empty = false;
    }
    pfree(streams);
}

// What the streams hold of the window: first of many at once, then the rest of those that have more.
void verifier::sum_up(checked_stream **streams, int count) {
    char next[streams_at_once][64];
    bool more[streams_at_once];
    int counts[streams_at_once];
    for (int begin = 0; begin < count; begin += streams_at_once) {
        int group = std::min(count - begin, streams_at_once);
        for (int i = 0; i < group; ++i) {
            next[i][0] = '(';
            print_text(begin_of(*streams[begin + i]), next[i] + 1);
            more[i] = true;
        }
        for (int left = group; left > 0;) {
            CHECK_FOR_INTERRUPTS();
            std::size_t asked = 0;
            cpp_call([&] { commands_->clear(); });
            for (int i = 0; i < group; ++i)
                if (more[i]) {
                    counts[i] = page_size(*streams[begin + i]);
                    append_range(*streams[begin + i], next[i], expectation_.upto(), counts[i]);
                    ++asked;
                }
            ask(asked);
            std::size_t reply = 0;
            for (int i = 0; i < group; ++i) {
                if (!more[i])
                    continue;
                checked_stream &stream = *streams[begin + i];
                stream_page page = read_page(stream, reply++, counts[i], next[i], sizeof next[i]);
                for (std::size_t k = 0; k < page.entries->elements; ++k) {
                    position at;
                    pg_uuid_t id = {}; // of an entry without one: no event has it
                    read_entry_id(*page.entries->element[k], at);
                    read_event_id(*page.entries->element[k], id.data);
                    stream.found.add(at, id);
                }
                more[i] = page.more;
                left -= page.more ? 0 : 1;
            }
            show();
        }
    }
}

// All of a window gone: there are no entries to go through. From a stream whose beginning has been cut off above it, there is
// nothing to tell of them one by one either.
bool verifier::is_gone(checked_stream &stream) {
    if (stream.found.count > 0 || stream.optional)
        return false;
    cpp_call([&] {
        commands_->clear();
        append_xinfo(*commands_, stream.name(), naming_);
    });
    ask(1);
    stream_info info = read_stream_info(link_.reply(0));
    const entry_sum &gone = stream.expected;
    bool cut = info.exists && !info.is_whole() && gone.last <= info.last && (info.length == 0 || gone.last < info.first);
    if (!cut || (info.knows_deleted && info.deleted >= gone.first && info.deleted <= gone.last)) {
        stream.empty = true;
        stream.info = info;
        return true;
    }
    if (stream.trimmed == 0)
        stream.trimmed_first = gone.first;
    stream.trimmed += gone.count;
    stream.trimmed_last = gone.last;
    stream.taken_out = info.entries_added < 0 ? -1 : info.entries_added - info.length;
    return true;
}

// Entry by entry: both sides in order of positions. In the tail nothing is expected for certain.
void verifier::compare_entries(checked_stream &stream, position upto, bool tail) {
    expectation_.rewind();
    const expected_entry *expected = nullptr;
    int expected_count = 0, at_expected = 0;
    bool expecting = !tail;
    char next[64] = "(";
    print_text(begin_of(stream), next + 1);
    for (bool more = true; more;) {
        CHECK_FOR_INTERRUPTS();
        int count = page_size(stream);
        cpp_call([&] { commands_->clear(); });
        append_range(stream, next, upto, count);
        // after the entries: what was trimmed while we looked is known as trimmed
        cpp_call([&] { append_xinfo(*commands_, stream.name(), naming_); });
        ask(2);
        stream_page page = read_page(stream, 0, count, next, sizeof next);
        stream_info info = read_stream_info(link_.reply(1));
        more = page.more;
        std::size_t k = 0;
        position at = {PG_INT64_MAX, PG_INT64_MAX};
        auto step = [&] {
            at = {PG_INT64_MAX, PG_INT64_MAX};
            if (k < page.entries->elements)
                read_entry_id(*page.entries->element[k], at);
        };
        step();
        for (;;) {
            if (at_expected == expected_count && expecting) {
                expected_count = expectation_.next(stream.name(), expected);
                at_expected = 0;
                expecting = expected_count > 0;
            }
            bool any_entry = k < page.entries->elements, any_expected = at_expected < expected_count;
            if (!any_entry && (more || !any_expected))
                break; // the rest of what is expected may be on the next page
            const expected_entry *wanted = any_expected ? &expected[at_expected] : nullptr;
            if (!wanted || (any_entry && at < wanted->at)) {
                unexplained(stream, *page.entries->element[k]);
                ++k, step();
                continue;
            }
            pg_uuid_t id;
            bool same = any_entry && at == wanted->at && read_event_id(*page.entries->element[k], id.data) &&
                        memcmp(id.data, wanted->id.data, UUID_LEN) == 0;
            if (!same && !wanted->optional)
                absent(stream, *wanted, info);
            if (any_entry && at == wanted->at) {
                if (!same)
                    unexplained(stream, *page.entries->element[k]);
                ++k, step();
            }
            ++at_expected;
        }
        show();
    }
}

// -- what is not as it should be

// An event that is not where it should be. Was it cut off with all that came before it, or is it missing?
void verifier::absent(checked_stream &stream, const expected_entry &entry, const stream_info &info) {
    char at[position_text_size + 1];
    print_text(entry.at, at);
    const char *detail = !info.is_stream            ? "the key is not a stream"
                         : !info.exists             ? "there is no such stream"
                         : entry.at > info.last     ? "the stream ends before it"
                         : info.is_whole()          ? "no entry was ever taken out of the stream"
                         : info.knows_deleted && info.deleted == entry.at ? "the entry was deleted"
                                                    : nullptr;
    if (!detail && (info.length == 0 || entry.at < info.first)) {
        if (stream.trimmed++ == 0)
            stream.trimmed_first = entry.at;
        stream.trimmed_last = entry.at;
        stream.taken_out = info.entries_added < 0 ? -1 : info.entries_added - info.length;
        return;
    }
    if (!detail) {
        detail = "entries before and after it are there";
        ++stream.deleted;
    } else if (info.knows_deleted && info.deleted == entry.at) {
        ++stream.deleted;
    }
    report("missing", stream.name(), at, &entry.id, nullptr, nullptr, 1, detail);
}

void verifier::unexplained(const checked_stream &stream, const redisReply &entry) {
    if (extra_count_ == max_extras)
        explain();
    unexplained_entry &added = extras_[extra_count_++];
    added = {};
    memcpy(added.topic, stream.topic, sizeof added.topic);
    const redisReply &id = *entry.element[0], &fields = *entry.element[1];
    pg_snprintf(added.at, sizeof added.at, "%.*s", static_cast<int>(id.len), id.str);
    added.has_id = read_event_id(entry, added.id.data);
    for (std::size_t i = 0; fields.type == REDIS_REPLY_ARRAY && i + 1 < fields.elements; i += 2)
        if (std::string_view(fields.element[i]->str, static_cast<std::size_t>(fields.element[i]->len)) == "event_type") {
            std::string_view type(fields.element[i + 1]->str, static_cast<std::size_t>(fields.element[i + 1]->len));
            strlcpy(added.event_type, printable(type, 40), sizeof added.event_type);
        }
}

// Asks the database for the events with the ids that were found where they were not expected. One that should be just there was
// appended, moved or released while we looked.
void verifier::explain() {
    if (extra_count_ == 0)
        return;
    auto *ids = static_cast<pg_uuid_t *>(palloc(sizeof(pg_uuid_t) * static_cast<Size>(extra_count_)));
    int id_count = 0;
    for (int i = 0; i < extra_count_; ++i)
        if (extras_[i].has_id)
            ids[id_count++] = extras_[i].id;
    struct place_list {
        state::event_place *places;
        Size count;
        MemoryContext context;
    } known = {nullptr, 0, scratch_};
    if (id_count > 0) {
        expectation_.begin_transaction();
        state::load_places(
            sink_id_, ids, id_count,
            [](void *to, const state::event_place &place) {
                auto *list = static_cast<place_list *>(to);
                MemoryContext old = MemoryContextSwitchTo(list->context);
                if (!list->places)
                    list->places = static_cast<state::event_place *>(palloc(sizeof(state::event_place)));
                else if ((list->count & (list->count - 1)) == 0)
                    list->places = static_cast<state::event_place *>(
                        repalloc_huge(list->places, sizeof(state::event_place) * list->count * 2));
                list->places[list->count++] = place;
                MemoryContextSwitchTo(old);
            },
            &known);
        expectation_.commit_transaction();
    }
    for (int i = 0; i < extra_count_; ++i) {
        const unexplained_entry &entry = extras_[i];
        const state::event_place *belongs = nullptr;
        bool right = false, dead = false;
        for (Size k = 0; entry.has_id && k < known.count; ++k) {
            const state::event_place &place = known.places[k];
            if (memcmp(place.id.data, entry.id.data, UUID_LEN) != 0)
                continue;
            bool here = strcmp(place.topic, entry.topic) == 0 && strcmp(place.at, entry.at) == 0;
            right = right || (here && !place.dead);
            dead = dead || place.dead;
            if (!belongs || !place.dead)
                belongs = &place;
        }
        if (right)
            continue;
        position at;
        if (belongs && !*belongs->at && carried_.ms > 0 && parse(entry.at, at) && at.ms == carried_.ms) {
            ++optional_; // of a tick that is only in the marker
            continue;
        }
        const char *what = !entry.has_id ? "the entry has no event id"
                           : !belongs    ? "no retained event has its id"
                           : dead        ? "its event is a dead letter"
                           : !*belongs->at ? "its event is not published yet"
                                           : "its event has another place";
        const char *detail = *entry.event_type ? psprintf("%s; event type \"%s\"", what, entry.event_type) : what;
        bool placed = belongs && *belongs->at && !belongs->dead;
        report("extra", entry.topic, entry.at, entry.has_id ? &entry.id : nullptr, placed ? belongs->topic : nullptr,
               placed ? belongs->at : nullptr, 1, detail);
    }
    extra_count_ = 0;
    if (known.places)
        pfree(known.places);
    pfree(ids);
}

// Entries behind all windows, and in streams that no window had anything in.
void verifier::compare_tails() {
    MemoryContextSwitchTo(scratch_);
    int count;
    checked_stream **streams = all_streams(count);
    // those that came up on the way
    int unseen = static_cast<int>(
        std::partition(streams, streams + count, [](const checked_stream *stream) { return !stream->looked; }) - streams);
    look_at(streams, unseen);
    for (int i = 0; i < count; ++i) {
        position upto = std::min(streams[i]->end, position{request_.until_ms, PG_INT64_MAX});
        if (upto > begin_of(*streams[i]))
            compare_entries(*streams[i], upto, true);
    }
    pfree(streams);
}

// No stream can have lost more to trimming than was ever taken out of it: the rest was lost with an older stream of that name.
void verifier::report_trimmed() {
    int count;
    checked_stream **streams = all_streams(count);
    for (int i = 0; i < count; ++i) {
        checked_stream &stream = *streams[i];
        if (stream.trimmed == 0)
            continue;
        char first[position_text_size + 1], last[position_text_size + 1];
        print_text(stream.trimmed_first, first);
        print_text(stream.trimmed_last, last);
        int64 possible = std::max<int64>(0, stream.taken_out - stream.deleted);
        if (stream.taken_out >= 0 && stream.trimmed > possible)
            report("missing", stream.name(), first, nullptr, nullptr, nullptr, stream.trimmed - possible,
                   psprintf("%lld entries up to %s are gone, of which %lld at most can have been trimmed",
                            static_cast<long long>(stream.trimmed), last, static_cast<long long>(possible)));
        else
            report("trimmed", stream.name(), first, nullptr, nullptr, nullptr, stream.trimmed,
                   psprintf("entries up to %s were trimmed", last));
    }
    pfree(streams);
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

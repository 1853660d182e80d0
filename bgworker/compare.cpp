// The comparison of one window, and of what streams have behind the last one: by sums, and entry by entry where these differ.

#include "bgworker/verifier.hpp"

#include "bgworker/marker.hpp"
#include "bgworker/reply.hpp"
#include "common/resp.hpp"

#include "extension/guard.hpp"

namespace outbox {

constexpr std::size_t page_bytes = 1024 * 1024; // of entries that are asked for at once, about
constexpr int max_page = 1000;                  // entries
constexpr int first_page = 16;                  // entries, of a stream that nothing is known of
constexpr int streams_at_once = 16;

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

} // namespace outbox

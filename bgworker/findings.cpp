// What outbox.verify() finds not as it should be: entries that are missing or that no event explains, and where they belong.

#include "bgworker/verifier.hpp"

#include "bgworker/reply.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

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

} // namespace outbox

// A replay into streams that are not the sink's own: chunks of entries, each with a marker that says how far the target is.

#include "bgworker/replayer.hpp"

#include "bgworker/fields.hpp"
#include "bgworker/reply.hpp"
#include "common/crash_point.hpp"
#include "common/resp.hpp"

#include "extension/guard.hpp"
#include "extension/printable.hpp"

namespace outbox {

constexpr std::size_t bytes_in_chunk = 512 * 1024;
constexpr char marker_lifetime[] = "2592000"; // s; without it the replay begins anew, and finds its entries there

target_stream *replayer::stream_of(std::string_view topic) {
    char key[max_topic_length + 1] = {};
    memcpy(key, topic.data(), std::min(topic.size(), max_topic_length));
    bool found;
    auto *stream = static_cast<target_stream *>(hash_search(streams_, key, HASH_ENTER, &found));
    if (!found) {
        *stream = {};
        memcpy(stream->topic, key, sizeof key);
    }
    return stream;
}

// Inside a transaction; both kinds. `filter` is that of the event's tick.
void replayer::append(const event_row &event, position at, const sinks::filter *filter) {
    if (cancelled_)
        return;
    if (copies()) {
        // first of all: from here on nobody cancels it
        if (added_ == 0 && !replay::lock(task_)) {
            cancelled_ = true;
            expectation_.stop();
            return;
        }
        record_copy(event);
    } else {
        if (sent_count_ == sent_capacity_) {
            Size wanted = sent_capacity_ ? sent_capacity_ * 2 : static_cast<Size>(events_in_chunk);
            auto *grown = static_cast<sent_entry *>(MemoryContextAllocHuge(TopMemoryContext, sizeof(sent_entry) * wanted));
            std::copy(sent_, sent_ + sent_count_, grown);
            if (sent_)
                pfree(sent_);
            sent_ = grown;
            sent_capacity_ = wanted;
        }
        target_stream *stream = stream_of(event.topic);
        event_row sent = event; // a copy goes through the transform when it is sent
        if (filter && filter->transform_function().name) {
            const transform::result made = transform::apply(filter->transform_function(), event, true);
            if (made.what == transform::outcome::failed)
                ereport(ERROR, errmsg("%s", made.error));
            if (made.what == transform::outcome::withheld)
                return;
            sent.payload = made.payload;
        }
        const entry_fields fields = fields_of(sent, naming_, at, stream->exists);
        cpp_call([&] {
            unused_->clear();
            append_entry(*commands_, *unused_, fields);
        });
        sent_[sent_count_++] = {stream, at, *event.event_id};
        if (commands_->size() >= bytes_in_chunk)
            expectation_.stop();
    }
    last_ = at;
    ++added_;
    if (added_ >= events_in_chunk)
        expectation_.stop();
}

void replayer::begin_chunk() {
    added_ = 0;
    sent_count_ = 0;
    if (!copies())
        cpp_call([this] {
            commands_->clear();
            resp::append(*commands_, "MULTI");
        });
}

// The connection, or Redis as a whole. The next worker tries again.
replayer::outcome replayer::lost() {
    char error[256];
    strlcpy(error, printable(link_.error(), sizeof error - 1), sizeof error);
    ereport(LOG, errmsg("replay %lld of sink \"%s\" has to wait for Redis at \"%s\": %s", static_cast<long long>(task_.id), sink_.name,
                        link_.endpoint(), error));
    expectation_.begin_transaction();
    replay::note_trouble(task_, error);
    expectation_.commit_transaction();
    return outcome::trouble;
}

// Where the target is, by its marker.
replayer::outcome replayer::connect() {
    char name[80];
    pg_snprintf(name, sizeof name, "outbox:replay:%s", task_.uuid);
    if (!link_.open(name, sink_.url))
        return lost();
    cpp_call([this] {
        commands_->clear();
        resp::append(*commands_, "WATCH", marker_key_);
        resp::append(*commands_, "GET", marker_key_);
    });
    if (!link_.ask(*commands_, 2))
        return lost();
    for (std::size_t i = 0; i < 2; ++i)
        if (link_.reply(i).type == REDIS_REPLY_ERROR) {
            link_.fail(pstrdup(link_.reply(i).str));
            return lost();
        }
    const redisReply &reply = link_.reply(1);
    std::string_view marker(reply.str ? reply.str : "", static_cast<std::size_t>(reply.len));
    auto space = marker.find(' ');
    position at;
    if (space != std::string_view::npos && parse(marker.substr(0, space), at)) {
        task_.at = at;
        task_.done = strtoll(pnstrdup(marker.data() + space + 1, marker.size() - space - 1), nullptr, 10);
    } else {
        // It never came so far, or Redis has lost it: what is there already will be recognised.
        task_.at = {};
        task_.done = 0;
    }
    last_ = task_.at;
    return outcome::good;
}

// Entries that were refused as their ID is not above their stream's last: right where that entry is this event.
replayer::outcome replayer::recognise(const int *refused, int count) {
    cpp_call([&] {
        commands_->clear();
        for (int i = 0; i < count; ++i) {
            char text[position_text_size];
            std::string_view at(text, print(sent_[refused[i]].at, text));
            append_xrange(*commands_, sent_[refused[i]].stream->topic, at, at, 1, naming_);
        }
    });
    if (!link_.ask(*commands_, static_cast<std::size_t>(count)))
        return lost();
    for (int i = 0; i < count; ++i) {
        const sent_entry &entry = sent_[refused[i]];
        const redisReply &found = link_.reply(static_cast<std::size_t>(i));
        if (found.type == REDIS_REPLY_ERROR) {
            link_.fail(pstrdup(found.str));
            return lost();
        }
        pg_uuid_t id;
        if (found.type == REDIS_REPLY_ARRAY && found.elements == 1 && read_event_id(*found.element[0], id.data) &&
            memcmp(id.data, entry.id.data, UUID_LEN) == 0)
            continue;
        char at[position_text_size + 1];
        at[print(entry.at, at)] = '\0';
        return end("failed", psprintf("stream \"%.*s%s%.*s\" has entries of others at or above %s",
                                      static_cast<int>(naming_.before.size()), naming_.before.data(), entry.stream->topic,
                                      static_cast<int>(naming_.behind.size()), naming_.behind.data(), at));
    }
    return outcome::good;
}

replayer::outcome replayer::judge(const redisReply &executed) {
    auto *refused = static_cast<int *>(palloc(sizeof(int) * (sent_count_ + 1)));
    int count = 0;
    for (Size i = 0; i < sent_count_; ++i) {
        const redisReply &reply = *executed.element[i];
        const char *topic = sent_[i].stream->topic;
        if (reply.type == REDIS_REPLY_NIL)
            return end("failed", psprintf("the stream of topic \"%s\" was deleted meanwhile", topic));
        if (reply.type == REDIS_REPLY_ERROR && blame_for(reply.str, false) == blame::rejected)
            refused[count++] = static_cast<int>(i);
        else if (reply.type == REDIS_REPLY_ERROR) // others of the chunk may have been appended
            return end("failed", psprintf("the stream of topic \"%s\": %s", topic, printable(reply.str, 200)));
        sent_[i].stream->exists = true;
    }
    return count > 0 ? recognise(refused, count) : outcome::good;
}

// As a whole or not at all, and only where the marker is what this process saw or wrote last.
replayer::outcome replayer::send_chunk() {
    if (added_ == 0)
        return outcome::good;
    char text[position_text_size + 1];
    text[print(last_, text)] = '\0';
    pg_snprintf(marker_, sizeof marker_, "%s %lld", text, static_cast<long long>(task_.done + added_));
    cpp_call([this] {
        resp::append(*commands_, "SET", marker_key_, marker_, "EX", marker_lifetime);
        resp::append(*commands_, "EXEC");
        resp::append(*commands_, "WATCH", marker_key_);
        resp::append(*commands_, "GET", marker_key_);
    });
    const std::size_t queued = sent_count_ + 2, replies = queued + 3;
    if (!link_.send(*commands_))
        return lost();
    OUTBOX_CRASH_POINT("replay_chunk_sent");
    if (!link_.receive(replies))
        return lost();
    OUTBOX_CRASH_POINT("replay_chunk_taken"); // Redis knows how far it is, and nobody else
    const redisReply &executed = link_.reply(queued), &seen = link_.reply(replies - 1);
    if (executed.type != REDIS_REPLY_ARRAY || executed.elements != sent_count_ + 1) {
        const char *why = executed.type == REDIS_REPLY_NIL ? "its marker has changed" : "unexpected reply";
        for (std::size_t i = queued + 1; i-- > 0;)
            if (link_.reply(i).type == REDIS_REPLY_ERROR)
                why = link_.reply(i).str;
        link_.fail(pstrdup(why));
        return lost();
    }
    const redisReply &set = *executed.element[sent_count_];
    if (set.type == REDIS_REPLY_ERROR)
        return end("failed", psprintf("the marker of the replay: %s", printable(set.str, 200)));
    bool ours = seen.type == REDIS_REPLY_STRING && strcmp(seen.str, marker_) == 0;
    outcome result = judge(executed); // its own questions overwrite the replies
    if (result != outcome::good)
        return result;
    if (!ours) {
        link_.fail("its marker has changed");
        return lost();
    }
    task_.at = last_;
    task_.done += added_;
    task_.attempts = 0;
    return outcome::good;
}

} // namespace outbox

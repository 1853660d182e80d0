// Groups, reading, and what comes in.
#include <algorithm>
#include <array>
#include <unordered_set>

#include "common/crash_point.hpp"
#include "src/engine.hpp"
#include "src/entry.hpp"
#include "src/event_access.hpp"
#include "src/text.hpp"

namespace outbox::detail {

using namespace std::chrono_literals;

// Makes sure that the group is there on every stream, then looks for what is pending with this consumer and not in its hands,
// then reads. After every connect, and when Redis says that a group is missing.
void engine::ensure_groups() {
    if (stopping_ != stopping::no || groups_asked_ || !reader_->ready() || !commands_->ready())
        return;
    if (reads_ > 0 || finding_broken_) {
        // what that read may bring would be found by the sweep as well; reader_ready() begins again
        reader_->reconnect("the group is looked for anew");
        return;
    }
    groups_asked_ = true;
    groups_ready_ = false;
    groups_tried_ = lease_clock::now();
    if (keeper_ == nullptr) {
        create_groups({});
        return;
    }
    // Where the group has finished a topic is known beside the inbox, and nowhere else once Redis has forgotten the group.
    keeper_->load(*topics_, [this](std::map<std::string, std::string> positions) {
        post([this, positions = std::move(positions)] { create_groups(positions); });
    });
}

void engine::create_groups(const std::map<std::string, std::string> &positions) {
    struct progress {
        std::size_t left;
        bool failed = false;
    };
    auto all = std::make_shared<progress>();
    all->left = streams_.size();
    for (auto &made : streams_) {
        stream &stream = *made;
        // Everything in the redrive stream is yet to be done: it is deleted from there when it is.
        std::string start = stream.redrive ? "0" : options_.start;
        if (auto known = positions.find(std::string(stream.topic)); !stream.redrive && known != positions.end())
            start = known->second;
        std::string fresh = options_.name + "-" + std::to_string(lease_clock::now().time_since_epoch().count());
        std::array<std::string_view, 2> keys{stream.key, stream.generation_key};
        std::array<std::string_view, 3> words{options_.group, start, fresh};
        commands_->run(make_group, keys, words, [this, &stream, all, start](const redisReply *reply) {
            if (reply != nullptr && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2) {
                if (reply->element[0]->integer != 0) {
                    OUTBOX_CRASH_POINT("group_made");
                    counters_.groups_created.add();
                    if (!stream.redrive)
                        log(log_level::info, "made group \"" + options_.group + "\" on " + stream.key + ", from " + start);
                }
                if (stream.generation != text(*reply->element[1])) {
                    stream.generation = text(*reply->element[1]);
                    void_leases(stream);
                }
            } else {
                // the stream has a wrong type or is forbidden: the others go on without it
                if (reply != nullptr && classify(*reply) == trouble::key) {
                    stream.broken_for = std::clamp<milliseconds>(stream.broken_for * 2, 500ms, 30s);
                    stream.broken_until = lease_clock::now() + stream.broken_for;
                } else {
                    all->failed = true;
                }
                trouble_of(reply, *commands_, "could not make group \"" + options_.group + "\" on " + stream.key);
            }
            if (--all->left > 0)
                return;
            groups_asked_ = false;
            if (stopping_ != stopping::no)
                return;
            if (!all->failed) {
                sweep();
            } else if (commands_->ready()) {
                groups_missing();
            }
        });
    }
}

// Never in a hot loop: Redis may be in the middle of losing its data, again and again.
void engine::groups_missing() {
    groups_ready_ = false;
    for (auto &stream : streams_)
        void_leases(*stream);
    if (stopping_ != stopping::no || groups_asked_ || groups_timer_.active())
        return;
    // The delay begins anew when a read went well, which it may between two losses.
    auto since = std::chrono::floor<milliseconds>(lease_clock::now() - groups_tried_);
    groups_timer_.start(std::max(groups_delay_, 500ms - since));
    groups_delay_ = std::clamp<milliseconds>(groups_delay_ * 2, 500ms, 5s);
}

// What is held here may be pending nowhere, or with somebody else. Before a handler gets it Redis must say that it is ours.
void engine::void_leases(stream &stream) {
    for (delivery *one = stream.first_held; one != nullptr; one = one->next_held)
        one->lease_until.store(time_point{}, std::memory_order_relaxed);
}

// A reply that never arrived leaves entries pending with this consumer that nobody holds. They are looked for before the first
// read on a connection, since what a later read brings is pending as well; and before anything else starts, since they may be
// what others of their aggregate must wait for.
void engine::sweep() {
    struct progress {
        std::size_t left;
        bool failed = false;
    };
    auto all = std::make_shared<progress>();
    all->left = streams_.size();
    for (auto &stream : streams_)
        take_over(*stream, true, "-", [this, all](bool done) {
            all->failed |= !done;
            if (--all->left > 0 || stopping_ != stopping::no || !reader_->ready() || !commands_->ready() || groups_asked_)
                return; // whoever is ready next begins anew, or has begun
            if (all->failed) {
                groups_missing();
                return;
            }
            groups_ready_ = swept_ = true;
            inspect_held();
        });
}

void engine::read() {
    // While there is a backlog the next read is on its way before the last one's reply is here: Redis is not to wait for us.
    if (!groups_ready_ || finding_broken_ || reads_ > (behind_ ? 1 : 0) || stopping_ != stopping::no || !reader_->ready() || read_timer_.active())
        return;
    time_point now = lease_clock::now();
    std::vector<std::string_view> keys;
    for (auto &stream : streams_)
        if (stream->broken_until <= now)
            keys.push_back(stream->key);
    if (keys.empty()) {
        read_timer_.start(500ms);
        return;
    }
    // COUNT is for each stream. The redrive streams, which are nearly always empty, are not reckoned with. Two for each topic
    // there must be in any case, or one that waits would keep all from being read.
    auto topics = static_cast<double>(topics_->size());
    auto bytes = static_cast<double>(options_.prefetch_bytes);
    double entries = std::max(static_cast<double>(options_.prefetch), 2 * topics);
    double most = std::min(entries, bytes / entry_bytes_);
    // What waits for nothing but its acknowledgement is not ahead of the handlers; unless there is more and more of it.
    auto coming = static_cast<double>(coming_);
    double ahead = static_cast<double>(held_) - std::min(static_cast<double>(settling_), entries);
    double room = std::min(entries - ahead - coming, (bytes - static_cast<double>(held_bytes_)) / entry_bytes_ - coming);
    // A few large reads are cheaper than many small ones. With nothing held one is always read, however large it is.
    if (held_ + coming_ > 0 && room < std::max({1.0, std::min(topics, most / 2), most / 4}))
        return;
    // Nor too large: the next one is executed while this one's reply is looked at, which is still in the processor's cache then.
    room = std::clamp(room / topics, 1.0, 128.0);
    const auto count = static_cast<std::size_t>(room);
    const std::size_t reserved = count * topics_->size();
    std::string count_text = std::to_string(count), block = std::to_string(options_.block.count());
    std::vector<std::string_view> words{"XREADGROUP", "GROUP", options_.group, options_.name, "COUNT", count_text};
    // one that waits behind another one does not wait for entries itself
    if (reads_ == 0)
        words.insert(words.end(), {"BLOCK", block});
    words.push_back("STREAMS");
    words.insert(words.end(), keys.begin(), keys.end());
    words.insert(words.end(), keys.size(), ">");
    ++reads_;
    coming_ += reserved;
    reader_->command(
        words, [this, asked = now, count, reserved](const redisReply *reply) { on_read(reply, asked, count, reserved); }, options_.block);
}

void engine::on_read(const redisReply *reply, time_point asked, std::size_t count, std::size_t reserved) {
    --reads_;
    coming_ -= reserved;
    behind_ = false;
    if (reply == nullptr)
        return; // lost: reader_ready() begins anew
    switch (classify(*reply)) {
    case trouble::none:
        break;
    case trouble::no_group:
        groups_missing();
        return;
    case trouble::key:
        if (reads_ == 0) // or the other one will say so, too
            find_broken(text(*reply));
        return;
    case trouble::reconnect:
        log(log_level::warning, "could not read: " + printable(text(*reply)));
        reader_->reconnect(text(*reply));
        return;
    default:
        log_seldom(log_level::warning, "could not read: " + printable(text(*reply)));
        read_delay_ = std::clamp<milliseconds>(read_delay_ * 2, options_.reconnect_min, options_.reconnect_max);
        read_timer_.start(read_delay_);
        return;
    }
    std::vector<raw_stream> streams;
    if (!interpret_read(*reply, streams)) {
        // no Redis, or one that speaks another language: what it brought is swept up
        reader_->reconnect("an answer that is none to XREADGROUP");
        return;
    }
    OUTBOX_CRASH_POINT(streams.empty() ? "" : "entry_read");
    read_delay_ = 0ms;
    groups_delay_ = 0ms;
    std::size_t total = 0;
    for (const raw_stream &raw : streams) {
        total += raw.entries.size();
        behind_ |= raw.entries.size() == count;
    }
    for (const raw_stream &raw : streams) {
        auto found = std::find_if(streams_.begin(), streams_.end(), [&raw](auto &stream) { return stream->key == raw.key; });
        if (found == streams_.end())
            continue;
        std::vector<arrival> arrivals;
        arrivals.reserve(raw.entries.size());
        for (const raw_entry &entry : raw.entries)
            arrivals.push_back({entry.id, entry.fields, 0, false, false});
        (*found)->broken_for = 0ms;
        admit(**found, reply, arrivals, arena_size(reply) * arrivals.size() / total, asked);
    }
}

// A read of several streams fails as a whole when one of them has the wrong type or is forbidden: find out which, and go on
// without it.
void engine::find_broken(std::string_view why) {
    log(log_level::error, "could not read: " + printable(why));
    struct progress {
        std::size_t left;
        bool found = false;
    };
    auto all = std::make_shared<progress>();
    all->left = streams_.size();
    finding_broken_ = true;
    for (auto &asked : streams_)
        reader_->command({"XREADGROUP", "GROUP", options_.group, options_.name, "COUNT", "1", "STREAMS", asked->key, "0"},
                         [this, &stream = *asked, all](const redisReply *reply) {
                             if (reply != nullptr && classify(*reply) == trouble::key) {
                                 all->found = true;
                                 stream.broken_for = std::clamp<milliseconds>(stream.broken_for * 2, 500ms, 30s);
                                 stream.broken_until = lease_clock::now() + stream.broken_for;
                                 log(log_level::error, "going on without " + stream.key + " for " +
                                                           std::to_string(stream.broken_for.count()) +
                                                           " ms: " + printable(text(*reply)));
                             } else if (reply != nullptr) {
                                 stream.broken_for = 0ms;
                             }
                             if (--all->left > 0)
                                 return;
                             finding_broken_ = false;
                             if (!all->found)
                                 read_timer_.start(500ms);
                         });
}

delivery *engine::find_held(const stream &stream, entry_id id) const {
    for (delivery *one = stream.first_held; one != nullptr; one = one->next_held)
        if (one->id == id)
            return one;
    return nullptr;
}

// It has become ours anew, so others may have become owners of what is before it: nobody has asked since. The caller inspects.
void engine::hold_back(delivery &one) {
    if (one.lane == nullptr)
        return;
    one.held = one.unseen = true;
    scheduler_.reconsider(one);
}

// It was delivered to us again while it is in hand. True if the caller is to inspect.
bool engine::came_again(delivery &one, time_point asked) {
    if (one.is == delivery::state::settling)
        return false;
    // what was asked about it before may be answered "not yours" yet
    one.lost = one.renewing = false;
    one.lease_until.store(asked + options_.claim_idle, std::memory_order_relaxed);
    if (one.verifying) {
        one.verifying = false;
        scheduler_.put_back(one);
    }
    if (one.is == delivery::state::started)
        return false;
    hold_back(one);
    return one.held;
}

// What an event's views point into: the reply, and the topic's name.
struct event_memory {
    std::shared_ptr<const void> reply;
    std::shared_ptr<const std::vector<std::string>> topics;
};

// One that is going to wait for long takes its texts out of the reply that it came with: or that, and what came beside it,
// would wait as well.
void engine::keep_alone(delivery &one) {
    struct own_memory {
        std::string text;
        std::shared_ptr<const std::vector<std::string>> topics;
    };
    event::fields fields = event_access::fields(one.event);
    std::string_view position = one.event.position();
    std::string_view *const texts[] = {&fields.id,          &fields.type,    &fields.aggregate_type, &fields.aggregate_id,
                                       &fields.occurred_at, &fields.headers, &fields.payload,        &position,
                                       &one.id_text};
    std::size_t size = 0;
    for (const std::string_view *text : texts)
        size += text->size();
    if (one.batch->bytes <= 2 * size + 4096)
        return;
    auto memory = std::make_shared<own_memory>();
    memory->topics = topics_;
    memory->text.reserve(size); // so the views stay good
    for (std::string_view *text : texts) {
        const char *begin = memory->text.data() + memory->text.size();
        memory->text += *text;
        *text = std::string_view(begin, text->size());
    }
    one.event = event(fields, one.event.topic(), position, one.event.attempt(), memory);

    auto alone = std::make_shared<batch>();
    alone->bytes = sizeof(own_memory) + size;
    alone->live = 1;
    leave_batch(one);
    held_bytes_ += alone->bytes;
    one.batch = std::move(alone);
    counters_.held_bytes.set(held_bytes_);
}

void engine::leave_batch(delivery &one) {
    if (--one.batch->live == 0)
        held_bytes_ -= one.batch->bytes;
}

void engine::admit(stream &stream, const redisReply *outermost, const std::vector<arrival> &arrivals, std::size_t bytes,
                   time_point asked) {
    if (arrivals.empty())
        return;
    auto memory = std::make_shared<event_memory>();
    memory->reply = share(outermost);
    memory->topics = topics_;
    std::string_view topic = *std::find(topics_->begin(), topics_->end(), stream.topic);
    auto together = std::make_shared<batch>();
    bool look = false;

    for (const arrival &arrived : arrivals) {
        entry_id id;
        if (!parse(arrived.id, id))
            continue; // interpret_read has seen to it
        // New entries come in order; what comes late, or again, may be here already.
        if (id <= stream.newest) {
            if (delivery *here = find_held(stream, id)) {
                look |= came_again(*here, asked);
                continue;
            }
        } else {
            stream.newest = id;
        }
        counters_.read.add();
        decoded entry;
        if (arrived.fields != nullptr)
            entry = decode(*arrived.fields);
        else
            entry.reason = "the entry was trimmed away before it was handled";
        std::string_view position = stream.redrive && !entry.first_position.empty() ? entry.first_position : arrived.id;
        auto *one = new delivery(event(entry.fields, topic, position, arrived.attempts + 1, memory), id, arrived.id);
        one->stream = &stream;
        one->attempts = arrived.attempts;
        one->written = arrived.written;
        one->suspect = arrived.suspect;
        one->lease_until.store(asked + options_.claim_idle, std::memory_order_relaxed);
        one->aggregate = aggregate_in(stream.topic, entry.fields);
        one->redriven = stream.redrive;
        one->batch = together;
        ++together->live;

        one->previous_held = stream.last_held;
        (stream.last_held != nullptr ? stream.last_held->next_held : stream.first_held) = one;
        stream.last_held = one;
        ++held_;

        one->reason = std::move(entry.reason);
        if (one->reason.empty() && !handlers_->route(*one, options_.on_unhandled == on_unhandled::dead_letter)) {
            counters_.unhandled.add();
            settle(*one);
            continue;
        }
        if (one->reason.empty() && one->attempts >= options_.retry.max_attempts)
            one->reason = "the handler did not come back from " + std::to_string(one->attempts) +
                          (one->attempts == 1 ? " attempt" : " attempts") + ": its process died or was stopped";
        if (options_.ordering == ordering::aggregate && one->aggregate != 0)
            one->held = one->unseen = look = true;
        scheduler_.admit(*one);
    }
    if (together->live > 0) {
        together->bytes = bytes;
        double each = static_cast<double>(bytes) / static_cast<double>(arrivals.size());
        // up at once, down slowly: the next read is bounded by what this one brought
        entry_bytes_ = std::max(each, entry_bytes_ * 0.5);
        held_bytes_ += bytes;
    }
    counters_.held.set(held_);
    counters_.held_bytes.set(held_bytes_);
    if (look)
        inspect(stream);
}

} // namespace outbox::detail

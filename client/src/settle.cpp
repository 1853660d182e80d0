// From a handler's end to the acknowledgement, the next attempt or the dead letters.
#include <algorithm>
#include <array>

#include "common/crash_point.hpp"
#include "src/engine.hpp"
#include "src/entry.hpp"
#include "src/event_access.hpp"
#include "src/rules.hpp"
#include "src/text.hpp"

namespace outbox::detail {

using namespace std::chrono_literals;

constexpr std::size_t settle_at_once = 512; // entries in one command or script

void engine::collect() {
    finished_.clear();
    mailbox_->collect(finished_);
    pool_moved_ |= !finished_.empty();
    for (delivery *one : finished_) {
        one->running = false;
        --submitted_;
        ended(*one);
    }
}

void engine::ended(delivery &one) {
    if (one.end.is == outcome::kind::stale) {
        // it has not started: the round asks whether it is still ours
        scheduler_.put_back(one);
        return;
    }
    if (one.end.is == outcome::kind::unavailable) {
        // the event is not to blame, so it spends no attempt; the others wait as well, in their own time
        log_seldom(log_level::warning, printable(one.end.error));
        retry(one, std::clamp<milliseconds>(options_.reconnect_min * 10, 0ms, options_.reconnect_max));
        return;
    }
    verdict next = judge(one, options_, counters_, std::uniform_real_distribution<double>()(random_));
    if (next.is == verdict::kind::settle) {
        settle(one);
        return;
    }
    one.suspect = false;
    if (one.lost)
        drop(one); // whoever has it now tries again
    else if (next.is == verdict::kind::die)
        bury(one);
    else
        retry(one, next.delay);
}

// A handler may say "never"; a clock that counts nanoseconds ends after 292 years.
void engine::retry(delivery &one, milliseconds delay) {
    keep_alone(one);
    scheduler_.delay(one, lease_clock::now() + std::min<milliseconds>(delay, std::chrono::years(100)));
}

void engine::settle(delivery &one) {
    scheduler_.remove(one);
    one.stream->settled.push_back(&one);
    ++settling_;
}

// One request at a time for each stream: what is settled meanwhile goes with the next, so a busy consumer acknowledges in
// large batches and an idle one at once. A crash before Redis has it: the entries are delivered again, to whoever takes them
// over.
void engine::acknowledge(stream &stream) {
    if (stream.acknowledging == 0)
        acknowledge_some(stream);
}

void engine::acknowledge_all() {
    for (auto &stream : streams_)
        while (acknowledge_some(*stream))
            ;
}

// False if there is nothing (more), or it cannot be now.
bool engine::acknowledge_some(stream &stream) {
    if (stream.settled.empty() || !commands_->ready())
        return false;
    time_point now = lease_clock::now();
    if (now < stream.settle_after)
        return false; // keep() brings the loop round again
    // Three ways, one after the other: a plain XACK; with marks or numbers to write or forget; and that only if the entry is
    // still ours, for what was held longer than its lease.
    bool marks = options_.idempotency == idempotency::redis;
    auto way = [&](const delivery *one) {
        if (one->lost || one->lease_until.load(std::memory_order_relaxed) <= now)
            return 2;
        return marks || one->written || stream.redrive ? 1 : 0;
    };
    OUTBOX_CRASH_POINT("before_acknowledgement");
    auto &settled = stream.settled;
    int chosen = way(settled.front());
    auto end = std::find_if(settled.begin(), settled.end(), [&](auto *one) { return way(one) != chosen; });
    end = std::min(end, settled.begin() + static_cast<std::ptrdiff_t>(std::min(settled.size(), settle_at_once)));
    std::vector<delivery *> part(settled.begin(), end);
    settled.erase(settled.begin(), end);

    ++stream.acknowledging;
    stream.saved = false;
    auto done = [this, &stream, part](const redisReply *reply) { acknowledged(stream, part, reply); };
    if (chosen == 0) {
        std::vector<std::string_view> words{"XACK", stream.key, options_.group};
        for (delivery *one : part)
            words.push_back(one->id_text);
        commands_->command(words, done);
        return true;
    }
    std::string ttl = std::to_string(options_.idempotency_ttl.count());
    std::vector<std::string_view> words{options_.group, options_.name, marks ? stream.keys->event : std::string_view(), ttl,
                                        stream.redrive ? "1" : "0", chosen == 2 ? "1" : "0"};
    for (delivery *one : part) {
        words.push_back(one->id_text);
        words.push_back(one->event.id());
    }
    std::array<std::string_view, 2> keys{stream.key, stream.attempts_key};
    commands_->run(finish, keys, words, done);
    return true;
}

void engine::acknowledged(stream &stream, const std::vector<delivery *> &part, const redisReply *reply) {
    --stream.acknowledging;
    // A group that is gone has nothing to acknowledge: what it is made anew for brings these again.
    bool gone = reply != nullptr && classify(*reply) == trouble::no_group;
    if (trouble_of(reply, *commands_, "could not acknowledge on " + stream.key) && !gone) {
        // To be sent again, before what came later. Not at once where Redis refuses it.
        stream.settled.insert(stream.settled.begin(), part.begin(), part.end());
        stream.settle_after = reply != nullptr ? lease_clock::now() + options_.reconnect_min : time_point{};
        return;
    }
    OUTBOX_CRASH_POINT("after_acknowledgement");
    settling_ -= part.size();
    for (delivery *one : part)
        forget(*one);
    // last: whoever sees the number finds the room made as well
    if (!gone)
        counters_.acknowledged.add(part.size());
}

// Its lane waits until Redis has it among the dead letters, so that with park_aggregate the next one finds it there.
void engine::bury(delivery &one) {
    one.is = delivery::state::started;
    ++burying_;
    stream &stream = *one.stream;
    const topic_keys &keys = *stream.keys;
    bool parks = options_.on_poison == on_poison::park_aggregate && one.aggregate != 0;
    std::string attempts = std::to_string(one.attempts);
    std::string aggregate = aggregate_key(event_access::fields(one.event));
    std::string event;
    if (options_.idempotency == idempotency::redis && !one.event.id().empty())
        event = keys.event + std::string(one.event.id());
    std::array<std::string_view, 5> names{stream.key, stream.attempts_key, keys.dead, keys.parked, keys.redrive};
    std::array<std::string_view, 8> words{options_.group, options_.name, one.id_text,       one.reason,
                                          attempts,       aggregate,     parks ? "1" : "0", event};
    OUTBOX_CRASH_POINT("before_dead_letter");
    commands_->run(detail::bury, names, words, [this, &one](const redisReply *reply) {
        --burying_;
        if (trouble_of(reply, *commands_, "could not move an entry to the dead letters")) {
            // It stays pending, and its aggregate waits; until somebody mends what is in the way.
            retry(one, options_.reconnect_max / 10);
            return;
        }
        if (reply->type == REDIS_REPLY_NIL) {
            drop(one);
            return;
        }
        OUTBOX_CRASH_POINT("after_dead_letter");
        note_burial(one, one.stream->key, options_, counters_);
        scheduler_.remove(one);
        forget(one);
    });
}

// Somebody else has it by now, or nobody has. Those behind it must wait for it all the same.
void engine::drop(delivery &one) {
    counters_.lost_leases.add();
    bool look = false;
    stream &stream = *one.stream;
    scheduler_.for_each_behind(one, [this, &look, &stream](delivery &other) {
        if (other.stream != &stream)
            return; // nothing in its own stream has changed, and nobody would look there
        other.held = other.unseen = look = true;
        scheduler_.reconsider(other);
    });
    scheduler_.remove(one);
    forget(one);
    if (look)
        inspect(stream);
}

void engine::forget(delivery &one) {
    stream &stream = *one.stream;
    (one.previous_held != nullptr ? one.previous_held->next_held : stream.first_held) = one.next_held;
    (one.next_held != nullptr ? one.next_held->previous_held : stream.last_held) = one.previous_held;
    --held_;
    std::erase(on_trial_, &one);
    leave_batch(one);
    delete &one;
    counters_.held.set(held_);
    counters_.held_bytes.set(held_bytes_);
}

} // namespace outbox::detail

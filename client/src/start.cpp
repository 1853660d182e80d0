// From "its lane lets it" to a handler: what other consumers have before it, whose turn Redis says it is, the rate limit.
#include <algorithm>
#include <array>
#include <cmath>

#include "common/crash_point.hpp"
#include "src/engine.hpp"
#include "src/entry.hpp"
#include "src/event_access.hpp"
#include "src/text.hpp"

namespace outbox::detail {

using namespace std::chrono_literals;

constexpr std::size_t begin_at_once = 128; // entries in one script: Redis serves nobody else meanwhile

// The attempt must be written down before it starts, because nothing else would count it: the first of a fresh delivery is
// known by the delivery itself, unless it is the only one there may be. An entry that is taken over without a number on it
// counts one attempt, then.
bool engine::must_write(const delivery &one) const {
    return one.attempts > 0 || one.written || options_.retry.max_attempts == 1;
}

// Whether Redis has a say before this one may start.
bool engine::must_ask(const delivery &one) const {
    return options_.idempotency == idempotency::redis || must_write(one) ||
           (options_.on_poison == on_poison::park_aggregate && one.aggregate != 0);
}

// A handler that kills its process takes those that run beside it along, and their attempts are spent as well. So whatever has
// been in a process that died stands in line here, and makes its last attempt when no other such is at work, and the end of
// all before it is known in Redis. Before anything else may take the threads. False if it waits for a thread.
bool engine::try_suspects(time_point now) {
    using state = delivery::state;
    std::erase_if(on_trial_, [](auto *one) { return one->is != state::started && one->is != state::settling; });
    auto is_last = [this](const delivery &one) { return one.attempts + 1 >= options_.retry.max_attempts; };
    while (!suspects_.empty()) {
        delivery &one = *suspects_.front();
        if (!on_trial_.empty() && (is_last(one) || is_last(*on_trial_.front())))
            return true;
        if (options_.rate_limit > 0 && tokens_ < 1) {
            take_tokens();
            return true;
        }
        if (asking_ + begun_.size() + submitted_ >= static_cast<std::size_t>(options_.concurrency))
            return false;
        suspects_.pop_front();
        if (one.lost) {
            drop(one);
        } else if (one.lease_until.load(std::memory_order_relaxed) <= now) {
            to_verify_.push_back(&one);
        } else {
            on_trial_.push_back(&one);
            tokens_ -= options_.rate_limit > 0 ? 1 : 0;
            ++asking_;
            to_begin_.push_back(&one);
        }
    }
    return true;
}

void engine::pump() {
    if (stopping_ != stopping::no)
        return;
    time_point now = lease_clock::now();
    bool limited = options_.rate_limit > 0;
    auto threads = static_cast<std::size_t>(options_.concurrency);
    std::size_t ahead = try_suspects(now) ? ahead_ : 0;
    while (const delivery *next = scheduler_.peek(now)) {
        bool dead = !next->reason.empty();
        bool stale = next->lease_until.load(std::memory_order_relaxed) <= now;
        if (!dead && !stale) {
            // An attempt that is written down counts, so it had better have a thread to start in: with a handler that kills
            // the process nobody else loses an attempt for nothing.
            std::size_t most = must_write(*next) ? threads : threads + ahead;
            if (asking_ + begun_.size() + submitted_ >= most)
                break;
            if (limited && tokens_ < 1) {
                take_tokens();
                break;
            }
        }
        delivery &one = *scheduler_.next(now);
        if (stale) {
            to_verify_.push_back(&one);
        } else if (dead) {
            bury(one);
        } else if (one.suspect) {
            suspects_.push_back(&one);
            try_suspects(now);
        } else {
            if (limited)
                tokens_ -= 1;
            if (must_ask(one)) {
                ++asking_;
                to_begin_.push_back(&one);
            } else {
                begun_.push_back(&one);
            }
        }
    }
    if (!to_verify_.empty())
        verify(to_verify_);
    if (!to_begin_.empty()) {
        // Before an attempt that counts: if it takes the process along, what is handled must not look as if it had not come back.
        if (std::any_of(to_begin_.begin(), to_begin_.end(), [this](auto *one) { return must_write(*one); }))
            acknowledge_all();
        begin_all();
    }

    while (!begun_.empty() && submitted_ < threads + ahead_) {
        delivery *one = begun_.front();
        begun_.pop_front();
        if (one->lost) {
            drop(*one);
            continue;
        }
        one->running = true;
        if (one->attempts > 0)
            counters_.retried.add();
        ++submitted_;
        to_pool_.push_back(one);
    }
    if (!to_pool_.empty()) {
        pool_->submit(to_pool_);
        pool_moved_ = true;
        to_pool_.clear();
    }
    counters_.running.set(std::min(submitted_, threads));
    counters_.waiting_retry.set(scheduler_.delayed());
    if (auto due = scheduler_.next_due())
        due_timer_.start(std::max<milliseconds>(std::chrono::ceil<milliseconds>(*due - now), 1ms));
    else
        due_timer_.stop();
}

// Asks Redis for all that were collected, stream by stream.
void engine::begin_all() {
    std::vector<delivery *> asked;
    asked.swap(to_begin_);
    std::stable_sort(asked.begin(), asked.end(), [](auto *a, auto *b) { return a->stream < b->stream; });
    bool once_only = options_.idempotency == idempotency::redis;
    bool parks = options_.on_poison == on_poison::park_aggregate;
    std::string ttl = std::to_string(options_.idempotency_ttl.count());
    for (auto from = asked.begin(); from != asked.end();) {
        stream &stream = *(*from)->stream;
        auto to = std::find_if(from, asked.end(), [&stream](auto *one) { return one->stream != &stream || one->alone; });
        to = std::max(from + 1, std::min(to, from + begin_at_once));
        std::vector<delivery *> part(from, to);
        from = to;

        const topic_keys &keys = *stream.keys;
        std::deque<std::string> texts; // that the words are views of
        bool writes = std::any_of(part.begin(), part.end(), [this](auto *one) { return must_write(*one); });
        std::vector<std::string_view> words{options_.group,       options_.name,       once_only ? keys.event : std::string_view(), ttl,
                                            parks ? "1" : "0", writes ? "1" : "0"};
        for (delivery *one : part) {
            words.push_back(one->id_text);
            words.push_back(one->event.id());
            words.push_back(must_write(*one) ? std::string_view(texts.emplace_back(std::to_string(one->attempts + 1))) : "0");
            words.push_back(parks && one->aggregate != 0
                                ? texts.emplace_back(aggregate_key(event_access::fields(one->event)))
                                : std::string_view());
        }
        std::array<std::string_view, 6> names{stream.key,  stream.attempts_key, keys.parked,
                                              keys.stream, keys.redrive,        keys.dead};
        commands_->run(begin, names, words, [this, part](const redisReply *reply) { begun(part, reply); });
    }
}

void engine::begun(const std::vector<delivery *> &asked, const redisReply *reply) {
    asking_ -= asked.size();
    bool failed = trouble_of(reply, *commands_, "could not begin");
    if (!failed && (reply->type != REDIS_REPLY_ARRAY || reply->elements != asked.size())) {
        commands_->reconnect("an answer that is none to a script");
        failed = true;
    }
    if (failed) {
        // Nothing is known to have begun, and beginning again does no harm. Not at once: Redis may say so for long. But it may
        // be about the key of a single one, for which the others must not wait.
        bool key = reply != nullptr && classify(*reply) == trouble::key;
        for (delivery *one : asked)
            if (key && asked.size() > 1) {
                one->alone = true;
                scheduler_.put_back(*one);
            } else {
                scheduler_.delay(*one, lease_clock::now() + (key ? options_.reconnect_max / 10 : options_.reconnect_min));
            }
        return;
    }
    for (std::size_t i = 0; i < asked.size(); ++i) {
        delivery &one = *asked[i];
        if (must_write(one)) {
            OUTBOX_CRASH_POINT("attempt_written");
            one.written = true;
        }
        switch (static_cast<begin_verdict>(reply->element[i]->integer)) {
        case begin_verdict::run:
            // an older one of its aggregate may have come in meanwhile
            if (one.lost)
                drop(one);
            else if (scheduler_.is_first(one) && !one.held && stopping_ == stopping::no)
                begun_.push_back(&one);
            else
                scheduler_.put_back(one);
            break;
        case begin_verdict::done:
            counters_.duplicates.add();
            settle(one);
            break;
        case begin_verdict::parked:
            counters_.parked.add();
            scheduler_.remove(one);
            forget(one);
            break;
        case begin_verdict::not_owned:
            drop(one);
            break;
        default: {
            // Into its lane anew: what it waits for may have come in behind it while this was asked.
            time_point again = lease_clock::now() + std::clamp<milliseconds>(options_.claim_idle / 20, 5ms, 500ms);
            scheduler_.remove(one);
            scheduler_.admit(one);
            if (scheduler_.is_first(one))
                scheduler_.delay(one, again);
        }
        }
    }
}

// As many as there is work for now, so that what another process could use does not lie here; one at a time at least.
void engine::take_tokens() {
    if (asking_tokens_ || token_timer_.active() || stopping_ != stopping::no || !commands_->ready())
        return;
    asking_tokens_ = true;
    std::string key = "outbox:{" + options_.group + "}:rate";
    std::string rate = std::to_string(options_.rate_limit);
    std::string wanted = std::to_string(options_.concurrency);
    // a tenth of a second's worth may come at once
    std::string burst = std::to_string(std::max<long>(1, std::lround(options_.rate_limit / 10)));
    std::array<std::string_view, 1> keys{key};
    std::array<std::string_view, 3> words{rate, burst, wanted};
    commands_->run(detail::take_tokens, keys, words, [this](const redisReply *reply) {
        asking_tokens_ = false;
        milliseconds wait = 100ms;
        if (!trouble_of(reply, *commands_, "could not take from the rate limit") && reply->type == REDIS_REPLY_ARRAY &&
            reply->elements == 2) {
            tokens_ += static_cast<double>(reply->element[0]->integer);
            wait = milliseconds(std::clamp<long long>(reply->element[1]->integer, 1, 1000));
        }
        if (tokens_ < 1)
            token_timer_.start(wait);
    });
}

// What others have before it. Redis hands out a stream in order, so all entries before one that is held here were handed out
// earlier: the set of those that are still pending with others can only shrink (an entry that is taken over stays in it).
// So after a read it is enough to look once, and to look again as long as something is in the way. While this consumer is
// alone in its group the answer is one short line.

struct engine::inspection {
    detail::stream *stream;
    bool alone = false, failed = false;
    std::string newest;                     // no need to look further
    std::string after = "-";
    std::map<entry_id, std::uint64_t> seen; // 0: not known yet, or no aggregate
    std::vector<entry_id> unknown;          // to be looked up yet
    std::size_t looked_up = 0;
};

void engine::inspect(stream &stream) {
    if (stream.inspecting) {
        stream.inspect_again = true;
        return;
    }
    if (!commands_->ready() || !groups_ready_)
        return; // sweep() asks again, when what is pending here is in hand
    stream.inspecting = true;
    stream.inspect_again = false;
    for (delivery *one = stream.first_held; one != nullptr; one = one->next_held)
        one->unseen = false;
    auto look = std::make_shared<inspection>();
    look->stream = &stream;
    look->newest = to_string(stream.newest);
    commands_->command({"XPENDING", stream.key, options_.group}, [this, look](const redisReply *reply) {
        pending_summary summary;
        if (reply == nullptr || !interpret_pending(*reply, summary)) {
            look->failed = true;
            inspection_failed(*look->stream, reply);
            return;
        }
        look->alone = std::all_of(summary.owners.begin(), summary.owners.end(),
                                  [this](const auto &owner) { return owner.name == options_.name; });
    });
    inspect_generation(look, [this, look] {
        if (look->alone)
            inspected(look);
        else
            inspect_page(look);
    });
}

// What was answered before this is about the group that we know, and not about one that was made anew without us knowing: in
// that nothing is pending yet that must be waited for.
void engine::inspect_generation(const std::shared_ptr<inspection> &look, std::function<void()> then) {
    commands_->command({"GET", look->stream->generation_key}, [this, look, then = std::move(then)](const redisReply *reply) {
        if (look->failed)
            return;
        if (reply == nullptr || reply->type == REDIS_REPLY_ERROR) {
            inspection_failed(*look->stream, reply);
        } else if (text(*reply) != look->stream->generation) {
            inspection_failed(*look->stream, nullptr);
            groups_missing();
        } else {
            then();
        }
    });
}

void engine::inspect_held() {
    for (auto &stream : streams_)
        for (delivery *one = stream->first_held; one != nullptr; one = one->next_held)
            if (one->held) {
                inspect(*stream);
                break;
            }
}

void engine::inspection_failed(stream &stream, const redisReply *reply) {
    stream.inspecting = false;
    for (delivery *one = stream.first_held; one != nullptr; one = one->next_held)
        one->unseen = one->held;
    if (reply == nullptr)
        return; // sweep() asks again
    trouble_of(reply, *commands_, "could not see what other consumers have");
    poll_timer_.start(options_.reconnect_min);
}

// Of all consumers, ours too: an entry that goes from one to another between two questions is in its place in either answer.
void engine::inspect_page(const std::shared_ptr<inspection> &look) {
    constexpr std::size_t page = 1000;
    commands_->command({"XPENDING", look->stream->key, options_.group, look->after, look->newest, "1000"},
                       [this, look](const redisReply *reply) {
                           std::vector<pending_entry> entries;
                           if (reply == nullptr || !interpret_pending_list(*reply, entries)) {
                               inspection_failed(*look->stream, reply);
                               return;
                           }
                           stream &stream = *look->stream;
                           for (const pending_entry &entry : entries) {
                               entry_id id;
                               if (entry.owner == options_.name || !parse(entry.id, id))
                                   continue;
                               auto known = stream.known.find(id);
                               look->seen[id] = known != stream.known.end() ? known->second : 0;
                               if (known == stream.known.end())
                                   look->unknown.push_back(id);
                           }
                           if (entries.size() == page) {
                               look->after = "(" + std::string(entries.back().id);
                               inspect_page(look);
                           } else {
                               inspect_unknown(look);
                           }
                       });
}

// The aggregates of entries that were not seen before: in runs, because what a consumer was handed lies together.
void engine::inspect_unknown(const std::shared_ptr<inspection> &look) {
    if (look->looked_up == look->unknown.size()) {
        inspect_generation(look, [this, look] { inspected(look); });
        return;
    }
    if (look->looked_up == 0)
        std::sort(look->unknown.begin(), look->unknown.end());
    std::size_t last = std::min(look->looked_up + 99, look->unknown.size() - 1);
    commands_->command(
        {"XRANGE", look->stream->key, to_string(look->unknown[look->looked_up]), to_string(look->unknown[last]), "COUNT", "200"},
        [this, look, last](const redisReply *reply) {
            if (reply == nullptr || reply->type != REDIS_REPLY_ARRAY) {
                inspection_failed(*look->stream, reply);
                return;
            }
            entry_id reached = look->unknown[last];
            for (std::size_t i = 0; i < reply->elements; ++i) {
                raw_entry entry;
                entry_id id;
                if (!interpret_entry(*reply->element[i], entry) || !parse(entry.id, id) || entry.fields == nullptr)
                    continue;
                if (reply->elements == 200)
                    reached = id;
                if (auto wanted = look->seen.find(id); wanted != look->seen.end()) {
                    decoded found = decode(*entry.fields);
                    wanted->second = aggregate_in(look->stream->topic, found.fields);
                }
            }
            // those that were not found on the way are trimmed away, and nobody's
            while (look->looked_up < look->unknown.size() && look->unknown[look->looked_up] <= reached)
                ++look->looked_up;
            inspect_unknown(look);
        });
}

void engine::inspected(const std::shared_ptr<inspection> &look) {
    stream &stream = *look->stream;
    stream.inspecting = false;
    std::size_t before = stream.known.size();
    stream.known = std::move(look->seen);
    stream.foreign.clear();
    for (auto &[id, aggregate] : stream.known)
        if (aggregate != 0)
            stream.foreign.emplace(aggregate, id); // in the order of ids: the first stays
    bool blocked = false;
    for (delivery *one = stream.first_held, *next; one != nullptr; one = next) {
        next = one->next_held;
        if (!one->held || one->unseen)
            continue;
        auto other = stream.foreign.find(one->aggregate);
        one->held = other != stream.foreign.end() && other->second < one->id;
        blocked |= one->held;
        if (!one->held)
            scheduler_.reconsider(*one);
    }
    if (stream.inspect_again) {
        inspect(stream);
    } else if (blocked) {
        // others are at work: soon again if they got on, else less and less often
        poll_delay_ = stream.known.size() != before ? 2ms : std::clamp<milliseconds>(poll_delay_ * 2, 2ms, 50ms);
        poll_timer_.start(poll_delay_);
    }
}

} // namespace outbox::detail

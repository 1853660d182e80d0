// What goes on beside the events: leases, entries of others, consumers that are gone, how far the group is.
#include <algorithm>
#include <array>

#include "common/crash_point.hpp"
#include "src/engine.hpp"
#include "src/text.hpp"

namespace outbox::detail {

using namespace std::chrono_literals;

constexpr std::size_t renew_at_once = 256;
constexpr std::size_t take_at_once = 100;

void engine::keep() {
    if (!commands_->ready())
        return;
    time_point now = lease_clock::now();
    // Renewed when a quarter of the lease is over: three attempts may fail before anybody takes over.
    for (auto &stream : streams_) {
        std::vector<delivery *> due;
        for (delivery *one = stream->first_held; one != nullptr; one = one->next_held) {
            time_point until = one->lease_until.load(std::memory_order_relaxed);
            bool stale = until <= now && !one->running; // asked for when its turn comes
            if (!one->lost && !one->renewing && !stale && until - now < options_.claim_idle * 3 / 4)
                due.push_back(one);
        }
        for (auto from = due.begin(); from != due.end();) {
            auto to = from + std::min<std::ptrdiff_t>(due.end() - from, renew_at_once);
            renew(*stream, std::vector<delivery *>(from, to));
            from = to;
        }
    }
    if (stopping_ != stopping::no || !groups_ready_)
        return;
    auto random = [this](milliseconds around) {
        return around * std::uniform_int_distribution<int>(75, 125)(random_) / 100;
    };
    if (now >= next_take_over_) {
        next_take_over_ = now + random(options_.claim_idle / 4);
        for (auto &stream : streams_)
            if (stream->broken_until <= now)
                take_over(*stream, false, "-", [](bool) {});
    }
    if (now >= next_reap_) {
        next_reap_ = now + random(std::max<milliseconds>(options_.reap_idle / 4, 10ms));
        std::string idle = std::to_string(options_.reap_idle.count());
        for (auto &stream : streams_) {
            std::array<std::string_view, 1> keys{stream->key};
            std::array<std::string_view, 3> words{options_.group, options_.name, idle};
            commands_->run(reap, keys, words, [this, &stream = *stream](const redisReply *reply) {
                if (!trouble_of(reply, *commands_, "could not look for consumers that are gone") && reply->integer > 0)
                    log(log_level::info, "removed " + std::to_string(reply->integer) + " silent consumers of " + stream.key);
            });
        }
    }
    if (keeper_ != nullptr && now >= next_save_) {
        next_save_ = now + 1s;
        save_positions();
    }
}

// The answer finds deliveries by their ids: some may have been finished and forgotten meanwhile.
void engine::renew(stream &stream, std::vector<delivery *> due) {
    time_point asked = lease_clock::now();
    std::vector<std::string_view> words{options_.group, options_.name};
    std::vector<entry_id> ids;
    for (delivery *one : due) {
        words.push_back(one->id_text);
        ids.push_back(one->id);
        one->renewing = true;
    }
    std::sort(ids.begin(), ids.end());
    std::array<std::string_view, 1> keys{stream.key};
    commands_->run(detail::renew, keys, words, [this, &stream, ids = std::move(ids), asked](const redisReply *reply) {
        bool known = !trouble_of(reply, *commands_, "could not renew leases") && reply->type == REDIS_REPLY_ARRAY;
        std::vector<entry_id> lost;
        for (std::size_t i = 0; known && i < reply->elements; ++i)
            if (entry_id id; parse(text(*reply->element[i]), id))
                lost.push_back(id);
        std::sort(lost.begin(), lost.end());
        std::vector<delivery *> gone;
        bool look = false;
        for (delivery *one = stream.first_held; one != nullptr; one = one->next_held) {
            if (!one->renewing || !std::binary_search(ids.begin(), ids.end(), one->id))
                continue;
            one->renewing = false;
            bool ours = known && !std::binary_search(lost.begin(), lost.end(), one->id);
            if (ours)
                one->lease_until.store(asked + options_.claim_idle, std::memory_order_relaxed);
            else if (known)
                gone.push_back(one);
            if (one->verifying && (ours || !known)) {
                one->verifying = false;
                if (ours) {
                    scheduler_.put_back(*one);
                    hold_back(*one);
                    look |= one->held;
                } else
                    scheduler_.delay(*one, lease_clock::now() + options_.reconnect_min);
            }
        }
        for (delivery *one : gone)
            not_owned(*one);
        if (look)
            inspect(stream);
    });
}

void engine::not_owned(delivery &one) {
    if (one.is == delivery::state::settling)
        return; // acknowledged by now
    if (one.is == delivery::state::started && !one.verifying)
        one.lost = true; // it is with a handler, or a reply about it is on its way: it is dropped when it comes back
    else
        drop(one);
}

// Their leases have run out before their turn came: this process was stopped, or Redis was away. Somebody else may have them.
void engine::verify(std::vector<delivery *> &stale) {
    for (auto &stream : streams_) {
        std::vector<delivery *> part;
        for (delivery *one : stale)
            if (one->stream == stream.get()) {
                one->verifying = true;
                if (!one->renewing)
                    part.push_back(one);
            }
        if (!part.empty())
            renew(*stream, std::move(part));
    }
    stale.clear();
}

// Whether a thread is free because what is held here waits for entries of others. If they are a dead consumer's, nothing would
// ever move unless they are taken over, the oldest first, though there is no room for them. What is on its way to Redis makes
// room by itself.
bool engine::stuck() {
    if (submitted_ >= static_cast<std::size_t>(options_.concurrency) || asking_ > 0 || burying_ > 0 || !begun_.empty() ||
        scheduler_.peek(lease_clock::now()) != nullptr)
        return false;
    bool blocked = false;
    for (auto &stream : streams_) {
        if (stream->inspecting || !stream->settled.empty() || stream->acknowledging > 0)
            return false; // what is being looked at may be free in a moment
        for (delivery *one = stream->first_held; one != nullptr && !blocked; one = one->next_held)
            blocked = one->held;
    }
    return blocked;
}

// Takes over what others have left, or (mine) what is pending here without being in hand, as far as there is room; then
// calls `then`, with false if Redis did not answer, or refused.
void engine::take_over(stream &stream, bool mine, std::string after, std::function<void(bool)> then) {
    auto fit = [this](std::size_t bytes) { return static_cast<std::size_t>(static_cast<double>(bytes) / entry_bytes_); };
    std::size_t room = 0;
    if (mine)
        room = std::max<std::size_t>(1, fit(options_.prefetch_bytes)); // it is pending with nobody else
    else if (held_ < options_.prefetch && held_bytes_ < options_.prefetch_bytes)
        room = std::min(options_.prefetch - held_, std::max<std::size_t>(held_ == 0, fit(options_.prefetch_bytes - held_bytes_)));
    if (room == 0 && after == "-" && stuck())
        room = std::max<std::size_t>(1, fit(options_.prefetch_bytes));
    if ((stream.taking_over && !mine) || room == 0 || !commands_->ready()) {
        then(commands_->ready());
        return;
    }
    stream.taking_over = true;
    time_point asked = lease_clock::now();
    std::string idle = std::to_string(options_.claim_idle.count());
    std::string count = std::to_string(std::min(room, take_at_once));
    std::array<std::string_view, 3> keys{stream.key, stream.attempts_key, stream.keys->dead};
    std::array<std::string_view, 6> words{options_.group, options_.name, idle, count, after, mine ? "1" : "0"};
    commands_->run(detail::take_over, keys, words, [this, &stream, mine, asked, then](const redisReply *reply) {
        stream.taking_over = false;
        if (trouble_of(reply, *commands_, "could not take over entries of " + stream.key) || reply->type != REDIS_REPLY_ARRAY ||
            reply->elements != 3 || reply->element[2]->type != REDIS_REPLY_ARRAY) {
            // a stream that cannot be used has nothing for anybody
            then(reply != nullptr && classify(*reply) == trouble::key);
            return;
        }
        if (long long trimmed = reply->element[0]->integer; trimmed > 0) {
            counters_.trimmed.add(static_cast<std::uint64_t>(trimmed));
            counters_.dead_lettered.add(static_cast<std::uint64_t>(trimmed));
            log(log_level::error, std::to_string(trimmed) + " entries of " + stream.key +
                                      " were trimmed away before they were handled; their positions are in the dead letters");
        }
        std::vector<arrival> arrivals;
        bool look = false;
        const redisReply &rows = *reply->element[2];
        for (std::size_t i = 0; i < rows.elements; ++i) {
            const redisReply &row = *rows.element[i];
            entry_id id;
            if (row.type != REDIS_REPLY_ARRAY || row.elements != 4 || !parse(text(*row.element[0]), id) ||
                row.element[1]->type != REDIS_REPLY_ARRAY)
                continue;
            if (delivery *here = find_held(stream, id)) {
                look |= row.element[1]->elements > 0 && came_again(*here, asked);
                continue;
            }
            // Not written down: the first attempt, which may have been made (or, with a single attempt, is always written).
            // What nobody else has had, and did not arrive here (this is its second delivery), was not; unless "here" was an
            // earlier process of the same name.
            auto attempts = static_cast<int>(row.element[3]->integer);
            bool written = attempts >= 0;
            if (!written)
                attempts = (mine && swept_ && row.element[2]->integer <= 2) || options_.retry.max_attempts == 1 ? 0 : 1;
            const redisReply *fields = row.element[1]->elements > 0 ? row.element[1] : nullptr;
            if (fields == nullptr)
                counters_.trimmed.add();
            arrivals.push_back({text(*row.element[0]), fields, attempts, written, attempts > 0});
        }
        if (!arrivals.empty() && !mine) {
            OUTBOX_CRASH_POINT("taken_over");
            counters_.claimed.add(arrivals.size());
            log(log_level::info, "took over " + std::to_string(arrivals.size()) + " entries of " + stream.key);
        }
        admit(stream, reply, arrivals, arena_size(reply), asked);
        if (look)
            inspect(stream);
        std::string next(text(*reply->element[1]));
        if (next.empty())
            then(true);
        else
            take_over(stream, mine, next, then);
    });
}

// Up to where everything is acknowledged, so that a group that Redis forgot can begin there.
void engine::save_positions() {
    for (auto &asked : streams_) {
        stream &stream = *asked;
        if (stream.redrive || stream.saved)
            continue;
        stream.saved = true;
        std::array<std::string_view, 1> keys{stream.key};
        std::array<std::string_view, 1> words{options_.group};
        commands_->run(watermark, keys, words, [this, &stream](const redisReply *reply) {
            entry_id id;
            if (trouble_of(reply, *commands_, "could not see how far the group is") || reply->type != REDIS_REPLY_ARRAY ||
                reply->elements != 2 || !parse(text(*reply->element[1]), id)) {
                stream.saved = false;
                return;
            }
            bool before = reply->element[0]->integer != 0;
            keeper_->save(std::string(stream.topic), to_string(before ? predecessor(id) : id));
        });
    }
}

} // namespace outbox::detail

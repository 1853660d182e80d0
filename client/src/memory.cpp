// Streams and groups in memory: see memory.hpp.
#include "src/memory.hpp"

#include <algorithm>
#include <cmath>

#include "src/entry.hpp"
#include "src/event_access.hpp"

namespace outbox::detail::memory {

entry_id clock::next_id() noexcept {
    auto ms = static_cast<std::uint64_t>(now.time_since_epoch().count());
    last = ms > last.ms ? entry_id{ms, 0} : entry_id{last.ms, last.n + 1};
    return last;
}

entry::entry(std::string_view about, entry_id at, field_list content)
    : topic(about), id(to_string(at)), fields(std::move(content)) {
    texts_.reserve(fields.size() * 2);
    auto add = [this](const std::string &text) {
        redisReply &reply = texts_.emplace_back();
        reply.type = REDIS_REPLY_STRING;
        reply.str = const_cast<char *>(text.data()); // which nobody writes to
        reply.len = text.size();
        elements_.push_back(&reply);
    };
    for (const auto &[name, value] : fields) {
        add(name);
        add(value);
    }
    reply_.type = REDIS_REPLY_ARRAY;
    reply_.elements = elements_.size();
    reply_.element = elements_.data();
}

group_topic::group_topic(std::string_view topic, std::string_view group, memory::entries &stream, memory::clock &clock,
                         entry_id start)
    : topic_(topic), keys_(topic, group), clock_(clock) {
    for (source *made : {&main, &redriven}) {
        made->redrive = made == &redriven;
        made->key = made->redrive ? keys_.redrive : keys_.stream;
        made->keys = &keys_;
        made->topic = topic_;
        made->group_topic = this;
        made->entries = made->redrive ? &redriven_ : &stream;
    }
    main.delivered = start;
}

static bool parks(const delivery &one, const consumer_options &options) {
    return options.on_poison == on_poison::park_aggregate && one.aggregate != 0;
}

static bool owned(const delivery &one, const void *owner) {
    const source &from = source_of(one);
    auto claim = from.pending.find(one.id);
    return claim != from.pending.end() && claim->second.owner == owner;
}

// What is in the way of an aggregate; null if nothing is (any more).
const group_topic::standing *group_topic::obstacle(const std::string &aggregate) {
    auto found = parked_.find(aggregate);
    if (found == parked_.end())
        return nullptr;
    const standing &state = found->second;
    if (!state.dead) {
        auto draining = redriven_.lower_bound(state.first);
        if (draining == redriven_.end() || draining->first > state.last) {
            parked_.erase(found);
            return nullptr;
        }
    }
    return &state;
}

bool group_topic::lease_holds(const event_mark &mark) const {
    return main.pending.contains(mark.holder) || redriven.pending.contains(mark.holder);
}

begin_verdict group_topic::begin(const delivery &one, const void *owner, const consumer_options &options) {
    if (!owned(one, owner))
        return begin_verdict::not_owned;
    const source &from = source_of(one);
    std::string aggregate;
    const standing *state = nullptr;
    if (parks(one, options)) {
        aggregate = aggregate_key(event_access::fields(one.event));
        state = obstacle(aggregate);
    }
    bool once_only = options.idempotency == idempotency::redis;
    auto mark = once_only ? marks_.find(one.event.id()) : marks_.end();
    if (mark != marks_.end() && mark->second.done_until && *mark->second.done_until <= clock_.now) {
        marks_.erase(mark);
        mark = marks_.end();
    }
    if (mark != marks_.end() && mark->second.done_until)
        return begin_verdict::done;
    bool mine = mark != marks_.end() && mark->second.holder == one.id;
    // What was redriven keeps its own order, so what came behind what is draining waits without being told.
    if (state != nullptr && (state->dead || !from.redrive)) {
        if (mine)
            marks_.erase(mark);
        if (!state->dead)
            return begin_verdict::wait;
        set_aside(one, aggregate);
        return begin_verdict::parked;
    }
    if (mark != marks_.end() && !mine && lease_holds(mark->second))
        return begin_verdict::wait;
    if (once_only)
        marks_[std::string(one.event.id())] = {std::nullopt, one.id};
    return begin_verdict::run;
}

void group_topic::set_aside(const delivery &one, const std::string &aggregate) {
    source &from = source_of(one);
    field_list fields = from.entries->at(one.id)->fields;
    if (!from.redrive)
        fields.emplace(fields.begin(), position_field, to_string(one.id));
    waiting_[aggregate].push_back(std::move(fields));
    leave(from, one.id);
}

void group_topic::leave(source &source, entry_id id) {
    source.pending.erase(id);
    if (source.redrive)
        redriven_.erase(id);
}

void group_topic::finish(const delivery &one, const consumer_options &options) {
    if (options.idempotency == idempotency::redis)
        marks_[std::string(one.event.id())] = {clock_.now + options.idempotency_ttl, {}};
    leave(source_of(one), one.id);
}

bool group_topic::bury(const delivery &one, const void *owner, const consumer_options &options) {
    if (!owned(one, owner))
        return false;
    source &from = source_of(one);
    buried made;
    made.aggregate = aggregate_key(event_access::fields(one.event));
    entry_id id = clock_.next_id();
    made.letter.id = to_string(id);
    made.letter.topic = topic_;
    made.letter.position = std::string(one.event.position());
    made.letter.stream = from.key;
    made.letter.error = one.reason;
    made.letter.consumer = options.name;
    made.letter.attempts = one.attempts;
    made.letter.died_at = clock_.now;
    made.letter.fields = from.entries->at(one.id)->fields;
    if (from.redrive)
        made.letter.fields.erase(made.letter.fields.begin()); // the position

    if (parks(one, options)) {
        auto before = parked_.find(made.aggregate);
        bool behind_another = before != parked_.end() && before->second.dead;
        if (!behind_another) {
            // what was being released, and was not handled, waits again
            if (before != parked_.end())
                for (auto it = redriven_.lower_bound(before->second.first);
                     it != redriven_.end() && it->first <= before->second.last;) {
                    auto [other, its_entry] = *it++;
                    if (other == one.id)
                        continue;
                    waiting_[made.aggregate].push_back(its_entry->fields);
                    leave(redriven, other);
                }
            parked_[made.aggregate] = {true, id, id};
        }
    }
    if (auto mark = marks_.find(one.event.id()); mark != marks_.end() && mark->second.holder == one.id)
        marks_.erase(mark);
    dead_.emplace(id, std::move(made));
    leave(from, one.id);
    return true;
}

entry_id group_topic::append_redriven(field_list fields) {
    entry_id id = clock_.next_id();
    redriven_.emplace(id, std::make_shared<entry>(topic_, id, std::move(fields)));
    return id;
}

// What is parked follows in the redrive stream, in order, behind `first` if that is an entry already.
void group_topic::release(const std::string &aggregate, std::optional<entry_id> first) {
    std::optional<entry_id> last = first;
    for (field_list &fields : waiting_[aggregate]) {
        last = append_redriven(std::move(fields));
        if (!first)
            first = last;
    }
    waiting_.erase(aggregate);
    if (last)
        parked_[aggregate] = {false, *first, *last};
    else
        parked_.erase(aggregate);
}

bool group_topic::is_parked_behind(const std::string &aggregate, entry_id id) const {
    auto state = parked_.find(aggregate);
    return state != parked_.end() && state->second.dead && state->second.first == id;
}

bool group_topic::redrive(entry_id id) {
    auto found = dead_.find(id);
    if (found == dead_.end())
        return false;
    buried &dead = found->second;
    field_list fields = std::move(dead.letter.fields);
    fields.emplace(fields.begin(), position_field, dead.letter.position);
    entry_id first = append_redriven(std::move(fields));
    if (is_parked_behind(dead.aggregate, id))
        release(dead.aggregate, first);
    dead_.erase(found);
    return true;
}

bool group_topic::discard(entry_id id) {
    auto found = dead_.find(id);
    if (found == dead_.end())
        return false;
    if (is_parked_behind(found->second.aggregate, id))
        release(found->second.aggregate, std::nullopt);
    dead_.erase(found);
    return true;
}

std::vector<dead_letter> group_topic::dead() const {
    std::vector<dead_letter> result;
    for (const auto &[id, one] : dead_) {
        result.push_back(one.letter);
        auto waiting = waiting_.find(one.aggregate);
        if (waiting != waiting_.end() && is_parked_behind(one.aggregate, id))
            result.back().parked = waiting->second.size();
    }
    return result;
}

std::size_t group_topic::unfinished() const {
    std::size_t count = 0;
    for (const source *from : {&main, &redriven})
        count += from->pending.size() + static_cast<std::size_t>(std::distance(from->entries->upper_bound(from->delivered),
                                                                               from->entries->end()));
    return count;
}

// The generic cell rate algorithm.
bool group::take_token(time now, double rate) noexcept {
    double interval = 1e6 / rate;
    // a tenth of a second's worth may come at once
    double burst = static_cast<double>(std::max<long>(1, std::lround(rate / 10)));
    double at = static_cast<double>(now.time_since_epoch().count()) * 1000;
    double limit = at + burst * interval;
    double next = std::clamp(arrival, at, limit);
    if ((limit - next) / interval + 1e-6 < 1)
        return false;
    arrival = next + interval;
    return true;
}

} // namespace outbox::detail::memory

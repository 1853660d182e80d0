// The dead letters of a group, over a connection that waits. What must be atomic is in the scripts.
#include <outbox/dead_letter.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <stdexcept>

#include "src/entry_id.hpp"
#include "src/keys.hpp"
#include "src/pattern.hpp"
#include "src/reply.hpp"
#include "src/scripts.hpp"
#include "src/sync_redis.hpp"

namespace outbox {

using detail::sync_redis;
using detail::text;

std::string_view dead_letter::field(std::string_view name) const noexcept {
    for (const auto &[key, value] : fields)
        if (key == name)
            return value;
    return {};
}

template <typename Number> static Number number(std::string_view text) noexcept {
    Number result = 0;
    std::from_chars(text.data(), text.data() + text.size(), result);
    return result;
}

struct dead_letters::implementation {
    // A dead letter, and what it has parked.
    struct found {
        dead_letter letter;
        std::string aggregate;
    };

    implementation(redis_url url, std::string topic_name, std::string_view group, std::chrono::milliseconds timeout)
        : topic(std::move(topic_name)), keys(topic, group), redis(std::move(url), timeout) {}

    std::vector<dead_letter> range(const std::string &from, std::string_view to, std::size_t limit);
    void count_parked(std::vector<found> &letters);
    std::vector<detail::raw_entry> entries(const redisReply &reply) const;
    found read(const detail::raw_entry &entry) const;
    std::string last();
    std::size_t each(const filter &accepts, const std::function<bool(const dead_letter &)> &act);

    std::string topic;
    detail::topic_keys keys;
    sync_redis redis;
};

static redis_url parsed(std::string_view text) {
    redis_url url;
    std::string error;
    if (!parse_redis_url(text, url, error))
        throw std::invalid_argument("the URL of Redis is invalid: " + error);
    return url;
}

// As consumer_options::group.
static bool is_group(std::string_view text) noexcept {
    for (char c : text)
        if (static_cast<unsigned char>(c) <= ' ' || c == 0x7f || c == '{' || c == '}' || c == ':')
            return false;
    return !text.empty() && text.size() <= 200;
}

// The ID as Redis writes it; empty if it is none, so that no entry has it.
static std::string canonical(std::string_view id) {
    detail::entry_id parsed;
    return detail::parse(id, parsed) ? detail::to_string(parsed) : std::string();
}

dead_letters::dead_letters(std::string_view redis_url, std::string topic, std::string group,
                           std::chrono::milliseconds timeout) {
    auto url = parsed(redis_url);
    if (!detail::is_topic(topic))
        throw std::invalid_argument("a topic is one or more segments of A-Z, a-z, 0-9, _ and -, separated by dots");
    if (!is_group(group))
        throw std::invalid_argument(
            "a group has 1 to 200 bytes, without control characters, spaces, braces and colons");
    if (timeout < std::chrono::milliseconds(1))
        throw std::invalid_argument("the timeout must be 1 ms or more");
    implementation_ = std::make_unique<implementation>(std::move(url), std::move(topic), group, timeout);
}

dead_letters::~dead_letters() = default;
dead_letters::dead_letters(dead_letters &&) noexcept = default;
dead_letters &dead_letters::operator=(dead_letters &&) noexcept = default;

// Of a reply to XRANGE or XREVRANGE.
std::vector<detail::raw_entry> dead_letters::implementation::entries(const redisReply &reply) const {
    std::vector<detail::raw_entry> result(reply.elements);
    for (std::size_t i = 0; i < reply.elements; ++i)
        if (!detail::interpret_entry(*reply.element[i], result[i]) || result[i].fields == nullptr)
            throw reply_error("the reply is not that of Redis to " + keys.dead);
    return result;
}

dead_letters::implementation::found dead_letters::implementation::read(const detail::raw_entry &entry) const {
    found result;
    auto &letter = result.letter;
    letter.topic = topic;
    letter.id = entry.id;
    const auto &fields = *entry.fields;
    std::size_t at = 0;
    std::array<std::string_view, std::size(detail::dead_letter_fields)> about;
    for (std::size_t i = 0; i < about.size() && at + 1 < fields.elements; ++i)
        if (text(*fields.element[at]) == detail::dead_letter_fields[i]) {
            about[i] = text(*fields.element[at + 1]);
            at += 2;
        }
    auto [position, stream, error, attempts, consumer, died_at, aggregate] = about;
    letter.position = position;
    letter.stream = stream;
    letter.error = error;
    letter.attempts = number<int>(attempts);
    letter.consumer = consumer;
    letter.died_at = decltype(letter.died_at)(std::chrono::milliseconds(number<std::int64_t>(died_at)));
    result.aggregate = aggregate;
    for (; at + 1 < fields.elements; at += 2)
        letter.fields.emplace_back(text(*fields.element[at]), text(*fields.element[at + 1]));
    return result;
}

void dead_letters::implementation::count_parked(std::vector<found> &letters) {
    std::vector<found *> candidates;
    sync_redis::words standing{"HMGET", keys.parked};
    for (auto &one : letters)
        if (!one.aggregate.empty()) {
            candidates.push_back(&one);
            standing.push_back(one.aggregate);
        }
    if (candidates.empty())
        return;
    auto standings = redis.command(standing);

    std::vector<found *> parking;
    std::vector<std::string> streams;
    for (std::size_t i = 0; i < candidates.size() && i < standings->elements; ++i)
        if (text(*standings->element[i]) == "dead " + candidates[i]->letter.id) {
            parking.push_back(candidates[i]);
            streams.push_back(keys.parked + ":" + candidates[i]->aggregate);
        }
    std::vector<sync_redis::words> lengths;
    for (const auto &stream : streams)
        lengths.push_back({"XLEN", stream});
    auto counts = redis.pipeline(lengths);
    for (std::size_t i = 0; i < counts.size(); ++i)
        parking[i]->letter.parked = static_cast<std::uint64_t>(counts[i]->integer);
}

std::vector<dead_letter> dead_letters::implementation::range(const std::string &from, std::string_view to,
                                                             std::size_t limit) {
    auto count = std::to_string(std::min<std::size_t>(limit, std::numeric_limits<std::int64_t>::max()));
    auto reply = redis.command({"XRANGE", keys.dead, from, to, "COUNT", count});
    std::vector<found> letters;
    for (const auto &entry : entries(*reply))
        letters.push_back(read(entry));
    count_parked(letters);
    std::vector<dead_letter> result;
    for (auto &one : letters)
        result.push_back(std::move(one.letter));
    return result;
}

// The ID of the youngest dead letter; empty if there is none.
std::string dead_letters::implementation::last() {
    auto reply = redis.command({"XREVRANGE", keys.dead, "+", "-", "COUNT", "1"});
    auto youngest = entries(*reply);
    return youngest.empty() ? std::string() : std::string(youngest.front().id);
}

std::size_t dead_letters::implementation::each(const filter &accepts,
                                               const std::function<bool(const dead_letter &)> &act) {
    auto end = last(); // one that dies meanwhile is left, or this might never end
    std::size_t count = 0;
    if (end.empty())
        return count;
    for (std::string from = "-";;) {
        auto letters = range(from, end, 100);
        if (letters.empty())
            return count;
        for (const auto &letter : letters)
            if (accepts(letter) && act(letter))
                ++count;
        from = "(" + letters.back().id;
    }
}

std::uint64_t dead_letters::count() {
    return static_cast<std::uint64_t>(implementation_->redis.command({"XLEN", implementation_->keys.dead})->integer);
}

std::vector<dead_letter> dead_letters::list(std::size_t limit, std::string_view after) {
    return implementation_->range(std::string("(").append(after), "+", limit);
}

std::optional<dead_letter> dead_letters::inspect(std::string_view id) {
    auto at = canonical(id);
    if (at.empty())
        return std::nullopt;
    auto letters = implementation_->range(at, at, 1);
    if (letters.empty())
        return std::nullopt;
    return std::move(letters.front());
}

bool dead_letters::redrive(std::string_view id) {
    auto at = canonical(id);
    const auto &keys = implementation_->keys;
    return !at.empty() &&
           implementation_->redis.run(detail::redrive, {keys.dead, keys.redrive, keys.parked}, {at})->type !=
               REDIS_REPLY_NIL;
}

std::size_t dead_letters::redrive(const filter &accepts) {
    return implementation_->each(
        accepts, [this](const dead_letter &letter) { return !letter.fields.empty() && redrive(letter.id); });
}

std::size_t dead_letters::redrive_all() {
    return redrive([](const dead_letter &) { return true; });
}

bool dead_letters::discard(std::string_view id) {
    auto at = canonical(id);
    const auto &keys = implementation_->keys;
    return !at.empty() &&
           implementation_->redis.run(detail::discard, {keys.dead, keys.redrive, keys.parked}, {at})->type !=
               REDIS_REPLY_NIL;
}

std::size_t dead_letters::discard(const filter &accepts) {
    return implementation_->each(accepts, [this](const dead_letter &letter) { return discard(letter.id); });
}

std::size_t dead_letters::discard_all() {
    return discard([](const dead_letter &) { return true; });
}

} // namespace outbox

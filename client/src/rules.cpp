// The rules themselves: see rules.hpp.
#include "src/rules.hpp"

#include <algorithm>
#include <stdexcept>

#include "src/event_access.hpp"
#include "src/pattern.hpp"
#include "src/text.hpp"

namespace outbox::detail {

// A handler may say "never"; a clock that counts nanoseconds ends after 292 years.
constexpr std::chrono::milliseconds longest_delay = std::chrono::years(100);

std::vector<std::string> topics_of(const consumer_options &options, const handlers &handlers) {
    if (handlers.empty())
        throw std::invalid_argument("the consumer has no handler: register one with on() before run()");
    std::vector<std::string> topics = options.topics;
    if (topics.empty())
        for (const std::string &pattern : handlers.patterns()) {
            std::string topic(topic_of(pattern));
            if (topic.empty())
                throw std::invalid_argument("\"" + pattern + "\" does not tell the topic: name consumer_options::topics");
            topics.push_back(std::move(topic));
        }
    std::sort(topics.begin(), topics.end());
    topics.erase(std::unique(topics.begin(), topics.end()), topics.end());
    return topics;
}

static std::string attempts_text(int attempts) { return std::to_string(attempts) + (attempts == 1 ? " attempt" : " attempts"); }

static void log(const consumer_options &options, log_level level, const std::string &message) {
    if (options.log)
        options.log(level, message);
}

bool prepare(delivery &one, const consumer_options &options, const handlers &handlers, counters &counters) {
    if (!one.reason.empty())
        return true;
    if (!handlers.route(one, options.on_unhandled == on_unhandled::dead_letter)) {
        counters.unhandled.add();
        return false;
    }
    if (one.reason.empty() && one.attempts >= options.retry.max_attempts)
        one.reason = "the handler did not come back from " + attempts_text(one.attempts) + ": its process died or was stopped";
    return true;
}

verdict judge(delivery &one, const consumer_options &options, counters &counters, double random) {
    outcome end = std::move(one.end);
    switch (end.is) {
    case outcome::kind::handled:
        counters.handled.add();
        return {verdict::kind::settle};
    case outcome::kind::duplicate:
        counters.duplicates.add();
        return {verdict::kind::settle};
    default:
        break;
    }
    counters.failed.add();
    ++one.attempts;
    event_access::set_attempt(one.event, one.attempts + 1);
    if (end.is == outcome::kind::rejected || one.attempts >= options.retry.max_attempts) {
        // an empty reason would say that there is none
        one.reason = end.error.empty() ? "the handler failed without a word" : std::move(end.error);
        return {verdict::kind::die};
    }
    auto delay = end.is == outcome::kind::later ? end.delay : options.retry.delay(one.attempts, random);
    delay = std::min(delay, longest_delay);
    log(options, log_level::info, std::string(one.event.type()) + " " + std::string(one.event.id()) + " failed in attempt " +
                                      std::to_string(one.attempts) + " of " + std::to_string(options.retry.max_attempts) +
                                      ", again in " + std::to_string(delay.count()) + " ms: " + printable(end.error));
    return {verdict::kind::retry, delay};
}

void note_burial(const delivery &one, std::string_view stream_key, const consumer_options &options, counters &counters) {
    counters.dead_lettered.add();
    log(options, log_level::warning, "moved " + printable(one.event.type()) + " at " + std::string(one.id_text) + " of " +
                                         std::string(stream_key) + " to the dead letters after " + attempts_text(one.attempts) +
                                         ": " + printable(one.reason));
}

} // namespace outbox::detail

#include <outbox/consumer.hpp>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>

#include <unistd.h>

#include "common/url.hpp"
#include "src/counters.hpp"
#include "src/engine.hpp"
#include "src/entry_id.hpp"
#include "src/handlers.hpp"
#include "src/inbox.hpp"
#include "src/pattern.hpp"
#include "src/testing.hpp"
#include "src/text.hpp"

namespace outbox {

void log_to_stderr(log_level level, std::string_view message) {
    if (level < log_level::warning)
        return;
    std::string line = "outbox: " + std::string(to_string(level)) + ": " + std::string(message) + "\n";
    std::fwrite(line.data(), 1, line.size(), stderr);
}

// options

template <typename T> static void from_number(const char *variable, T &value) {
    const char *text = std::getenv(variable);
    if (text == nullptr || *text == '\0')
        return;
    const char *end = text + std::char_traits<char>::length(text);
    T number{};
    auto parsed = std::from_chars(text, end, number);
    if (parsed.ec != std::errc() || parsed.ptr != end)
        throw std::invalid_argument(std::string(variable) + " must be a number, not \"" + detail::printable(text) + "\"");
    value = number;
}

static void from_milliseconds(const char *variable, std::chrono::milliseconds &value) {
    auto count = value.count();
    from_number(variable, count);
    value = std::chrono::milliseconds(count);
}

static void from_text(const char *variable, std::string &value) {
    if (const char *text = std::getenv(variable); text != nullptr && *text != '\0')
        value = text;
}

consumer_options consumer_options::from_env() {
    consumer_options options;
    from_text("OUTBOX_REDIS_URL", options.redis_url);
    from_text("OUTBOX_REDIS_PASSWORD_FILE", options.redis_password_file);
    from_text("OUTBOX_GROUP", options.group);
    from_text("OUTBOX_CONSUMER", options.name);
    from_text("OUTBOX_INBOX", options.inbox);
    std::string topics;
    from_text("OUTBOX_TOPICS", topics);
    for (std::size_t from = 0; from < topics.size();) {
        std::size_t to = std::min(topics.find(',', from), topics.size());
        std::string topic = topics.substr(from, to - from);
        topic.erase(0, topic.find_first_not_of(' '));
        topic.erase(topic.find_last_not_of(' ') + 1);
        if (!topic.empty())
            options.topics.push_back(std::move(topic));
        from = to + 1;
    }
    from_number("OUTBOX_CONCURRENCY", options.concurrency);
    from_number("OUTBOX_PREFETCH", options.prefetch);
    from_number("OUTBOX_PREFETCH_BYTES", options.prefetch_bytes);
    from_number("OUTBOX_RATE_LIMIT", options.rate_limit);
    from_number("OUTBOX_MAX_ATTEMPTS", options.retry.max_attempts);
    from_milliseconds("OUTBOX_CLAIM_IDLE_MS", options.claim_idle);
    from_milliseconds("OUTBOX_SHUTDOWN_TIMEOUT_MS", options.shutdown_timeout);
    return options;
}

static void require(bool holds, const std::string &otherwise) {
    if (!holds)
        throw std::invalid_argument(otherwise);
}

static bool is_name(std::string_view text, std::string_view forbidden) {
    return text.size() <= 200 && std::all_of(text.begin(), text.end(), [&](char c) {
               return static_cast<unsigned char>(c) > ' ' && c != 0x7f && forbidden.find(c) == std::string_view::npos;
           });
}

void consumer_options::validate() const {
    outbox::redis_url url;
    std::string why;
    bool is_url = parse_redis_url(redis_url, url, why);
    require(is_url, "redis_url: " + why);
    require(!group.empty(), "the group is missing: set consumer_options::group (OUTBOX_GROUP) to the name that all processes "
                            "of this service share");
    require(is_name(group, "{}:"), "the group may have at most 200 bytes, and no space, control character, brace or colon");
    require(is_name(name, ""), "the name may have at most 200 bytes, and no space or control character");
    for (const std::string &topic : topics)
        require(detail::is_topic(topic), "\"" + detail::printable(topic) +
                                             "\" is no topic: segments of A-Z a-z 0-9 _ -, separated by dots, such as \"wallet\"");
    require(concurrency >= 1 && concurrency <= 1024, "concurrency must be 1 to 1024, not " + std::to_string(concurrency));
    require(prefetch >= 1 && prefetch <= 100'000, "prefetch must be 1 to 100000, not " + std::to_string(prefetch));
    require(prefetch_bytes >= 1, "prefetch_bytes must be 1 or more");
    require(rate_limit == 0 || (rate_limit >= 0.001 && rate_limit <= 1'000'000),
            "rate_limit must be 0, for none, or 0.001 to 1000000 events per second, not " + std::to_string(rate_limit));
    require(on_poison == outbox::on_poison::skip || ordering == outbox::ordering::aggregate,
            "on_poison::park_aggregate needs ordering::aggregate");
    retry.validate();
    if (!inbox.empty())
        detail::check_conninfo(inbox);
    require(inbox_retention.count() >= 0, "inbox_retention must be 0, for ever, or more");
    detail::entry_id id;
    require(start == "0" || detail::parse(start, id),
            "start must be \"0\" or a position <ms>-<n>, not \"" + detail::printable(start) + "\"");
    auto at_least = [](std::chrono::milliseconds value, int least, const char *what) {
        require(value.count() >= least, std::string(what) + " must be " + std::to_string(least) + " ms or more, not " +
                                            std::to_string(value.count()) + " ms");
        require(value < std::chrono::hours(24 * 365 * 100), std::string(what) + " must be less than a hundred years");
    };
    at_least(idempotency_ttl, 1000, "idempotency_ttl");
    at_least(claim_idle, 100, "claim_idle");
    at_least(reap_idle, 1, "reap_idle");
    at_least(block, 10, "block");
    at_least(connect_timeout, 1, "connect_timeout");
    at_least(response_timeout, 1, "response_timeout");
    at_least(reconnect_min, 1, "reconnect_min");
    at_least(shutdown_timeout, 0, "shutdown_timeout");
    require(block < claim_idle, "block must be less than claim_idle");
    require(reconnect_max >= reconnect_min, "reconnect_max must be reconnect_min or more");
}

// the consumer

class consumer::implementation {
  public:
    explicit implementation(consumer_options settings) : options(std::move(settings)) {
        options.validate();
        if (options.name.empty())
            options.name = unique_name();
    }

    static std::string unique_name() {
        char host[65] = "";
        gethostname(host, sizeof host - 1);
        std::random_device random;
        char suffix[9];
        std::snprintf(suffix, sizeof suffix, "%08x", static_cast<unsigned>(random()));
        std::string name = std::string(host) + "-" + std::to_string(getpid()) + "-" + suffix;
        return name;
    }

    consumer_options options;
    std::shared_ptr<detail::handlers> handlers = std::make_shared<detail::handlers>();
    detail::counters counters;
    std::unique_ptr<detail::runner> runner;
};

consumer::consumer(consumer_options options) : implementation_(std::make_unique<implementation>(std::move(options))) {
    auto &own = *implementation_;
    own.runner = std::make_unique<detail::engine>(own.options, own.handlers, own.counters);
}

consumer::consumer(consumer_options options, testing::broker &broker)
    : implementation_(std::make_unique<implementation>(std::move(options))) {
    auto &own = *implementation_;
    own.runner = testing::make_runner(broker, own.options, own.handlers, own.counters);
}

consumer::~consumer() = default;

consumer &consumer::add(std::string_view pattern, int version, handler function) {
    implementation_->handlers->add(pattern, version, std::move(function));
    return *this;
}

consumer &consumer::add(std::string_view pattern, int version, async_handler function) {
    implementation_->handlers->add(pattern, version, std::move(function));
    return *this;
}

consumer &consumer::add(std::string_view pattern, int version, transaction_handler function) {
    implementation_->handlers->add(pattern, version, std::move(function));
    return *this;
}

bool consumer::run() { return implementation_->runner->run(); }
void consumer::stop() noexcept { implementation_->runner->stop(); }
consumer_stats consumer::stats() const noexcept { return implementation_->counters.snapshot(); }
const std::string &consumer::name() const noexcept { return implementation_->options.name; }
const std::string &consumer::group() const noexcept { return implementation_->options.group; }

} // namespace outbox

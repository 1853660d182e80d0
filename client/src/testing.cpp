// The in-memory broker, and the consumer on it: the engine without Redis, threads and time.
#include "src/testing.hpp"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdio>
#include <stdexcept>

#include "src/entry.hpp"
#include "src/mailbox.hpp"
#include "src/memory.hpp"
#include "src/pattern.hpp"
#include "src/rules.hpp"
#include "src/scheduler.hpp"
#include "src/text.hpp"

namespace outbox::testing {

namespace {
class memory_runner;
}

class broker::implementation {
  public:
    detail::memory::group_topic *find(std::string_view topic, std::string_view group) const {
        auto found = group_topics.find({std::string(topic), std::string(group)});
        return found != group_topics.end() ? found->second.get() : nullptr;
    }

    void append(std::string_view topic, detail::memory::field_list fields) {
        detail::entry_id id = clock.next_id();
        topics[std::string(topic)].emplace(id, std::make_shared<detail::memory::entry>(topic, id, std::move(fields)));
    }

    detail::time_point time() const noexcept { return detail::time_point(clock.now - detail::memory::clock::start); }

    // What consumers that were stopped outside of run() hold is free for others.
    void give_back_stopped();

    detail::memory::clock clock;
    std::uint64_t ids = 0; // that were generated
    PGconn *connection = nullptr;
    std::map<std::string, detail::memory::entries> topics;
    std::map<std::pair<std::string, std::string>, std::unique_ptr<detail::memory::group_topic>> group_topics;
    std::map<std::string, detail::memory::group> groups;
    std::vector<memory_runner *> runners;
    std::uint64_t given_back = 0; // how often a consumer gave back what it held
};

namespace {

using namespace detail;

// The inbox in memory. There is nothing to commit: the id is known from when the handler returns.
class memory_inbox final : public transaction_runner {
  public:
    memory_inbox(broker::implementation &broker, const consumer_options &options) : broker_(broker), options_(options) {}

    bool run(const event &event, const consumer::transaction_handler &handler) override {
        auto &inbox = broker_.groups[options_.group].inbox;
        auto known = inbox.find(event.id());
        if (known != inbox.end() && is_kept(known->second))
            return false;
        transaction tx(broker_.connection);
        handler(event, tx);
        inbox[std::string(event.id())] = broker_.clock.now;
        return true;
    }

  private:
    bool is_kept(memory::time handled_at) const {
        auto age = std::chrono::floor<std::chrono::seconds>(broker_.clock.now - handled_at);
        return options_.inbox_retention.count() == 0 || age < options_.inbox_retention;
    }

    broker::implementation &broker_;
    const consumer_options &options_;
};

class memory_runner final : public runner {
  public:
    memory_runner(broker::implementation &broker, const consumer_options &options, std::shared_ptr<const handlers> handlers,
                  counters &counters)
        : broker_(broker), options_(options), handlers_(std::move(handlers)), counters_(counters), inbox_(broker, options),
          scheduler_(options.ordering == ordering::aggregate) {
        broker_.runners.push_back(this);
    }
    ~memory_runner() override {
        give_back();
        std::erase(broker_.runners, this);
    }
    memory_runner(const memory_runner &) = delete;
    memory_runner &operator=(const memory_runner &) = delete;

    bool run() override;
    void stop() noexcept override { stop_asked_.store(true, std::memory_order_relaxed); }

    void give_back();
    bool is_idle_and_stopped() const noexcept { return stop_asked_.load(std::memory_order_relaxed) && !in_run_; }
    std::optional<time_point> next_due() const { return scheduler_.next_due(); }

  private:
    void open();
    void look_around();
    void read();
    void admit(memory::source &source, entry_id id, int attempts);
    bool is_behind_others(const delivery &one) const;
    delivery *next();
    bool begin(delivery &one);
    void start(delivery &one);
    void collect();
    void settle(delivery &one);
    void bury(delivery &one);
    void forget(delivery &one);
    void ask_again();
    void count();

    broker::implementation &broker_;
    const consumer_options &options_;
    std::shared_ptr<const handlers> handlers_;
    counters &counters_;
    memory_inbox inbox_;
    std::vector<memory::source *> sources_;

    scheduler scheduler_;
    std::shared_ptr<mailbox> mailbox_ = std::make_shared<mailbox>([] {});
    std::map<entry_id, delivery *> held_;
    std::vector<delivery *> blocked_; // wait for another entry: there is no time at which to ask again
    std::size_t outstanding_ = 0;     // are with a handler
    bool token_ = false;              // of the rate limit

    // the first entry of each aggregate that others have
    std::map<std::pair<const stream *, std::uint64_t>, entry_id> foreign_;
    std::uint64_t seen_given_back_ = 0;

    std::atomic<bool> stop_asked_{false};
    bool in_run_ = false;
    bool gone_ = false; // has given back what it held
    bool clean_ = true;
};

bool memory_runner::run() {
    if (!stop_asked_ && sources_.empty())
        open();
    in_run_ = true;
    for (bool first = true; !stop_asked_; first = false) {
        broker_.give_back_stopped();
        if (first || seen_given_back_ != broker_.given_back)
            look_around();
        collect();
        read();
        delivery *one = next();
        if (one == nullptr)
            break;
        if (!one->reason.empty())
            bury(*one);
        else
            start(*one);
    }
    in_run_ = false;
    if (stop_asked_)
        give_back();
    count();
    return clean_;
}

// Makes the groups where they are missing.
void memory_runner::open() {
    for (const std::string &topic : topics_of(options_, *handlers_)) {
        auto &known = broker_.group_topics[{topic, options_.group}];
        if (known == nullptr) {
            entry_id start;
            parse(options_.start, start); // was checked with the options: "0", or a position
            known = std::make_unique<memory::group_topic>(topic, options_.group, broker_.topics[topic], broker_.clock, start);
            counters_.groups_created.add(2);
        }
        sources_.push_back(&known->main);
        sources_.push_back(&known->redriven);
    }
    counters_.connected.set(1);
}

// What other consumers of the group have done meanwhile. What they gave back is taken over however much is held here: that
// may be waiting for it.
void memory_runner::look_around() {
    seen_given_back_ = broker_.given_back;
    for (memory::source *source : sources_)
        for (auto it = source->pending.begin(); it != source->pending.end();) {
            auto &[id, claim] = *it++;
            if (claim.owner == nullptr) {
                counters_.claimed.add();
                admit(*source, id, claim.attempts);
            }
        }
    foreign_.clear();
    for (const memory::source *source : sources_)
        for (const auto &[id, claim] : source->pending)
            if (claim.owner != this && claim.aggregate != 0)
                foreign_.emplace(std::pair(source, claim.aggregate), id); // in the order of ids: the first stays
    for (auto [id, one] : held_)
        if (one->held && !is_behind_others(*one)) {
            one->held = false;
            scheduler_.reconsider(*one);
        }
    ask_again();
}

bool memory_runner::is_behind_others(const delivery &one) const {
    auto other = foreign_.find({one.stream, one.aggregate});
    return options_.ordering == ordering::aggregate && other != foreign_.end() && other->second < one.id;
}

// In the order in which it was published, whatever the topic. What is redriven comes in however much is held here: that may
// be waiting for it.
void memory_runner::read() {
    for (;;) {
        memory::source *first = nullptr;
        entry_id id;
        for (memory::source *source : sources_) {
            if (!source->redrive && held_.size() >= options_.prefetch)
                continue;
            auto next = source->entries->upper_bound(source->delivered);
            if (next != source->entries->end() && (first == nullptr || next->first < id)) {
                first = source;
                id = next->first;
            }
        }
        if (first == nullptr)
            break;
        first->delivered = id;
        admit(*first, id, 0);
    }
}

void memory_runner::admit(memory::source &source, entry_id id, int attempts) {
    auto entry = source.entries->at(id);
    counters_.read.add();
    decoded found = decode(entry->reply());
    std::string_view position = source.redrive ? found.first_position : std::string_view(entry->id);
    auto *one = new delivery(event(found.fields, entry->topic, position, attempts + 1, entry), id, entry->id);
    one->stream = &source;
    one->attempts = attempts;
    one->aggregate = aggregate_in(entry->topic, found.fields);
    one->redriven = source.redrive;
    one->reason = std::move(found.reason);
    held_.emplace(id, one);
    source.pending[id] = {this, one->aggregate, attempts};
    if (!prepare(*one, options_, *handlers_, counters_)) {
        settle(*one);
        return;
    }
    one->held = is_behind_others(*one);
    scheduler_.admit(*one);
}

// The next one to start or to bury; null if none may, before something else happens.
delivery *memory_runner::next() {
    for (;;) {
        const delivery *first = scheduler_.peek(broker_.time());
        if (first == nullptr)
            return nullptr;
        if (!first->reason.empty())
            return scheduler_.next(broker_.time());
        if (outstanding_ >= static_cast<std::size_t>(options_.concurrency))
            return nullptr;
        if (options_.rate_limit > 0 && !token_)
            token_ = broker_.groups[options_.group].take_token(broker_.clock.now, options_.rate_limit);
        if (options_.rate_limit > 0 && !token_)
            return nullptr;
        delivery *one = scheduler_.next(broker_.time());
        if (begin(*one)) {
            token_ = false;
            return one;
        }
    }
}

// Whether its handler may be called.
bool memory_runner::begin(delivery &one) {
    switch (memory::source_of(one).group_topic->begin(one, this, options_)) {
    case begin_verdict::run:
        return true;
    case begin_verdict::done:
        counters_.duplicates.add();
        settle(one);
        break;
    case begin_verdict::parked:
        counters_.parked.add();
        forget(one);
        break;
    case begin_verdict::not_owned:
        forget(one);
        break;
    case begin_verdict::wait:
        blocked_.push_back(&one);
        break;
    }
    return false;
}

void memory_runner::start(delivery &one) {
    one.running = true;
    ++outstanding_;
    if (one.attempts > 0)
        counters_.retried.add();
    count();
    if (handlers_->call(one, &inbox_, mailbox_))
        mailbox_->post(&one);
}

void memory_runner::collect() {
    std::vector<delivery *> finished;
    mailbox_->collect(finished);
    for (delivery *one : finished) {
        one->running = false;
        --outstanding_;
        // In the middle of the jitter: a test can say when the next attempt comes.
        verdict next = judge(*one, options_, counters_, 0.5);
        if (next.is == verdict::kind::settle)
            settle(*one);
        else if (next.is == verdict::kind::die)
            bury(*one);
        else
            scheduler_.delay(*one, broker_.time() + next.delay);
    }
}

void memory_runner::settle(delivery &one) {
    memory::source_of(one).group_topic->finish(one, options_);
    counters_.acknowledged.add();
    forget(one);
}

void memory_runner::bury(delivery &one) {
    if (memory::source_of(one).group_topic->bury(one, this, options_))
        note_burial(one, one.stream->key, options_, counters_);
    forget(one);
}

void memory_runner::forget(delivery &one) {
    scheduler_.remove(one);
    held_.erase(one.id);
    delete &one;
    ask_again();
}

// What waits for another entry may be waiting no longer.
void memory_runner::ask_again() {
    for (delivery *one : blocked_)
        scheduler_.put_back(*one);
    blocked_.clear();
}

// Others of the group may take over what this one has pending and does not come back to, also what a token is out for.
void memory_runner::give_back() {
    if (gone_)
        return;
    gone_ = true;
    collect();
    clean_ = outstanding_ == 0;
    for (auto [id, one] : held_) {
        memory::source &source = memory::source_of(*one);
        if (auto claim = source.pending.find(id); claim != source.pending.end() && claim->second.owner == this) {
            // the attempt has started, and nobody will hear how it ends
            claim->second = {nullptr, one->aggregate, one->attempts + (one->running ? 1 : 0)};
        }
        scheduler_.remove(*one);
        if (!one->running)
            delete one;
    }
    held_.clear();
    blocked_.clear();
    // What a token has is the token's now, but for what came back in the meantime.
    std::vector<delivery *> late;
    mailbox_->close(late);
    for (delivery *one : late)
        delete one;
    ++broker_.given_back;
    counters_.connected.set(0);
    count();
}

void memory_runner::count() {
    counters_.held.set(held_.size());
    counters_.running.set(outstanding_);
    counters_.waiting_retry.set(scheduler_.delayed());
}

} // namespace

void broker::implementation::give_back_stopped() {
    for (memory_runner *runner : runners)
        if (runner->is_idle_and_stopped())
            runner->give_back();
}

std::unique_ptr<detail::runner> make_runner(broker &broker, const consumer_options &options,
                                            std::shared_ptr<const detail::handlers> handlers, detail::counters &counters) {
    return std::make_unique<memory_runner>(broker.internals(), options, std::move(handlers), counters);
}

// What outbox.emit() takes, and what it makes of it.

static void require(bool holds, const std::string &otherwise) {
    if (!holds)
        throw std::invalid_argument(otherwise);
}

static std::string dump(const nlohmann::json &value, const char *what) {
    try {
        return value.dump();
    } catch (const nlohmann::json::type_error &) {
        throw std::invalid_argument(std::string("the ") + what + " is not UTF-8");
    }
}

// A text of PostgreSQL's.
static void check_text(const std::string &text, const char *what, std::size_t limit) {
    dump(text, what);
    require(text.size() <= limit, std::string("the ") + what + " has more than " + std::to_string(limit) + " bytes");
    require(text.find('\0') == std::string::npos, std::string("the ") + what + " has a NUL in it");
}

static std::string headers_text(const nlohmann::json &headers) {
    constexpr std::size_t headers_limit = 65536;
    if (headers.is_null() || (headers.is_object() && headers.empty()))
        return {};
    require(headers.is_object(), "headers must be one flat JSON object");
    for (const auto &[name, value] : headers.items()) {
        require(!value.is_structured(), "headers must be one flat JSON object");
        check_text(name, "name of a header", headers_limit);
        if (value.is_string())
            check_text(value.get_ref<const std::string &>(), "header", headers_limit);
    }
    std::string text = headers.dump();
    require(text.size() <= headers_limit, "the headers have more than " + std::to_string(headers_limit) + " bytes");
    return text;
}

static std::string rfc3339(std::chrono::sys_time<std::chrono::microseconds> time) {
    auto day = std::chrono::floor<std::chrono::days>(time);
    std::chrono::year_month_day date{day};
    std::chrono::hh_mm_ss clock{time - day};
    char text[64];
    std::snprintf(text, sizeof text, "%04d-%02u-%02uT%02d:%02d:%02d.%06dZ", static_cast<int>(date.year()),
                  static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()), static_cast<int>(clock.hours().count()),
                  static_cast<int>(clock.minutes().count()), static_cast<int>(clock.seconds().count()),
                  static_cast<int>(clock.subseconds().count()));
    return text;
}

// RFC 3339 with any offset, as UTC in microseconds.
static std::string normal_time(const std::string &given) {
    using namespace std::chrono;
    std::string text = given;
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    minutes offset{0};
    bool good = true;
    if (std::size_t at = text.find_last_of("+-"); at != std::string::npos && at + 6 == text.size() && at > 10) {
        auto digit = [&](std::size_t i) {
            good &= std::isdigit(static_cast<unsigned char>(text[at + i])) != 0;
            return text[at + i] - '0';
        };
        int hour = digit(1) * 10 + digit(2), minute = digit(4) * 10 + digit(5);
        good &= text[at + 3] == ':' && hour <= 23 && minute <= 59;
        offset = (text[at] == '-' ? -1 : 1) * minutes(hour * 60 + minute);
        text.replace(at, 6, "Z");
    }
    sys_time<microseconds> time;
    good = good && detail::parse_time(text, time);
    require(good, "occurred_at \"" + detail::printable(given, 100) + "\" is not a time in RFC 3339");
    time -= offset;
    require(time >= sys_days(year(1) / 1 / 1) && time < sys_days(year(10000) / 1 / 1),
            "occurred_at must be from the year 1 to the year 9999 in UTC");
    return rfc3339(time);
}

broker::broker() : implementation_(std::make_unique<implementation>()) {}
broker::~broker() = default;

std::string broker::publish(const new_event &event) {
    auto &own = *implementation_;
    require(event.deliver_at.empty() && event.dedupe_key.empty(),
            "the broker publishes at once: it takes no deliver_at and no dedupe_key");
    std::string id = event.id;
    if (id.empty()) {
        auto ms = static_cast<unsigned long long>(own.clock.now.time_since_epoch().count());
        char text[64]; // a UUID of version 7, with a number for what is random
        std::snprintf(text, sizeof text, "%08llx-%04llx-7000-8000-%012llx", ms >> 16 & 0xffffffff, ms & 0xffff,
                      static_cast<unsigned long long>(++own.ids) & 0xffffffffffff);
        id = text;
    }
    std::transform(id.begin(), id.end(), id.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });

    std::string_view topic = event.topic.empty() ? detail::topic_of(event.type) : event.topic;
    check_text(event.aggregate_type, "aggregate type", 1000);
    check_text(event.aggregate_id, "aggregate id", 1000);
    detail::memory::field_list fields = {
        {"event_id", id},
        {"event_type", event.type},
        {"aggregate_type", event.aggregate_type},
        {"aggregate_id", event.aggregate_id},
        {"version", std::to_string(event.version)},
        {"occurred_at", event.occurred_at.empty() ? rfc3339(own.clock.now) : normal_time(event.occurred_at)},
        {"headers", headers_text(event.headers)},
        {"payload", dump(event.payload, "payload")}};
    // the rest a consumer would refuse as well
    std::string reason = detail::decode(detail::memory::entry(topic, {}, fields).reply()).reason;
    require(reason.empty(), reason);
    require(detail::is_topic(topic), "\"" + detail::printable(topic) + "\" is no topic");
    own.append(topic, std::move(fields));
    return id;
}

void broker::publish_raw(std::string_view topic, std::vector<std::pair<std::string, std::string>> fields) {
    require(detail::is_topic(topic), "\"" + detail::printable(topic) + "\" is no topic");
    require(!fields.empty(), "an entry has one field at least");
    implementation_->append(topic, std::move(fields));
}

std::chrono::sys_time<std::chrono::milliseconds> broker::now() const noexcept { return implementation_->clock.now; }

void broker::advance(std::chrono::milliseconds by) {
    require(by.count() >= 0, "the clock never goes back");
    implementation_->clock.now += by;
}

std::optional<std::chrono::milliseconds> broker::until_next_retry() const {
    std::optional<detail::time_point> first;
    implementation_->give_back_stopped();
    for (const memory_runner *runner : implementation_->runners)
        if (auto due = runner->next_due(); due && (!first || *due < *first))
            first = due;
    if (!first)
        return std::nullopt;
    auto left = std::chrono::ceil<std::chrono::milliseconds>(*first - implementation_->time());
    return std::max(left, std::chrono::milliseconds(0));
}

void broker::use_connection(PGconn *connection) noexcept { implementation_->connection = connection; }

std::vector<dead_letter> broker::dead(std::string_view topic, std::string_view group) const {
    auto *found = implementation_->find(topic, group);
    return found != nullptr ? found->dead() : std::vector<dead_letter>();
}

bool broker::redrive(std::string_view topic, std::string_view group, std::string_view id) {
    auto *found = implementation_->find(topic, group);
    detail::entry_id letter;
    return found != nullptr && detail::parse(id, letter) && found->redrive(letter);
}

bool broker::discard(std::string_view topic, std::string_view group, std::string_view id) {
    auto *found = implementation_->find(topic, group);
    detail::entry_id letter;
    return found != nullptr && detail::parse(id, letter) && found->discard(letter);
}

std::size_t broker::pending(std::string_view topic, std::string_view group) const {
    if (auto *found = implementation_->find(topic, group))
        return found->unfinished();
    auto entries = implementation_->topics.find(std::string(topic));
    return entries != implementation_->topics.end() ? entries->second.size() : 0;
}

} // namespace outbox::testing

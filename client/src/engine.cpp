#include "src/engine.hpp"

#include <algorithm>
#include <array>
#include <csignal>
#include <stdexcept>

#include "src/inbox_runner.hpp"
#include "src/rules.hpp"
#include "src/text.hpp"

namespace outbox::detail {

using namespace std::chrono_literals;

void engine::timer::init(uv_loop_t &loop, std::function<void()> function) {
    uv_timer_init(&loop, &handle);
    handle.data = this;
    call = std::move(function);
}

void engine::timer::start(milliseconds delay, milliseconds repeat) {
    auto ms = [](milliseconds span) { return static_cast<std::uint64_t>(std::max<milliseconds::rep>(span.count(), 0)); };
    uv_timer_start(&handle, [](uv_timer_t *self) { static_cast<timer *>(self->data)->call(); }, ms(delay), ms(repeat));
}

void engine::timer::close() { uv_close(reinterpret_cast<uv_handle_t *>(&handle), nullptr); }

engine::engine(const consumer_options &options, std::shared_ptr<const handlers> handlers, counters &counters)
    : options_(options), handlers_(std::move(handlers)), counters_(counters),
      scheduler_(options.ordering == ordering::aggregate) {
    // the first read brings a few, which tell how large they are
    entry_bytes_ = static_cast<double>(options_.prefetch_bytes) / 8;
    if (uv_loop_init(&loop_) != 0)
        throw error("could not make an event loop: too many open files?");
    wake_.data = this;
    if (uv_async_init(&loop_, &wake_, [](uv_async_t *handle) { static_cast<engine *>(handle->data)->woken(); }) != 0) {
        uv_loop_close(&loop_);
        throw error("could not make an event loop: too many open files?");
    }
}

engine::~engine() {
    // all of them, if run() could not begin
    uv_walk(
        &loop_,
        [](uv_handle_t *handle, void *) {
            if (uv_is_closing(handle) == 0)
                uv_close(handle, nullptr);
        },
        nullptr);
    uv_run(&loop_, UV_RUN_DEFAULT);
    uv_loop_close(&loop_);
}

// Safe in a signal handler, and as long as the engine lives.
void engine::stop() noexcept {
    stop_asked_.store(true, std::memory_order_relaxed);
    uv_async_send(&wake_);
}

void engine::post(std::function<void()> task) {
    std::lock_guard guard(tasks_lock_);
    tasks_.push_back(std::move(task));
    uv_async_send(&wake_);
}

void engine::log(log_level level, const std::string &message) const {
    if (options_.log)
        options_.log(level, message);
}

bool engine::run() {
    if (stop_asked_)
        return true;
    open();
    uv_run(&loop_, UV_RUN_DEFAULT);
    finish_loop();
    return clean_;
}

void engine::open() {
    auto topics = topics_of(options_, *handlers_);
    if (handlers_->need_transactions() && options_.inbox.empty())
        throw std::invalid_argument("on_transaction() needs consumer_options::inbox, a connection string of the database "
                                    "with the inbox");
    topics_ = std::make_shared<const std::vector<std::string>>(std::move(topics));
    for (const std::string &topic : *topics_) {
        keys_.push_back(std::make_unique<topic_keys>(topic, options_.group));
        const topic_keys &keys = *keys_.back();
        for (bool again : {false, true}) {
            auto made = std::make_unique<stream>();
            made->key = again ? keys.redrive : keys.stream;
            made->attempts_key = topic_keys::attempts(made->key, options_.group);
            made->generation_key = topic_keys::generation(made->key, options_.group);
            made->keys = &keys;
            made->topic = topic;
            made->redrive = again;
            streams_.push_back(std::move(made));
        }
    }

    connection_options settings;
    std::string why;
    parse_redis_url(options_.redis_url, settings.url, why); // was checked with the options
    settings.password_file = options_.redis_password_file;
    settings.name = options_.name;
    settings.connect_timeout = options_.connect_timeout;
    settings.response_timeout = options_.response_timeout;
    settings.reconnect_min = options_.reconnect_min;
    settings.reconnect_max = options_.reconnect_max;
    settings.log = [this](log_level level, std::string_view message) { log_seldom(level, std::string(message)); };
    commands_ = std::make_unique<connection>(loop_, settings, [this] { commands_ready(); }, [this] { commands_lost(); });
    reader_ = std::make_unique<connection>(loop_, settings, [this] { reader_ready(); }, [this] { reader_lost(); });

    housekeeping_.init(loop_, [this] { keep(); });
    groups_timer_.init(loop_, [this] { ensure_groups(); });
    read_timer_.init(loop_, [this] { read(); });
    due_timer_.init(loop_, [] {}); // the round after it does the work
    token_timer_.init(loop_, [this] { take_tokens(); });
    stop_timer_.init(loop_, [this] { stop_step(); });
    poll_timer_.init(loop_, [this] { inspect_held(); });
    look_timer_.init(loop_, [this] { pool_->look(); }); // the round after it collects
    uv_prepare_init(&loop_, &prepare_);
    prepare_.data = this;
    uv_prepare_start(&prepare_, [](uv_prepare_t *handle) { static_cast<engine *>(handle->data)->round(); });
    uv_signal_init(&loop_, &sigterm_);
    uv_signal_init(&loop_, &sigint_);
    if (options_.handle_signals) {
        sigterm_.data = sigint_.data = this;
        auto on_signal = [](uv_signal_t *handle, int) { static_cast<engine *>(handle->data)->begin_to_stop(); };
        uv_signal_start(&sigterm_, on_signal, SIGTERM);
        uv_signal_start(&sigint_, on_signal, SIGINT);
    }

    mailbox_ = std::make_shared<mailbox>([this] { uv_async_send(&wake_); });
    pool::make_runner make;
    if (handlers_->need_transactions())
        make = [inbox = options_.inbox, group = options_.group] { return std::make_unique<inbox_runner>(inbox, group); };
    // an asynchronous handler gives its thread back while it runs: then only the count of what was submitted bounds them
    ahead_ = handlers_->any_async() ? 0 : 128;
    pool_ = std::make_unique<pool>(options_.concurrency, static_cast<std::size_t>(options_.concurrency) + ahead_, handlers_, mailbox_,
                                   std::move(make));
    if (!options_.inbox.empty())
        keeper_ = std::make_unique<keeper>(options_);

    housekeeping_.start(0ms, std::clamp<milliseconds>(options_.claim_idle / 16, 5ms, 250ms));
    commands_->open();
    reader_->open();
}

void engine::finish_loop() {
    keeper_.reset(); // it may post no more
    // What no thread has is ours to destroy. What a handler still has is its thread's from close() on, which destroys it when
    // it comes back; so it must be in no list by then.
    std::vector<delivery *> finished;
    mailbox_->collect(finished);
    for (delivery *one : finished)
        one->running = false;
    for (delivery *one : pool_->recall())
        one->running = false;
    for (auto &stream : streams_) {
        std::vector<delivery *> ours;
        for (delivery *one = stream->first_held; one != nullptr; one = one->next_held)
            if (!one->running)
                ours.push_back(one);
        stream->first_held = stream->last_held = nullptr;
        for (delivery *one : ours)
            delete one;
    }
    finished.clear();
    mailbox_->close(finished);
    for (delivery *one : finished)
        delete one;
    pool_.reset();
    counters_.connected.set(0);
    counters_.held.set(0);
    counters_.held_bytes.set(0);
    uv_run(&loop_, UV_RUN_NOWAIT);
    reader_.reset();
    commands_.reset();
}

void engine::woken() {
    std::vector<std::function<void()>> tasks;
    {
        std::lock_guard guard(tasks_lock_);
        tasks.swap(tasks_);
    }
    for (auto &task : tasks)
        task();
    if (stop_asked_.load(std::memory_order_relaxed))
        begin_to_stop();
}

// Everything that became possible in this round of the loop, in one go: so that acknowledgements and scripts go out in batches.
void engine::round() {
    pool_moved_ = false;
    collect();
    pump();
    if (pool_moved_ && submitted_ > 0 && !look_timer_.active())
        look_timer_.start(1ms); // see pool.hpp
    for (auto &stream : streams_)
        acknowledge(*stream);
    read();
    if (stopping_ != stopping::no)
        stop_step();
    commands_->flush();
    reader_->flush();
}

void engine::reader_ready() {
    if (stopping_ == stopping::no)
        ensure_groups();
}

void engine::reader_lost() {
    reads_ = 0;
    coming_ = 0;
    finding_broken_ = false;
    groups_ready_ = false; // what the lost reply brought is pending with us, and is swept up before the next read
    counters_.reconnects.add();
}

void engine::commands_ready() {
    counters_.connected.set(1);
    if (stopping_ == stopping::no && reader_->ready())
        ensure_groups();
}

// The reader goes with it: entries whose reply was lost here are swept up before anything is read, and a sweep beside a read
// would bring the same entry twice.
void engine::commands_lost() {
    counters_.connected.set(0);
    counters_.reconnects.add();
    // Redis may come back with less than it had: what is not ours any more must not start.
    for (auto &stream : streams_)
        void_leases(*stream);
    reader_->reconnect("the other connection was lost");
}

// For what a fault may say many times a second: every five seconds.
void engine::log_seldom(log_level level, const std::string &message) {
    time_point now = lease_clock::now();
    auto [said, first] = logged_.try_emplace(message, now);
    if (!first && now - said->second < 5s)
        return;
    said->second = now;
    if (logged_.size() > 100)
        logged_.clear();
    log(level, message);
}

// What an error reply means to a connection; true if the reply is none that was hoped for.
bool engine::trouble_of(const redisReply *reply, connection &from, std::string_view what) {
    if (reply == nullptr)
        return true;
    trouble is = classify(*reply);
    if (is == trouble::none)
        return false;
    log_seldom(is == trouble::no_group ? log_level::info : log_level::warning,
               std::string(what) + ": " + printable(text(*reply)));
    if (is == trouble::reconnect)
        from.reconnect(text(*reply));
    if (is == trouble::no_group)
        groups_missing();
    return true;
}

// Stopping: no new work; handlers finish; what they did is settled; the rest is given back. Each step ends when there is
// nothing to wait for any more, or when its time is over.

void engine::begin_to_stop() {
    if (stopping_ != stopping::no)
        return;
    stopping_ = stopping::handlers;
    stop_asked_ = true; // also where a signal did: the consumer runs once
    for (timer *one : {&groups_timer_, &read_timer_, &poll_timer_, &due_timer_, &token_timer_})
        one->stop();
    // Redis drops a blocked read with its connection. An entry that it had just sent is found in give_back().
    reader_->close();
    for (delivery *one : pool_->recall()) {
        one->running = false;
        --submitted_;
        scheduler_.put_back(*one);
    }
    for (delivery *one : begun_)
        scheduler_.put_back(*one);
    begun_.clear();
    log(log_level::info, "stopping: " + std::to_string(submitted_) + " handlers have " +
                             std::to_string(options_.shutdown_timeout.count()) + " ms to finish");
    stop_timer_.start(options_.shutdown_timeout);
}

void engine::stop_step() {
    bool over = !stop_timer_.active();
    if (stopping_ == stopping::handlers && (submitted_ == 0 || over)) {
        clean_ = submitted_ == 0;
        if (!clean_)
            log(log_level::warning, std::to_string(submitted_) + " handlers did not finish within the shutdown timeout");
        stopping_ = stopping::settling;
        stop_timer_.start(options_.response_timeout);
        over = false;
    }
    if (stopping_ == stopping::settling) {
        bool settled = burying_ == 0 && asking_ == 0;
        for (auto &stream : streams_)
            settled &= stream->settled.empty() && stream->acknowledging == 0;
        if (settled || over || !commands_->ready()) {
            stopping_ = stopping::giving_back;
            stop_timer_.start(options_.response_timeout);
            over = false;
            give_back();
        }
    }
    if (stopping_ == stopping::giving_back && (giving_back_ == 0 || over || !commands_->ready())) {
        stopping_ = stopping::done;
        commands_->close();
        for (timer *one : {&housekeeping_, &groups_timer_, &read_timer_, &poll_timer_, &due_timer_, &token_timer_, &stop_timer_,
                           &look_timer_})
            one->close();
        for (auto *handle : {reinterpret_cast<uv_handle_t *>(&prepare_), reinterpret_cast<uv_handle_t *>(&sigterm_),
                             reinterpret_cast<uv_handle_t *>(&sigint_)})
            uv_close(handle, nullptr);
        // the loop goes on until the handles are closed; the one that stop() uses stays until the end of the consumer
        uv_unref(reinterpret_cast<uv_handle_t *>(&wake_));
    }
}

// Others may take over at once what this consumer has pending and no handler runs; also what was on its way here when the
// reading ended, which one more look brings. Then the name goes, if nothing is left on it.
void engine::give_back() {
    for (auto &held : streams_) {
        stream &stream = *held;
        ++giving_back_;
        auto leave = [this, &stream](bool) {
            std::array<std::string_view, 1> keys{stream.key};
            std::array<std::string_view, 3> names{options_.group, options_.name, "-1"};
            commands_->run(reap, keys, names, [this](const redisReply *) { --giving_back_; });
        };
        take_over(stream, true, "-", [this, &stream, leave](bool) {
            std::vector<std::string> texts;
            for (delivery *one = stream.first_held; one != nullptr; one = one->next_held)
                if (!one->running && one->is != delivery::state::settling) {
                    texts.emplace_back(one->id_text);
                    texts.push_back(std::to_string(one->attempts));
                }
            if (texts.empty()) {
                leave(true);
                return;
            }
            std::vector<std::string_view> words{options_.group, options_.name};
            words.insert(words.end(), texts.begin(), texts.end());
            std::array<std::string_view, 2> keys{stream.key, stream.attempts_key};
            commands_->run(release, keys, words, [leave](const redisReply *) { leave(true); });
        });
    }
}

} // namespace outbox::detail

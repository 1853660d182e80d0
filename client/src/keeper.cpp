#include "src/keeper.hpp"

#include "src/inbox.hpp"
#include "src/signals.hpp"
#include "src/text.hpp"

namespace outbox::detail {

using namespace std::chrono_literals;
using std::chrono::steady_clock;

keeper::keeper(const consumer_options &options) : shared_(std::make_shared<shared>()) {
    shared_->options = options;
    no_signals guard;
    thread_ = std::thread([shared = shared_] { work(shared); });
}

keeper::~keeper() {
    bool ended;
    {
        std::unique_lock guard(shared_->lock);
        shared_->stop = true;
        shared_->then = nullptr;
        shared_->some.notify_all();
        ended = shared_->some.wait_for(guard, 100ms, [this] { return shared_->ended; });
    }
    if (ended)
        thread_.join();
    else
        thread_.detach();
}

void keeper::load(std::vector<std::string> topics, std::function<void(std::map<std::string, std::string>)> then) {
    std::lock_guard guard(shared_->lock);
    shared_->wanted = std::move(topics);
    shared_->then = std::move(then);
    shared_->some.notify_all();
}

void keeper::save(const std::string &topic, const std::string &position) {
    std::lock_guard guard(shared_->lock);
    shared_->to_save[topic] = position;
    shared_->some.notify_all();
}

void keeper::work(const std::shared_ptr<shared> &shared) {
    const consumer_options &options = shared->options;
    inbox_connection inbox(options.inbox);
    auto next_purge = steady_clock::now() + 10s;
    std::string complained;
    std::unique_lock guard(shared->lock);
    while (!shared->stop) {
        bool purges = steady_clock::now() >= next_purge;
        if (!shared->then && shared->to_save.empty() && !purges) {
            shared->some.wait_until(guard, next_purge,
                                    [&] { return shared->stop || shared->then || !shared->to_save.empty(); });
            continue;
        }
        bool loads = static_cast<bool>(shared->then);
        auto wanted = shared->wanted;
        std::map<std::string, std::string> saving, known;
        saving.swap(shared->to_save);
        guard.unlock();
        std::string failure;
        try {
            PGconn *connection = inbox.connection();
            for (auto &[topic, position] : saving)
                save_position(connection, options.group, topic, position);
            saving.clear();
            for (const std::string &topic : wanted)
                if (auto position = loads ? load_position(connection, options.group, topic) : std::nullopt)
                    known[topic] = *position;
            if (purges) {
                if (options.inbox_retention.count() > 0)
                    inbox::purge(connection, options.inbox_retention);
                next_purge = steady_clock::now() + 10min;
            }
        } catch (const std::exception &cause) {
            failure = cause.what();
        }
        guard.lock();
        if (failure.empty()) {
            complained.clear();
            // under the lock: nobody is called who is gone
            if (loads && shared->then)
                std::exchange(shared->then, nullptr)(std::move(known));
            continue;
        }
        // what was not done is done later, unless something newer has come
        for (auto &[topic, position] : saving)
            shared->to_save.try_emplace(topic, position);
        if (failure != complained && options.log && !shared->stop)
            options.log(log_level::warning, "inbox: " + printable(failure));
        complained = failure;
        shared->some.wait_for(guard, 1s, [&] { return shared->stop; });
    }
    shared->ended = true;
    shared->some.notify_all();
}

} // namespace outbox::detail

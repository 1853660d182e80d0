// A thread beside the loop that talks to the inbox' database about what is no handler's business: how far the group has
// finished each topic, and purging.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <outbox/consumer.hpp>

namespace outbox::detail {

class keeper {
  public:
    explicit keeper(const consumer_options &options);

    // Calls nobody any more. A statement that hangs keeps the thread, which lives on with what it needs, and ends after it.
    ~keeper();

    // Asks for the positions of the topics, until it has them; `then` is called in the keeper's thread, with those that are
    // known. A later call replaces an earlier one that has not been answered.
    void load(std::vector<std::string> topics, std::function<void(std::map<std::string, std::string>)> then);

    // Writes it down some time; only the last one of a topic matters.
    void save(const std::string &topic, const std::string &position);

  private:
    struct shared {
        consumer_options options;
        std::mutex lock;
        std::condition_variable some;
        bool stop = false, ended = false;
        std::vector<std::string> wanted;
        std::function<void(std::map<std::string, std::string>)> then;
        std::map<std::string, std::string> to_save;
    };
    static void work(const std::shared_ptr<shared> &shared);

    std::shared_ptr<shared> shared_;
    std::thread thread_;
};

} // namespace outbox::detail

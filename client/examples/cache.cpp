// Keeps a cache honest: hears what its own module commits, and deletes the keys that are stale by that. Whoever changes a
// product emits an event in the same transaction, and need not know that there is a cache, nor delete from it and then fail to
// commit, nor commit and then fail to delete.
//
//   OUTBOX_REDIS_URL=redis://127.0.0.1 CACHE_HOST=127.0.0.1 CACHE_PORT=6379 cache
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include <hiredis/hiredis.h>

#include <outbox/outbox.hpp>

static std::string from_env(const char *name, const char *otherwise) {
    const char *value = std::getenv(name);
    return value ? value : otherwise;
}

// A connection to the cache, made when it is needed; each handler thread has its own.
class cache {
  public:
    // Whether the key was there. An exception makes the event come again.
    bool erase(const std::string &key) {
        if (!connection_ || connection_->err) {
            const timeval patience = {2, 0};
            connection_.reset(redisConnectWithTimeout(from_env("CACHE_HOST", "127.0.0.1").c_str(),
                                                      std::stoi(from_env("CACHE_PORT", "6379")), patience));
            if (!connection_ || connection_->err)
                throw std::runtime_error(connection_ ? connection_->errstr : "out of memory");
            redisSetTimeout(connection_.get(), patience);
        }
        std::unique_ptr<redisReply, release> reply(
            static_cast<redisReply *>(redisCommand(connection_.get(), "DEL %b", key.data(), key.size())));
        if (!reply || reply->type != REDIS_REPLY_INTEGER)
            throw std::runtime_error(reply ? reply->str : connection_->errstr);
        return reply->integer > 0;
    }

  private:
    struct release {
        void operator()(redisContext *connection) const { redisFree(connection); }
        void operator()(redisReply *reply) const { freeReplyObject(reply); }
    };
    std::unique_ptr<redisContext, release> connection_;
};

int main() try {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    auto options = outbox::consumer_options::from_env();
    if (options.group.empty())
        options.group = "cache";
    // to delete a key twice is to delete it
    options.idempotency = outbox::idempotency::none;

    outbox::consumer consumer(options);
    // whatever happened to a product: catalog.product.changed, catalog.product.withdrawn, ...
    consumer.on("catalog.product.*", [](const outbox::event &event) {
        thread_local cache cache;
        const std::string key = "product:" + std::string(event.aggregate_id());
        const bool was_there = cache.erase(key);
        std::printf("%s: %s %s\n", std::string(event.type()).c_str(), key.c_str(), was_there ? "deleted" : "is not cached");
    });
    return consumer.run() ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "cache: %s\n", error.what());
    return 1;
}

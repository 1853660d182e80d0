// What runs a consumer: the engine on Redis, or the in-memory broker.
#pragma once

namespace outbox::detail {

class runner {
  public:
    virtual ~runner() = default;
    virtual bool run() = 0;
    virtual void stop() noexcept = 0;
};

} // namespace outbox::detail

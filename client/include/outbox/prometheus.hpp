// A consumer's numbers as Prometheus text, over HTTP. Only in builds with the CMake option OUTBOX_WITH_PROMETHEUS, in the
// target outbox::prometheus.
#pragma once

#include <memory>
#include <string>

namespace outbox {

class consumer;

/// Serves /metrics at `address` ("127.0.0.1:9464"; port 0 takes a free one) while it lives: every count of consumer_stats as
/// `outbox_consumer_<name>_total` and every gauge as `outbox_consumer_<name>`, with the labels `group` and `consumer`. The
/// consumer must outlive it. It has threads of its own; a scrape never stops a handler.
class metrics_endpoint {
  public:
    /// \throws outbox::error if it cannot listen there
    metrics_endpoint(const consumer &consumer, const std::string &address);
    ~metrics_endpoint();
    metrics_endpoint(const metrics_endpoint &) = delete;
    metrics_endpoint &operator=(const metrics_endpoint &) = delete;

    int port() const noexcept;

  private:
    struct implementation;
    std::unique_ptr<implementation> implementation_;
};

} // namespace outbox

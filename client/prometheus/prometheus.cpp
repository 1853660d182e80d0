// A consumer's numbers in Prometheus' text format, served by prometheus-cpp.
#include <outbox/prometheus.hpp>

#include <outbox/consumer.hpp>

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace outbox {
namespace {

struct number {
    const char *name;
    const char *help;
    std::uint64_t consumer_stats::*value;
};

constexpr number counts[] = {
    {"read", "Entries that came from Redis, also again.", &consumer_stats::read},
    {"handled", "Handlers that finished well.", &consumer_stats::handled},
    {"failed", "Attempts that failed.", &consumer_stats::failed},
    {"retried", "Attempts after the first.", &consumer_stats::retried},
    {"dead_lettered", "Entries moved to the dead letters.", &consumer_stats::dead_lettered},
    {"parked", "Entries set aside behind a dead letter of their aggregate.", &consumer_stats::parked},
    {"duplicates", "Events found done, and not handled again.", &consumer_stats::duplicates},
    {"unhandled", "Events that no handler is for.", &consumer_stats::unhandled},
    {"acknowledged", "Entries that are no longer pending.", &consumer_stats::acknowledged},
    {"claimed", "Entries taken over from other consumers.", &consumer_stats::claimed},
    {"lost_leases", "Entries that other consumers took over from this one.", &consumer_stats::lost_leases},
    {"trimmed", "Entries that were trimmed away before they were handled.", &consumer_stats::trimmed},
    {"reconnects", "Connections to Redis made anew.", &consumer_stats::reconnects},
    {"groups_created", "Consumer groups made, at the start or again.", &consumer_stats::groups_created},
};

constexpr number gauges[] = {
    {"held", "Entries in this process that are not finished.", &consumer_stats::held},
    {"held_bytes", "Memory of the replies that the held entries are in.", &consumer_stats::held_bytes},
    {"running", "Handlers that run, or have not completed.", &consumer_stats::running},
    {"waiting_retry", "Entries that wait for their next attempt.", &consumer_stats::waiting_retry},
};

// `connected` is the one number that is in no table
static_assert(sizeof(consumer_stats) == (std::size(counts) + std::size(gauges) + 1) * sizeof(std::uint64_t),
              "a number of consumer_stats is in no table here");

class collector : public prometheus::Collectable {
  public:
    explicit collector(const consumer &consumer)
        : consumer_(consumer), labels_{{"group", consumer.group()}, {"consumer", consumer.name()}} {}

    std::vector<prometheus::MetricFamily> Collect() const override {
        using prometheus::MetricType;
        auto stats = consumer_.stats();
        std::vector<prometheus::MetricFamily> families;
        auto add = [&](const std::string &name, const char *help, MetricType type, auto value) {
            prometheus::ClientMetric metric;
            metric.label = labels_;
            // the type says which of the two is shown
            metric.counter.value = metric.gauge.value = static_cast<double>(value);
            families.push_back({"outbox_consumer_" + name, help, type, {std::move(metric)}});
        };
        for (const auto &count : counts)
            add(std::string(count.name) + "_total", count.help, MetricType::Counter, stats.*count.value);
        for (const auto &gauge : gauges)
            add(gauge.name, gauge.help, MetricType::Gauge, stats.*gauge.value);
        add("connected", "1 while there is a connection to Redis.", MetricType::Gauge, stats.connected);
        return families;
    }

  private:
    const consumer &consumer_;
    std::vector<prometheus::ClientMetric::Label> labels_;
};

} // namespace

struct metrics_endpoint::implementation {
    implementation(const consumer &consumer, const std::string &address)
        : numbers(std::make_shared<collector>(consumer)), server(address) {
        server.RegisterCollectable(numbers);
    }

    std::shared_ptr<collector> numbers;
    prometheus::Exposer server; // keeps a weak_ptr only
};

metrics_endpoint::metrics_endpoint(const consumer &consumer, const std::string &address) try
    : implementation_(std::make_unique<implementation>(consumer, address)) {
} catch (const std::runtime_error &) {
    // which says no more than that there is a problem
    throw error("could not serve metrics at \"" + address + "\": the address is in use, or is none");
}

metrics_endpoint::~metrics_endpoint() = default;

int metrics_endpoint::port() const noexcept { return implementation_->server.GetListeningPorts().at(0); }

} // namespace outbox

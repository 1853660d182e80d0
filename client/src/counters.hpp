// What consumer_stats is a snapshot of.
#pragma once

#include <atomic>
#include <cstdint>

#include <outbox/stats.hpp>

namespace outbox::detail {

// Written by the consumer's own thread, read by any.
class counter {
  public:
    void add(std::uint64_t n = 1) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
    void subtract(std::uint64_t n = 1) noexcept { value_.fetch_sub(n, std::memory_order_relaxed); }
    void set(std::uint64_t n) noexcept { value_.store(n, std::memory_order_relaxed); }
    operator std::uint64_t() const noexcept { return value_.load(std::memory_order_relaxed); }

  private:
    std::atomic<std::uint64_t> value_{0};
};

struct counters {
    counter read, handled, failed, retried, dead_lettered, parked, duplicates, unhandled, acknowledged, claimed, lost_leases,
        trimmed, reconnects, groups_created;
    counter held, held_bytes, running, waiting_retry, connected;

    consumer_stats snapshot() const noexcept {
        return {.read = read,
                .handled = handled,
                .failed = failed,
                .retried = retried,
                .dead_lettered = dead_lettered,
                .parked = parked,
                .duplicates = duplicates,
                .unhandled = unhandled,
                .acknowledged = acknowledged,
                .claimed = claimed,
                .lost_leases = lost_leases,
                .trimmed = trimmed,
                .reconnects = reconnects,
                .groups_created = groups_created,
                .held = held,
                .held_bytes = held_bytes,
                .running = running,
                .waiting_retry = waiting_retry,
                .connected = connected != 0};
    }
};

} // namespace outbox::detail

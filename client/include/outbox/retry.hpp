// How often, and when, a failed event is tried again.
#pragma once

#include <chrono>

namespace outbox {

/// Exponential backoff with jitter: after attempt n has failed the next one comes `initial * multiplier^(n-1)` later, at most
/// `max`, and shortened or lengthened at random by up to the `jitter` part of it.
///
/// Attempts are counted in Redis, so that the budget holds across processes and for a handler that kills its process every
/// time. An attempt counts from the moment its handler starts; one that was only read ahead, or about to start beside it, when
/// the process died may count, too. The last attempt of what was in such a process is made apart from others that were, so
/// that it spends only its own.
struct retry_policy {
    int max_attempts = 5;                         ///< 1 or more; after so many the event is a dead letter
    std::chrono::milliseconds initial{200};       ///< 0 or more
    std::chrono::milliseconds max{60'000};        ///< `initial` or more
    double multiplier = 2.0;                      ///< 1 or more
    double jitter = 0.2;                          ///< 0 to 1

    /// The delay after attempt `attempt` (1, 2, …) failed; `random` in [0, 1) is where in the jitter it falls. Never
    /// negative, never above `max * (1 + jitter)`.
    std::chrono::milliseconds delay(int attempt, double random) const noexcept;

    /// \throws std::invalid_argument with what to change
    void validate() const;
};

} // namespace outbox

// Delays between attempts: exponential with "equal jitter" (half fixed, half random), so that many clients of a server that
// comes back do not come all at once. Pure.
#pragma once

namespace outbox {

// The delay before attempt number `attempt` (the first retry is 1), in the unit of `least` and `most`; `random` in [0, 1).
inline int backoff(int attempt, int least, int most, double random) noexcept {
    if (most < least)
        most = least;
    double delay = least;
    for (int i = 1; i < attempt && delay < most; ++i)
        delay *= 2;
    if (delay > most)
        delay = most;
    double jittered = delay / 2 + delay / 2 * random;
    return jittered < least ? least : static_cast<int>(jittered);
}

} // namespace outbox

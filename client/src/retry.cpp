// The arithmetic of retries: see retry.hpp.
#include <outbox/retry.hpp>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace outbox {

std::chrono::milliseconds retry_policy::delay(int attempt, double random) const noexcept {
    using std::chrono::milliseconds;
    // A long double holds every count of milliseconds. A comparison with NaN is false, so what is none of the values that
    // validate() lets through falls back to the nearest one that does no harm.
    long double first = std::max<milliseconds::rep>(initial.count(), 0);
    long double most = std::max<milliseconds::rep>(max.count(), 0);
    long double factor = multiplier >= 1 ? multiplier : 1;
    long double part = jitter >= 0 ? std::min(jitter, 1.0) : 0;
    long double where = random >= 0 && random < 1 ? random : 0.5;

    long double base =
        first == 0 ? 0
                   : first * std::pow(factor, static_cast<long double>(std::max(attempt, 1) - 1));
    base = std::min(base, most);
    long double jittered = base * (1 + part * (2 * where - 1));
    if (jittered >= static_cast<long double>(milliseconds::max().count()))
        return milliseconds::max();
    return milliseconds(static_cast<milliseconds::rep>(jittered));
}

void retry_policy::validate() const {
    auto check = [](bool good, const char *name, const char *range, const std::string &value) {
        if (!good)
            throw std::invalid_argument(std::string("retry.") + name + " must be " + range +
                                        ", not " + value);
    };
    auto ms = [](std::chrono::milliseconds duration) {
        return std::to_string(duration.count()) + " ms";
    };
    check(max_attempts >= 1, "max_attempts", "1 or more", std::to_string(max_attempts));
    check(initial.count() >= 0, "initial", "0 ms or more", ms(initial));
    check(max >= initial, "max", ("retry.initial (" + ms(initial) + ") or more").c_str(), ms(max));
    check(multiplier >= 1 && std::isfinite(multiplier), "multiplier", "1 or more",
          std::to_string(multiplier));
    check(jitter >= 0 && jitter <= 1, "jitter", "0 to 1", std::to_string(jitter));
}

} // namespace outbox

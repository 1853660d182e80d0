// The consumer on the in-memory broker.
#pragma once

#include <memory>

#include <outbox/testing.hpp>

#include "src/counters.hpp"
#include "src/handlers.hpp"
#include "src/runner.hpp"

namespace outbox::testing {

// All but the broker live as long as the runner; the runner must not outlive the broker.
std::unique_ptr<detail::runner> make_runner(broker &broker, const consumer_options &options,
                                            std::shared_ptr<const detail::handlers> handlers, detail::counters &counters);

} // namespace outbox::testing

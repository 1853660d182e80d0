// The library's own access to an event.
#pragma once

#include <outbox/event.hpp>

namespace outbox {

class event_access {
  public:
    static const event::fields &fields(const event &event) noexcept { return event.fields_; }
    static void set_attempt(event &event, int attempt) noexcept { event.attempt_ = attempt; }
};

} // namespace outbox

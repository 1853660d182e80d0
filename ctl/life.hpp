// What became of one event in Redis: its entry, and what each consumer group has done with it.
#pragma once

#include <string>

#include "ctl/context.hpp"

namespace outbox::ctl {

struct whereabouts {
    std::string event_id;
    std::string topic;
    std::string position;       // <ms>-<n>
    std::string aggregate_type; // as in the entry: empty where there is none
    std::string aggregate_id;
};

// {"state": "present" | "absent" | "foreign", "reason": … | null}
json entry_of(redis &redis, const whereabouts &event);

// For each group of the stream: {"group", "state", "consumer", "idle_seconds", "deliveries", "attempts", "dead_letter",
// "detail"}. The states are
//   not_delivered   behind what the group has been given
//   pending         given to a consumer and not acknowledged
//   dead_lettered   among the group's dead letters
//   redriven        in the group's redrive stream, to be handled again
//   parked          waits behind the dead letter of its aggregate
//   handled         acknowledged, and the group's mark says that a handler has handled the event
//   passed          acknowledged, or the group was made to begin behind it: Redis does not keep which
json groups_of(context &context, const whereabouts &event);

} // namespace outbox::ctl

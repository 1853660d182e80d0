// The names of everything a group keeps in Redis. All of a topic's share its hash tag, so they live on one node of a cluster
// and a script may touch them together.
#pragma once

#include <string>
#include <string_view>

namespace outbox::detail {

struct topic_keys {
    std::string stream;   // outbox:{topic}                         the outbox's; the group only reads
    std::string redrive;  // outbox:{topic}:redrive:<group>         stream of what is delivered again to this group
    std::string dead;     // outbox:{topic}:dlq:<group>             stream of dead letters
    std::string parked;   // outbox:{topic}:parked:<group>          hash: aggregate -> "dead <id>" | "draining <id>"
                          // outbox:{topic}:parked:<group>:<aggregate>   stream of what waits behind the dead one
    std::string event;    // outbox:{topic}:event:<group>:          prefix of the idempotency keys, by event id
    std::string group;

    topic_keys(std::string_view topic, std::string_view group_name)
        : stream(std::string("outbox:{").append(topic).append("}")), redrive(companion("redrive", group_name)),
          dead(companion("dlq", group_name)), parked(companion("parked", group_name)),
          event(companion("event", group_name) + ":"), group(group_name) {}

    // hash: entry ID -> attempts that may have started; absent before the second
    static std::string attempts(std::string_view stream_key, std::string_view group) {
        return std::string(stream_key).append(":attempts:").append(group);
    }

    // text: another one each time that the group is made
    static std::string generation(std::string_view stream_key, std::string_view group) {
        return std::string(stream_key).append(":generation:").append(group);
    }

  private:
    std::string companion(std::string_view what, std::string_view group_name) const {
        return std::string(stream).append(":").append(what).append(":").append(group_name);
    }
};

// What a dead letter has before the fields of the original entry, in this order.
inline constexpr std::string_view dead_letter_fields[] = {
    "outbox_position", "outbox_stream",  "outbox_error",    "outbox_attempts",
    "outbox_consumer", "outbox_died_at", "outbox_aggregate",
};

} // namespace outbox::detail

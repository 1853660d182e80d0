// A sink's transform: an SQL function that makes of each event what the sink shall get as its payload, or nothing. It runs as its
// owner and not as the worker, which may read all events; it cannot write, become somebody else, or take longer than it may.
#pragma once

#include "extension/pg.hpp"

namespace outbox {
struct event_row;
}

namespace outbox::transform {

// As it was named with create_sink() or alter_sink(), and who owned it then: another function that has the name now is not it.
struct function {
    const char *name; // schema and name, quoted where need be; null: there is none
    const char *owner;
};

enum class outcome { given, withheld, failed };

struct result {
    outcome what;
    std::string_view payload; // in the server encoding; these live in the current memory context
    const char *error;
};

// Of an event that was loaded. In a transaction. `limited`: only so long; for workers.
result apply(const function &used, const event_row &event, bool limited);

} // namespace outbox::transform

// An event as it is stored, made into the fields of an entry.
#pragma once

#include "bgworker/batch.hpp"
#include "bgworker/entry.hpp"

namespace outbox {

// After load(). In UTF-8; what is converted lives in the current memory context.
entry_fields fields_of(const event_row &event, const stream_naming &naming, position at, bool must_exist);

} // namespace outbox

// How the launcher tells a worker what it is for.
#pragma once

#include "extension/pg.hpp"

namespace outbox {

constexpr int default_sink = 1;

// Passed in bgw_extra.
struct worker_identity {
    Oid database;
    int sink_id;
};

void register_launcher(); // at load time

} // namespace outbox

// How the launcher tells a worker what it is for, and how a worker begins.
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

// For a worker, once it is connected: from here on with settings that no operator can have changed, and as the owner of the
// outbox, who is no superuser. False where there is no such role.
bool act_as_owner();

} // namespace outbox

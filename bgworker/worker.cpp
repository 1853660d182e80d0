// What every worker that reads events does first.

#include "bgworker/worker.hpp"

namespace outbox {

// The settings that an operator may have given to the database or to all, and that would break a promise in here.
static void pin_settings() {
    const struct {
        const char *name, *value;
    } pinned[] = {
        {"synchronous_commit", "on"}, // what is recorded before it is sent; ticks alone do not wait (carry.cpp)
        {"default_transaction_isolation", "read committed"},
        {"default_transaction_read_only", "off"},
        {"default_transaction_deferrable", "off"},
        {"statement_timeout", "0"},
        {"lock_timeout", "0"},
        {"idle_in_transaction_session_timeout", "0"},
#if PG_VERSION_NUM >= 170000
        {"transaction_timeout", "0"},
#endif
        {"search_path", "pg_catalog, pg_temp"},
        {"row_security", "off"},
        {"session_replication_role", "origin"},
        {"jit", "off"},
        {"enable_seqscan", "off"}, // a table that was just truncated has no statistics
        {"client_min_messages", "error"},
        {"log_statement", "none"},
        {"log_min_duration_statement", "-1"},
    };
    for (const auto &setting : pinned)
        SetConfigOption(setting.name, setting.value, PGC_SUSET, PGC_S_SESSION);
}

bool act_as_owner() {
    pin_settings();
    StartTransactionCommand();
    Oid owner = get_role_oid("outbox_worker", true);
    CommitTransactionCommand();
    if (!OidIsValid(owner))
        return false;
    // nothing run in this process can change that
    SetUserIdAndSecContext(owner, SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
    return true;
}

} // namespace outbox

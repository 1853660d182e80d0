// What is loaded: a table of contents.

#include "bgworker/consumers.hpp"
#include "bgworker/database_ddl.hpp"
#include "bgworker/shared.hpp"
#include "bgworker/worker.hpp"
#include "extension/log_mask.hpp"
#include "extension/pg.hpp"
#include "extension/settings.hpp"
#include "extension/storage.hpp"
#include "extension/wake.hpp"

extern "C" {

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void) {
    outbox::settings::define();
    outbox::storage::define();
    outbox::define_wake();
    outbox::define_log_mask();
    if (!process_shared_preload_libraries_in_progress)
        return; // loaded by emit: events are recorded, and a warning says that nobody will publish them
    outbox::shared::request();
    outbox::consumers::request();
    outbox::define_database_ddl();
    outbox::register_launcher();
}
}

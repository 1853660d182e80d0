#pragma once

namespace outbox {

void define_database_ddl(); // at load time, in a preloaded library only

} // namespace outbox

// An index scan by hand: no planner, so no statistics can make it a table scan.
#pragma once

#include "extension/pg.hpp"
#include "extension/storage.hpp"

namespace outbox {

// With the active snapshot. `keys_only`: the index tuples are wanted, not the rows.
inline IndexScanDesc begin_index_scan(const storage::partition &part, ScanKeyData *keys, int key_count,
                                      bool keys_only = false) {
#if PG_VERSION_NUM >= 180000
    IndexScanDesc scan = index_beginscan(part.table, part.index, GetActiveSnapshot(), nullptr, key_count, 0);
#else
    IndexScanDesc scan = index_beginscan(part.table, part.index, GetActiveSnapshot(), key_count, 0);
#endif
    scan->xs_want_itup = keys_only; // before index_rescan, which makes room for them
    index_rescan(scan, keys, key_count, nullptr, 0);
    return scan;
}

} // namespace outbox

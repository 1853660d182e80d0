#include "bgworker/batch.hpp"

#include "bgworker/index_scan.hpp"
#include "extension/event_type.hpp"

extern "C" {
#include "access/detoast.h"
}

namespace outbox {

namespace column = storage::event_column;

// 2M events in one pass: 32 MB. Half of it is kept when it overflows, so a pass yields at least one million.
constexpr std::size_t max_items = 2 * 1024 * 1024;
constexpr std::size_t first_items = 1024;

static stored_snapshot *copy(MemoryContext context, const stored_snapshot *snapshot) {
    if (!snapshot)
        return nullptr;
    Size size = VARSIZE(snapshot);
    void *result = MemoryContextAlloc(context, size);
    memcpy(result, static_cast<const void *>(snapshot), size);
    return static_cast<stored_snapshot *>(result);
}

void batch_reader::init(MemoryContext context) { context_ = context; }

void batch_reader::open(const tick &current, const stored_snapshot *previous) {
    if (current_copy_)
        pfree(current_copy_);
    if (previous_copy_)
        pfree(previous_copy_);
    current_ = current;
    current_.snapshot = current_copy_ = copy(context_, current.snapshot);
    previous_ = previous_copy_ = copy(context_, previous);
    place_ = {};
    collected_ = false;
    count_ = next_ = 0;
}

bool batch_reader::is_member(FullTransactionId xid) const {
    return current_.snapshot->sees(xid) && !(previous_ && previous_->sees(xid));
}

void batch_reader::add(const item &candidate) {
    if (more_ && candidate.seq >= limit_)
        return; // behind an event that was put off
    if (count_ == capacity_) {
        if (capacity_ == max_items) {
            auto order = [](const item &a, const item &b) { return a.seq < b.seq; };
            std::nth_element(items_, items_ + max_items / 2, items_ + count_, order);
            count_ = max_items / 2;
            limit_ = items_[count_].seq;
            more_ = true;
        } else {
            std::size_t wanted = capacity_ ? capacity_ * 2 : first_items;
            auto *grown = static_cast<item *>(MemoryContextAllocHuge(context_, wanted * sizeof(item)));
            if (items_) {
                memcpy(static_cast<void *>(grown), items_, count_ * sizeof(item));
                pfree(items_);
            }
            items_ = grown;
            capacity_ = wanted;
        }
    }
    items_[count_++] = candidate;
}

void batch_reader::collect_range(const storage::partition &part, int number, ScanKeyData *keys, int key_count) {
    // xid and seq come from the index; the table is not read
    IndexScanDesc scan = begin_index_scan(part, keys, key_count, true);
    ItemPointer tid;
    while ((tid = index_getnext_tid(scan, ForwardScanDirection)) != nullptr) {
        CHECK_FOR_INTERRUPTS();
        bool null;
        auto xid = DatumGetFullTransactionId(index_getattr(scan->xs_itup, 1, scan->xs_itupdesc, &null));
        int64 seq = DatumGetInt64(index_getattr(scan->xs_itup, 2, scan->xs_itupdesc, &null));
        if (seq <= place_.seq || !is_member(xid))
            continue;
        add({seq, ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid),
             static_cast<uint16>(number)});
    }
    index_endscan(scan);
}

// All transactions of the batch: those that began after the previous snapshot, and those that it saw running.
void batch_reader::collect() {
    const storage::relations &relations = storage::require();
    count_ = next_ = 0;
    more_ = false;
    began_ = place_.seq;
    PushActiveSnapshot(GetLatestSnapshot());
    for (int i = 0; i < storage::partitions; ++i) {
        storage::partition part = storage::open_events(relations, i);
        if (!part.table)
            continue;
        files_[i] = part.table->rd_rel->relfilenode;
        ScanKeyData keys[2];
        FullTransactionId from = previous_ ? previous_->xmax : FullTransactionIdFromU64(0);
        ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_XID8GE, FullTransactionIdGetDatum(from));
        ScanKeyInit(&keys[1], 1, BTLessStrategyNumber, F_XID8LT,
                    FullTransactionIdGetDatum(current_.snapshot->xmax));
        collect_range(part, i, keys, 2);
        for (uint32 x = 0; previous_ && x < previous_->nxip; ++x) {
            if (!current_.snapshot->sees(previous_->xip[x]))
                continue;
            ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_XID8EQ,
                        FullTransactionIdGetDatum(previous_->xip[x]));
            ScanKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(place_.seq));
            collect_range(part, i, keys, 2);
        }
        part.close();
    }
    PopActiveSnapshot();
    std::sort(items_, items_ + count_, [](const item &a, const item &b) {
        if (a.seq != b.seq)
            return a.seq < b.seq;
        return a.part != b.part ? a.part < b.part
               : a.block != b.block ? a.block < b.block
                                    : a.offset < b.offset;
    });
    collected_ = true;
}

bool batch_reader::probe() {
    if (!collected_)
        collect();
    return count_ > 0;
}

void batch_reader::begin() { PushActiveSnapshot(GetLatestSnapshot()); }

void batch_reader::end() {
    for (int i = 0; i < storage::partitions; ++i) {
        if (slots_[i]) {
            ExecDropSingleTupleTableSlot(slots_[i]);
            table_index_fetch_end(fetches_[i]);
        }
        slots_[i] = nullptr;
        open_[i].close();
    }
    PopActiveSnapshot();
}

const storage::partition &batch_reader::partition(int number) {
    if (!open_[number].table) {
        const storage::relations &relations = storage::require();
        open_[number] = storage::open_events(relations, number);
        if (!open_[number].table)
            ereport(ERROR, errcode(ERRCODE_UNDEFINED_OBJECT),
                    errmsg("extension \"outbox\" was dropped while its events were read"));
        // It outlives the contexts that the caller resets from event to event.
        MemoryContext old = MemoryContextSwitchTo(context_);
        slots_[number] = table_slot_create(open_[number].table, nullptr);
        fetches_[number] = table_index_fetch_begin(open_[number].table);
        MemoryContextSwitchTo(old);
    }
    return open_[number];
}

static std::string_view text_at(TupleTableSlot *slot, int number) {
    return slot->tts_isnull[number] ? std::string_view() : view_of(DatumGetTextPP(slot->tts_values[number]));
}

// False where the event was rolled back, or the place holds another row by now.
bool batch_reader::fetch(const item &at, event_row &row) {
    partition(at.part);
    TupleTableSlot *slot = slots_[at.part];
    ItemPointerData tid;
    ItemPointerSet(&tid, at.block, at.offset);
    bool again = false;
    if (!table_index_fetch_tuple(fetches_[at.part], &tid, GetActiveSnapshot(), slot, &again, nullptr))
        return false;
    slot_getallattrs(slot);
    Datum *values = slot->tts_values;
    bool *nulls = slot->tts_isnull;
    if (DatumGetInt64(values[column::seq]) != at.seq || DatumGetInt32(values[column::anchor]) != current_.anchor ||
        !is_member(DatumGetFullTransactionId(values[column::xid])))
        return false;

    row.seq = at.seq;
    row.event_id = DatumGetUUIDP(values[column::event_id]);
    row.event_type = text_at(slot, column::event_type);
    row.topic = nulls[column::topic] ? default_topic(row.event_type) : text_at(slot, column::topic);
    row.occurred_at = DatumGetTimestampTz(values[column::occurred_at]);
    // before ALTER EXTENSION UPDATE there are no such columns
    auto has = [&](int number) { return slot->tts_tupleDescriptor->natts > number && !nulls[number]; };
    row.only_sink = has(column::sink_id) ? DatumGetInt32(values[column::sink_id]) : 0;
    row.recorded_at = has(column::recorded_at) ? DatumGetTimestampTz(values[column::recorded_at]) : row.occurred_at;
    slot_ = slot;
    return true;
}

void batch_reader::load(event_row &row) {
    row.aggregate_type = text_at(slot_, column::aggregate_type);
    row.aggregate_id = text_at(slot_, column::aggregate_id);
    row.headers = text_at(slot_, column::headers);
    row.payload = text_at(slot_, column::payload);
    row.has_aggregate_type = !slot_->tts_isnull[column::aggregate_type];
    row.has_aggregate_id = !slot_->tts_isnull[column::aggregate_id];
    row.has_headers = !slot_->tts_isnull[column::headers];
    row.version = DatumGetInt32(slot_->tts_values[column::version]);
}

std::size_t batch_reader::size() const {
    std::size_t total = 0;
    for (int number : {column::payload, column::headers, column::aggregate_id, column::aggregate_type})
        if (!slot_->tts_isnull[number])
            total += toast_raw_datum_size(slot_->tts_values[number]);
    return total;
}

bool batch_reader::next(event_row &row) {
    for (;;) {
        CHECK_FOR_INTERRUPTS();
        if (!collected_)
            collect();
        if (next_ == count_) {
            if (!more_)
                return false;
            collected_ = false;
            continue;
        }
        const item &at = items_[next_];
        if (partition(at.part).table->rd_rel->relfilenode != files_[at.part]) {
            collected_ = false; // rewritten since: the places are no longer true
            continue;
        }
        bool found = fetch(at, row);
        ++next_;
        place_.seq = at.seq;
        if (!found)
            continue;
        row.n = ++place_.n;
        return true;
    }
}

void batch_reader::seek(place target) {
    place_ = target;
    if (!collected_)
        return;
    if (target.seq < began_) {
        collected_ = false; // back beyond what this pass collected
        return;
    }
    auto *found = std::upper_bound(items_, items_ + count_, target.seq,
                                   [](int64 seq, const item &candidate) { return seq < candidate.seq; });
    next_ = static_cast<std::size_t>(found - items_);
}

} // namespace outbox

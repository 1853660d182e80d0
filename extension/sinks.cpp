#include "extension/sinks.hpp"

#include "bgworker/worker.hpp"
#include "common/pattern.hpp"
#include "extension/storage.hpp"

namespace outbox::sinks {

namespace definition_column {
enum { id, uuid, name, anchor, paused, take_over, created_at, url, stream, start_ms, start_n };
}
namespace filter_column {
enum { sink_id, from_ms, topics, event_types, transform, transform_owner };
}

// Calls visit(slot) for each row, until it returns false. A table that version 1.0 has not is empty there.
template <typename Visitor> static void scan(Oid relation, Visitor visit) {
    if (!OidIsValid(relation))
        return;
    Relation table = table_open(relation, AccessShareLock);
    Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
    TableScanDesc scan = table_beginscan(table, snapshot, 0, nullptr);
    TupleTableSlot *slot = table_slot_create(table, nullptr);
    while (table_scan_getnextslot(scan, ForwardScanDirection, slot)) {
        slot_getallattrs(slot);
        if (!visit(slot))
            break;
    }
    ExecDropSingleTupleTableSlot(slot);
    table_endscan(scan);
    UnregisterSnapshot(snapshot);
    table_close(table, AccessShareLock);
}

int find(const char *name) {
    int found = strcmp(name, "default") == 0 ? default_sink : 0;
    if (found == 0)
        scan(storage::require().sink_definition, [&](TupleTableSlot *slot) {
            if (view_of(DatumGetTextPP(slot->tts_values[definition_column::name])) == name)
                found = DatumGetInt32(slot->tts_values[definition_column::id]);
            return found == 0;
        });
    return found;
}

int *all(int &count) {
    int capacity = 8;
    auto *ids = static_cast<int *>(palloc(sizeof(int) * static_cast<Size>(capacity)));
    ids[0] = default_sink;
    count = 1;
    scan(storage::require().sink_definition, [&](TupleTableSlot *slot) {
        int id = DatumGetInt32(slot->tts_values[definition_column::id]);
        if (id == default_sink)
            return true;
        if (count == capacity)
            ids = static_cast<int *>(repalloc(ids, sizeof(int) * static_cast<Size>(capacity *= 2)));
        ids[count++] = id;
        return true;
    });
    std::sort(ids, ids + count);
    return ids;
}

position start_of(int sink_id) {
    position start = {0, 0};
    if (storage::require().fit != version::fit::same)
        return start; // it has no columns for it
    scan(storage::require().sink_definition, [&](TupleTableSlot *slot) {
        if (DatumGetInt32(slot->tts_values[definition_column::id]) != sink_id)
            return true;
        start = {DatumGetInt64(slot->tts_values[definition_column::start_ms]),
                 DatumGetInt64(slot->tts_values[definition_column::start_n])};
        return false;
    });
    return start;
}

filter::list filter::copy(MemoryContext context, Datum array, bool null) {
    if (null)
        return {-1, nullptr};
    Datum *values;
    bool *nulls;
    list copied;
    deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &copied.count);
    copied.patterns = static_cast<std::string_view *>(
        MemoryContextAlloc(context, sizeof(std::string_view) * static_cast<Size>(copied.count + 1)));
    for (int i = 0; i < copied.count; ++i) {
        std::string_view pattern = nulls[i] ? std::string_view() : view_of(DatumGetTextPP(values[i]));
        auto *kept = static_cast<char *>(MemoryContextAlloc(context, pattern.size() + 1));
        memcpy(kept, pattern.data(), pattern.size());
        copied.patterns[i] = {kept, pattern.size()};
    }
    return copied;
}

bool filter::any(const list &patterns, std::string_view text) {
    if (patterns.count < 0)
        return true;
    for (int i = 0; i < patterns.count; ++i)
        if (matches(patterns.patterns[i], text))
            return true;
    return false;
}

bool filter::takes(std::string_view event_type, std::string_view topic) const {
    return any(topics_, topic) && any(event_types_, event_type);
}

void filters::load(int sink_id, MemoryContext context) {
    count_ = 0;
    versions_ = nullptr;
    int capacity = 0;
    scan(storage::require().sink_filter, [&](TupleTableSlot *slot) {
        const Datum *values = slot->tts_values;
        const bool *nulls = slot->tts_isnull;
        if (DatumGetInt32(values[filter_column::sink_id]) != sink_id)
            return true;
        if (count_ == capacity) {
            capacity = capacity ? capacity * 2 : 4;
            auto *grown = static_cast<filter *>(MemoryContextAlloc(context, sizeof(filter) * static_cast<Size>(capacity)));
            std::copy(versions_, versions_ + count_, grown);
            versions_ = grown;
        }
        filter &added = versions_[count_++];
        added.from_ms_ = DatumGetInt64(values[filter_column::from_ms]);
        added.topics_ = filter::copy(context, values[filter_column::topics], nulls[filter_column::topics]);
        added.event_types_ = filter::copy(context, values[filter_column::event_types], nulls[filter_column::event_types]);
        auto text_of = [&](int number) {
            return nulls[number] ? nullptr : MemoryContextStrdup(context, TextDatumGetCString(values[number]));
        };
        added.transform_ = {text_of(filter_column::transform), text_of(filter_column::transform_owner)};
        return true;
    });
    std::sort(versions_, versions_ + count_, [](const filter &a, const filter &b) { return a.from_ms_ < b.from_ms_; });
}

const filter *filters::at(int64 ms) const {
    for (int i = count_; i-- > 0;)
        if (versions_[i].from_ms_ <= ms) {
            const filter &found = versions_[i];
            bool everything = found.topics_.count < 0 && found.event_types_.count < 0 && !found.transform_.name;
            return everything ? nullptr : &found;
        }
    return nullptr;
}

bool filters::ever_take(std::string_view event_type, std::string_view topic) const {
    if (count_ == 0 || versions_[0].from_ms_ > 0)
        return true;
    for (int i = 0; i < count_; ++i)
        if (versions_[i].takes(event_type, topic))
            return true;
    return false;
}

} // namespace outbox::sinks

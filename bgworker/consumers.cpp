#include "bgworker/consumers.hpp"

#include "extension/settings.hpp"

extern "C" {
#include "common/hashfn.h"
#include "utils/hsearch.h"
}

namespace outbox::consumers {

constexpr char name_of_memory[] = "outbox consumer groups";
constexpr Size key_size = offsetof(group, name);

static HTAB *table = nullptr;
static LWLock *lock = nullptr;
static shmem_request_hook_type previous_request_hook = nullptr;
static shmem_startup_hook_type previous_startup_hook = nullptr;

static int capacity() { return settings::max_consumer_groups; }

static void request_memory() {
    if (previous_request_hook)
        previous_request_hook();
    RequestAddinShmemSpace(hash_estimate_size(std::max(capacity(), 1), sizeof(group)));
    RequestNamedLWLockTranche(name_of_memory, 1);
}

static void start_memory() {
    if (previous_startup_hook)
        previous_startup_hook();
    LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
    HASHCTL control = {};
    control.keysize = key_size;
    control.entrysize = sizeof(group);
    table = ShmemInitHash(name_of_memory, std::max(capacity(), 1), std::max(capacity(), 1), &control, HASH_ELEM | HASH_BLOBS);
    lock = &GetNamedLWLockTranche(name_of_memory)->lock;
    LWLockRelease(AddinShmemInitLock);
}

void request() {
    previous_request_hook = shmem_request_hook;
    shmem_request_hook = request_memory;
    previous_startup_hook = shmem_startup_hook;
    shmem_startup_hook = start_memory;
}

void set_key(group &target, int sink_id, std::string_view topic, std::string_view name) {
    memset(static_cast<void *>(&target), 0, sizeof target);
    target.database = MyDatabaseId;
    target.sink_id = sink_id;
    target.name_hash = hash_bytes_extended(reinterpret_cast<const unsigned char *>(name.data()), static_cast<int>(name.size()), 0);
    memcpy(target.topic, topic.data(), std::min(topic.size(), sizeof target.topic - 1));
    memcpy(target.name, name.data(), std::min(name.size(), sizeof target.name - 1));
}

void keep(const group &seen) {
    LWLockAcquire(lock, LW_EXCLUSIVE);
    bool room = hash_get_num_entries(table) < capacity();
    auto *kept = static_cast<group *>(hash_search(table, &seen, room ? HASH_ENTER_NULL : HASH_FIND, nullptr));
    if (kept)
        *kept = seen;
    LWLockRelease(lock);
}

template <typename Condition> static void forget_if(Condition condition) {
    if (!table)
        return;
    LWLockAcquire(lock, LW_EXCLUSIVE);
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, table);
    while (auto *each = static_cast<group *>(hash_seq_search(&scan)))
        if (condition(*each))
            hash_search(table, each, HASH_REMOVE, nullptr);
    LWLockRelease(lock);
}

void forget(Oid database, int sink_id) {
    forget_if([=](const group &each) { return each.database == database && each.sink_id == sink_id; });
}

void forget_others(int sink_id, uint32 pass) {
    forget_if([=](const group &each) { return each.database == MyDatabaseId && each.sink_id == sink_id && each.pass != pass; });
}

group *all(int &count) {
    count = 0;
    if (!table)
        return nullptr;
    LWLockAcquire(lock, LW_SHARED);
    auto *found = static_cast<group *>(palloc_extended(sizeof(group) * static_cast<Size>(hash_get_num_entries(table) + 1), MCXT_ALLOC_HUGE));
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, table);
    while (auto *each = static_cast<group *>(hash_seq_search(&scan)))
        if (each->database == MyDatabaseId)
            found[count++] = *each;
    LWLockRelease(lock);
    return found;
}

} // namespace outbox::consumers

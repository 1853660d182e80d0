#include "bgworker/shared.hpp"

#include "bgworker/consumers.hpp"
#include "extension/settings.hpp"

#include <csignal>

namespace outbox::shared {

constexpr int max_requests = 64;
constexpr int max_blocks = 64;
constexpr int max_verifications = 8; // at a time, in all databases
constexpr int max_replayers = 16;     // the same

struct blocked_database {
    Oid database;
    int sink_id; // 0: all of them
    int pid; // the backend that blocks; a dead one blocks nothing
};

struct running_replayer {
    Oid database; // invalid where it is free
    int sink_id;
    int pid;
};

struct memory {
    LWLock *lock;
    Latch *launcher;
    bool scout_all;
    bool look; // for new databases
    int requests;
    Oid requested[max_requests];
    Oid scouted; // the database that the scout is in
    int scout_pid;
    blocked_database blocks[max_blocks];
    bool no_process;
    bool no_slot;
    verification verifications[max_verifications];
    running_replayer replayers[max_replayers];
    int slots;
    slot worker[FLEXIBLE_ARRAY_MEMBER];
};

static memory *shm = nullptr;
static shmem_request_hook_type previous_request_hook = nullptr;
static shmem_startup_hook_type previous_startup_hook = nullptr;

const char *name_of(worker_state state) {
    switch (state) {
    case worker_state::idle: return "idle";
    case worker_state::connecting: return "connecting";
    case worker_state::streaming: return "streaming";
    case worker_state::healing: return "healing";
    case worker_state::unconfirmed: return "unconfirmed";
    case worker_state::backing_off: return "backing off";
    case worker_state::fenced: return "fenced";
    case worker_state::paused: return "paused";
    case worker_state::restored: return "paused (restored)";
    case worker_state::disabled: return "disabled";
    case worker_state::wrong_version: return "wrong version";
    }
    return "unknown";
}

static Size memory_size() {
    return offsetof(memory, worker) + sizeof(slot) * settings::max_workers;
}

static void request_memory() {
    if (previous_request_hook)
        previous_request_hook();
    RequestAddinShmemSpace(memory_size());
    RequestNamedLWLockTranche("outbox", 1);
}

static void start_memory() {
    if (previous_startup_hook)
        previous_startup_hook();
    LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
    bool found;
    shm = static_cast<memory *>(ShmemInitStruct("outbox", memory_size(), &found));
    if (!found) {
        memset(static_cast<void *>(shm), 0, memory_size());
        shm->lock = &GetNamedLWLockTranche("outbox")->lock;
        shm->scout_all = true;
        shm->slots = settings::max_workers;
        for (int i = 0; i < shm->slots; ++i) {
            pg_atomic_init_u32(&shm->worker[i].woken, 0);
            pg_atomic_init_u64(&shm->worker[i].next_due, 0);
            pg_atomic_init_u64(&shm->worker[i].flush_requested, 0);
            pg_atomic_init_u64(&shm->worker[i].flush_done, 0);
        }
    }
    LWLockRelease(AddinShmemInitLock);
}

void request() {
    previous_request_hook = shmem_request_hook;
    shmem_request_hook = request_memory;
    previous_startup_hook = shmem_startup_hook;
    shmem_startup_hook = start_memory;
}

static void wake_launcher() {
    if (shm->launcher)
        SetLatch(shm->launcher);
}

static void wake(slot &target) {
    // The first committer since the worker began to listen pays for the signal, the others see that it is on its way.
    if (target.latch && pg_atomic_exchange_u32(&target.woken, 1) == 0)
        SetLatch(target.latch);
}

void wake_workers(Oid database) {
    if (!shm)
        return;
    LWLockAcquire(shm->lock, LW_SHARED);
    for (int i = 0; i < shm->slots; ++i)
        if (shm->worker[i].database == database)
            wake(shm->worker[i]);
    LWLockRelease(shm->lock);
}

// True when it is earlier than what was expected.
static bool advance_due(slot &target, TimestampTz due) {
    uint64 wanted = static_cast<uint64>(due), expected = pg_atomic_read_u64(&target.next_due);
    while (wanted < expected)
        if (pg_atomic_compare_exchange_u64(&target.next_due, &expected, wanted))
            return true;
    return false;
}

TimestampTz next_due(slot *own) { return static_cast<TimestampTz>(pg_atomic_read_u64(&own->next_due)); }

void expect_due(slot *own, TimestampTz due) { advance_due(*own, due); }

void expect_no_due(slot *own) {
    // with a barrier: who commits before this is seen by the look that follows, who commits after it says so
    pg_atomic_exchange_u64(&own->next_due, static_cast<uint64>(PG_INT64_MAX));
}

void expect_due(Oid database, TimestampTz due) {
    if (!shm)
        return;
    LWLockAcquire(shm->lock, LW_SHARED);
    for (int i = 0; i < shm->slots; ++i) {
        slot &target = shm->worker[i];
        // also while it listens to no commits: they cannot end a sleep that this must
        if (target.database == database && advance_due(target, due) && target.latch)
            SetLatch(target.latch);
    }
    LWLockRelease(shm->lock);
}

static void request_scout(Oid database) {
    if (shm->requests < max_requests)
        shm->requested[shm->requests++] = database;
    else
        shm->scout_all = true;
    wake_launcher();
}

void request_reload(Oid database) {
    if (!shm)
        return;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (int i = 0; i < shm->slots; ++i)
        if (shm->worker[i].database == database) {
            shm->worker[i].reload = true;
            if (shm->worker[i].latch)
                SetLatch(shm->worker[i].latch);
        }
    request_scout(database);
    LWLockRelease(shm->lock);
}

void look_for_sinks(Oid database) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    request_scout(database);
    LWLockRelease(shm->lock);
}

void request_look() {
    if (!shm)
        return;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    shm->look = true;
    wake_launcher();
    LWLockRelease(shm->lock);
}

bool take_look() {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    bool wanted = shm->look;
    shm->look = false;
    LWLockRelease(shm->lock);
    return wanted;
}

outlook worker_outlook(Oid database) {
    if (!shm)
        return outlook::not_loaded;
    // Read without the lock: every emit comes by, and a value just out of date only moves the warning.
    if (!shm->no_process && !shm->no_slot)
        return outlook::good;
    outlook result = shm->no_process ? outlook::no_process : outlook::no_slot;
    LWLockAcquire(shm->lock, LW_SHARED);
    for (int i = 0; i < shm->slots; ++i)
        if (shm->worker[i].database == database && shm->worker[i].pid != 0)
            result = outlook::good;
    LWLockRelease(shm->lock);
    return result;
}

// With the lock held exclusively.
static bool is_blocked_locked(Oid database, int sink_id) {
    bool blocked = false;
    for (auto &block : shm->blocks) {
        if (block.pid != 0 && !BackendPidGetProc(block.pid))
            block = {};
        bool meant = block.sink_id == 0 || block.sink_id == sink_id;
        blocked = blocked || (block.pid != 0 && block.database == database && meant);
    }
    return blocked;
}

static void detach(int, Datum index) {
    slot &own = shm->worker[DatumGetInt32(index)];
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    own.pid = 0;
    own.latch = nullptr;
    wake_launcher();
    LWLockRelease(shm->lock);
}

slot *attach(int index, Oid database, int sink_id) {
    slot &own = shm->worker[index];
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    // the launcher may have started it before the sink was stopped
    bool ours = own.database == database && own.sink_id == sink_id && own.pid == 0 && !is_blocked_locked(database, sink_id);
    if (ours) {
        own.pid = MyProcPid;
        own.latch = MyLatch;
        own.reload = true;
        own.served = false;
        pg_atomic_write_u32(&own.woken, 1);
        pg_atomic_write_u64(&own.next_due, 0); // look first
    }
    LWLockRelease(shm->lock);
    if (!ours)
        return nullptr;
    before_shmem_exit(detach, Int32GetDatum(index));
    return &own;
}

// With the lock held. Whoever was refused a slot for want of one may have it.
static void free_slot(slot &target) {
    consumers::forget(target.database, target.sink_id);
    target.database = InvalidOid;
    target.stats = {};
    if (shm->no_slot)
        shm->scout_all = true;
    wake_launcher();
}

void release(slot *own) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    request_scout(own->database); // it may have been created anew meanwhile
    free_slot(*own);
    LWLockRelease(shm->lock);
}

void publish(slot *own, const worker_stats &stats) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    own->stats = stats;
    LWLockRelease(shm->lock);
}

void listen(slot *own, bool wanted) {
    // with a barrier: who commits after this either sees it or is seen
    pg_atomic_exchange_u32(&own->woken, wanted ? 0 : 1);
}

bool take_reload(slot *own) {
    if (!own->reload)
        return false;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    own->reload = false;
    LWLockRelease(shm->lock);
    return true;
}

bool read(int index, slot &copy) {
    LWLockAcquire(shm->lock, LW_SHARED);
    copy = shm->worker[index];
    LWLockRelease(shm->lock);
    return OidIsValid(copy.database);
}

slot *at(int index) { return &shm->worker[index]; }

int slot_count() { return shm ? shm->slots : 0; }

static void detach_verification(int, Datum index) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    shm->verifications[DatumGetInt32(index)] = {};
    LWLockRelease(shm->lock);
}

verification *attach_verification(Oid database, int caller) {
    int chosen = -1;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (int i = 0; i < max_verifications && chosen < 0; ++i)
        if (!OidIsValid(shm->verifications[i].database))
            chosen = i;
    if (chosen >= 0) {
        shm->verifications[chosen] = {};
        shm->verifications[chosen].database = database;
        shm->verifications[chosen].pid = MyProcPid;
        shm->verifications[chosen].caller = caller;
        shm->verifications[chosen].started_at = GetCurrentTimestamp();
    }
    LWLockRelease(shm->lock);
    if (chosen < 0)
        return nullptr;
    before_shmem_exit(detach_verification, Int32GetDatum(chosen));
    // Only now: a command that blocks after this look finds us, and ends us.
    return is_blocked(database) ? nullptr : &shm->verifications[chosen];
}

void publish(verification *own, const verification &progress) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    *own = progress;
    LWLockRelease(shm->lock);
}

void end_verification() {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (verification &each : shm->verifications)
        each.over = each.over || (OidIsValid(each.database) && each.caller == MyProcPid);
    LWLockRelease(shm->lock);
}

bool read(int index, verification &copy) {
    LWLockAcquire(shm->lock, LW_SHARED);
    copy = shm->verifications[index];
    LWLockRelease(shm->lock);
    return OidIsValid(copy.database) && !copy.over;
}

int verification_count() { return shm ? max_verifications : 0; }

static void detach_replayer(int, Datum index) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    shm->replayers[DatumGetInt32(index)] = {};
    LWLockRelease(shm->lock);
}

static bool has_replayer_locked(Oid database, int sink_id) {
    for (const running_replayer &each : shm->replayers)
        if (each.database == database && each.sink_id == sink_id)
            return true;
    return false;
}

bool has_replayer(Oid database, int sink_id) {
    LWLockAcquire(shm->lock, LW_SHARED);
    bool found = has_replayer_locked(database, sink_id);
    LWLockRelease(shm->lock);
    return found;
}

bool attach_replayer(Oid database, int sink_id) {
    int chosen = -1;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (int i = 0; i < max_replayers && chosen < 0 && !has_replayer_locked(database, sink_id); ++i)
        if (!OidIsValid(shm->replayers[i].database)) {
            shm->replayers[i] = {database, sink_id, MyProcPid};
            chosen = i;
        }
    LWLockRelease(shm->lock);
    if (chosen < 0)
        return false;
    before_shmem_exit(detach_replayer, Int32GetDatum(chosen));
    // only now, as for a verification
    return !is_blocked(database, sink_id);
}

bool claim(Oid database, int sink_id) {
    int chosen = -1;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (int i = 0; i < shm->slots; ++i) {
        slot &candidate = shm->worker[i];
        if (candidate.database == database && candidate.sink_id == sink_id) {
            chosen = i;
            break;
        }
        if (!OidIsValid(candidate.database) && candidate.pid == 0 && chosen < 0)
            chosen = i;
    }
    if (chosen >= 0 && !OidIsValid(shm->worker[chosen].database)) {
        shm->worker[chosen].database = database;
        shm->worker[chosen].sink_id = sink_id;
        shm->worker[chosen].stats = {};
    }
    shm->no_slot = chosen < 0;
    wake_launcher();
    LWLockRelease(shm->lock);
    return chosen >= 0;
}

static void detach_launcher(int, Datum) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    shm->launcher = nullptr;
    LWLockRelease(shm->lock);
}

void attach_launcher() {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    shm->launcher = MyLatch;
    shm->scout_all = true; // what the launcher before us had still to do went with it
    LWLockRelease(shm->lock);
    before_shmem_exit(detach_launcher, 0);
}

bool take_scout_request(Oid &database) {
    bool found = true;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    if (shm->scout_all) {
        shm->scout_all = false;
        shm->requests = 0;
        database = InvalidOid;
    } else if (shm->requests > 0) {
        database = shm->requested[--shm->requests];
    } else {
        found = false;
    }
    LWLockRelease(shm->lock);
    return found;
}

static void detach_scout(int, Datum) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    shm->scout_pid = 0;
    shm->scouted = InvalidOid;
    wake_launcher();
    LWLockRelease(shm->lock);
}

void attach_scout(Oid database) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    shm->scout_pid = MyProcPid;
    shm->scouted = database;
    LWLockRelease(shm->lock);
    before_shmem_exit(detach_scout, 0);
}

bool is_blocked(Oid database, int sink_id) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    bool blocked = is_blocked_locked(database, sink_id);
    LWLockRelease(shm->lock);
    return blocked;
}

void set_trouble(outlook kind, bool present) {
    (kind == outlook::no_process ? shm->no_process : shm->no_slot) = present;
}

void free_slots(Oid database) {
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (int i = 0; i < shm->slots; ++i)
        if (shm->worker[i].database == database && shm->worker[i].pid == 0)
            free_slot(shm->worker[i]);
    LWLockRelease(shm->lock);
}

// Ends what runs in the database, or for one sink of it; true when nothing does any more.
static bool end_workers(Oid database, int sink_id = 0) {
    bool gone = true;
    LWLockAcquire(shm->lock, LW_SHARED);
    for (int i = 0; i < shm->slots; ++i)
        if (shm->worker[i].database == database && shm->worker[i].pid != 0 &&
            (sink_id == 0 || shm->worker[i].sink_id == sink_id)) {
            kill(shm->worker[i].pid, SIGTERM);
            gone = false;
        }
    if (shm->scouted == database && shm->scout_pid != 0 && sink_id == 0) {
        kill(shm->scout_pid, SIGTERM);
        gone = false;
    }
    for (const verification &running : shm->verifications)
        if (running.database == database && (sink_id == 0 || running.sink_id == sink_id)) {
            kill(running.pid, SIGTERM);
            gone = false;
        }
    for (const running_replayer &running : shm->replayers)
        if (running.database == database && (sink_id == 0 || running.sink_id == sink_id)) {
            kill(running.pid, SIGTERM);
            gone = false;
        }
    LWLockRelease(shm->lock);
    return gone;
}

void block(Oid database) {
    if (!shm)
        return;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (auto &block : shm->blocks)
        if (block.pid == 0 || !BackendPidGetProc(block.pid)) {
            block = {database, 0, MyProcPid};
            break;
        }
    LWLockRelease(shm->lock);
    // A worker answers within 100 ms; the command itself complains if one should not.
    for (int tries = 0; tries < 200 && !end_workers(database); ++tries) {
        CHECK_FOR_INTERRUPTS();
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
        ResetLatch(MyLatch);
    }
}

void unblock(Oid database) {
    if (!shm)
        return;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (auto &block : shm->blocks)
        if (block.pid == MyProcPid && block.database == database && block.sink_id == 0)
            block = {};
    request_scout(database);
    LWLockRelease(shm->lock);
}

bool stop_worker(Oid database, int sink_id) {
    if (!shm)
        return true;
    bool blocked = false;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (auto &block : shm->blocks) {
        blocked = block.pid == 0 || !BackendPidGetProc(block.pid);
        if (blocked) {
            block = {database, sink_id, MyProcPid};
            break;
        }
    }
    LWLockRelease(shm->lock);
    for (int tries = 0; blocked && tries < 1000; ++tries) {
        if (end_workers(database, sink_id))
            return true;
        CHECK_FOR_INTERRUPTS();
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
        ResetLatch(MyLatch);
    }
    return false;
}

void restart_workers(Oid database) {
    if (!shm)
        return;
    LWLockAcquire(shm->lock, LW_EXCLUSIVE);
    for (auto &block : shm->blocks)
        if (block.pid == MyProcPid && block.sink_id != 0)
            block = {};
    request_scout(database);
    LWLockRelease(shm->lock);
}

} // namespace outbox::shared

#include "extension/wait_event.hpp"

namespace outbox {

#if PG_VERSION_NUM >= 170000
static const char *name_of(waiting_for what) {
    switch (what) {
    case waiting_for::launcher: return "OutboxLauncherMain";
    case waiting_for::work: return "OutboxWorkerMain";
    case waiting_for::retry: return "OutboxRetryDelay";
    case waiting_for::linger: return "OutboxLinger";
    case waiting_for::redis_connect: return "OutboxRedisConnect";
    case waiting_for::redis_reply: return "OutboxRedisReply";
    case waiting_for::confirmation: return "OutboxConfirmation";
    case waiting_for::flush: return "OutboxFlush";
    }
    return "OutboxOther";
}

uint32 wait_event(waiting_for what) {
    static uint32 known[static_cast<int>(waiting_for::flush) + 1];
    uint32 &event = known[static_cast<int>(what)];
    if (event == 0)
        event = WaitEventExtensionNew(name_of(what));
    return event;
}
#else
uint32 wait_event(waiting_for) { return PG_WAIT_EXTENSION; }
#endif

} // namespace outbox

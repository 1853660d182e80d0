// What keeps an event that is delivered twice from being handled twice, and what each way leaves after a crash.
#pragma once

namespace outbox {

/// A stream delivers an event again when a consumer died before it acknowledged, when the group was made anew, when an
/// operator replays. What then happens to the handler's effects:
///
/// | the process dies …                           | `none`  | `redis`  | inbox (`on_transaction`) |
/// | -------------------------------------------- | ------- | -------- | ------------------------ |
/// | before the handler started                   | handled later, once | handled later, once | handled later, once |
/// | in the handler                               | handled again: effects up to there twice | the same | rolled back, handled again: effects once |
/// | after its effects, before the acknowledgement | handled again: effects twice | the same | found in the inbox, acknowledged: effects once |
/// | after the acknowledgement                    | nothing | nothing  | nothing |
/// | the same event in the stream twice           | handled twice | handled once within `idempotency_ttl` | handled once as long as the inbox keeps it |
/// | Redis forgets everything                     | all that is in the streams again: handled twice | the same | handled once |
enum class idempotency {
    /// Each delivery runs the handler. For handlers that are idempotent by themselves, such as deleting a cache key.
    none,

    /// Before the handler runs, the event's id is leased to this entry (`SET NX` on
    /// `outbox:{topic}:event:<group>:<event id>`); with the acknowledgement, in one atomic step, the lease becomes a mark
    /// "done" that lives for `idempotency_ttl`. So a crash before the handler finished never marks an event done; and of two
    /// entries with the same event one waits until the other is done, and is then skipped. The lease is good as long as its
    /// entry is pending, and needs no clock; the mark follows the wall clock of the Redis server. Marks must not be evicted:
    /// `maxmemory-policy noeviction`, or a duplicate runs twice.
    redis,
};

} // namespace outbox

// The steps that must be atomic, as Lua scripts that run in Redis (6.2 or later, Valkey too). Each is idempotent: one whose
// reply was lost may be sent again. "Owned" means that the entry is pending in the group with this consumer: what a consumer
// that was stopped for long no longer owns, it must not park, bury or retry.
//
// A script that fails has acknowledged nothing that is not elsewhere: what may fail (a key of a wrong type, memory) comes
// before the first write. Its error begins with Redis' own code ("WRONGTYPE …", "OOM …") in every version.
//
// All keys of a call belong to one topic. An entry's fields are copied by the scripts themselves, from the stream.
//
// Commands that a user needs for them: del, get, hdel, hget, hlen, hset, set, time, xack, xadd, xclaim, xdel, xgroup,
// xinfo, xlen, xpending, xrange, xreadgroup, and eval, evalsha.
#pragma once

#include <string>
#include <string_view>

namespace outbox::detail {

struct script {
    explicit script(std::string_view text); // computes the SHA-1 that EVALSHA wants
    std::string text;
    std::string sha;
};

// What `begin` says about an entry.
enum class begin_verdict : int {
    run = 0,       // the lease is taken, the attempt is written down
    done = 1,      // the event is done already: acknowledge, do not run
    wait = 2,      // another entry with this event is pending, or its aggregate is being released: ask again later
    parked = 3,    // set aside behind the dead letter of its aggregate, and acknowledged
    not_owned = 4, // somebody else's by now, or nobody's
};

// An entry is allowed to start. Asked before a handler runs wherever Redis has a say: idempotency::redis, park_aggregate,
// every attempt but the first of a fresh delivery, and a lease that may have run out.
//
// KEYS: stream (the topic's or the redrive stream), its attempts hash, parked hash, topic's stream, redrive stream, dead
//       letter stream
// ARGV: group, consumer, prefix of idempotency keys or '' (no idempotency), ttl (ms), park? (1/0), check ownership? (1/0),
//       then for each entry: id, event id, attempt to write down (0: none), aggregate key ('' for none)
// Answers an array of begin_verdict.
//
// Idempotency key: value "done", or the lease "<0|1>/<id>": the entry (0: in the topic's stream, 1: in the redrive stream)
// that has it. A lease whose entry is not pending any more is free. The mark expires after ttl; the lease after a day at the
// soonest, as nothing depends on when.
// Parked hash, for an aggregate, in which case ownership is checked anyway:
// - "dead <dead letter id>": its entry goes to the stream <parked hash>:<aggregate key>, with `outbox_position` before its
//   fields, is acknowledged, and is `parked`. A dead letter that is gone without redrive or discard, deleted by hand, counts
//   as discarded. An entry that cannot be copied, because it was trimmed or has too many fields, waits.
// - "draining <first id> <last id>": these entries of the redrive stream were parked, and are of this aggregate alone. What
//   is in the redrive stream up to the last id runs, everything else `wait`s, until they have left that stream; then the
//   field is deleted.
extern const script begin;

// Entries are finished: idempotency keys become "done", the entries are acknowledged, their attempts forgotten; in the
// redrive stream they are deleted. Plain XACK is enough where none of this is needed.
// KEYS: stream, its attempts hash
// ARGV: group, consumer, prefix or '', ttl (ms), delete? (1/0), only if owned? (1/0), then for each: id, event id ('' for
//       none)
// Answers how many were pending (and owned, if asked).
extern const script finish;

// An entry dies: a dead letter with dead_letter_fields and the entry's own fields (of a redriven one without
// `outbox_position`), acknowledged, attempts forgotten, deleted from the redrive stream; with park? its aggregate is parked
// behind it, unless it is parked behind another already; what was draining and has not been handled is parked again, in
// order. Only if owned. An idempotency lease is deleted if it is this entry's. Fields that are too many for one command (over
// 3,000 pairs) are left out and the error says so: the entry is still in the stream. One that was trimmed away has no fields.
// KEYS: stream, its attempts hash, dead letter stream, parked hash, redrive stream
// ARGV: group, consumer, id, error, attempts, aggregate key ('' for none), park? (1/0), idempotency key ('' for none)
// Answers the dead letter's id, or nil if the entry is not owned.
extern const script bury;

// Takes over entries, oldest first: of any consumer, this one as well, idle for min-idle or longer; or, with `mine`, those
// that are pending with this consumer (a reply that never arrived). An entry that was trimmed away, of a consumer that has not
// been heard of for min-idle, becomes a dead letter without fields, with the error "the entry was trimmed away before it was
// handled". One of this consumer is answered with no fields: it may be in hand.
// KEYS: stream, its attempts hash, dead letter stream
// ARGV: group, consumer, min-idle (ms), count, after (an id, "-" from the start), mine? (1/0)
// Answers [number trimmed, id to go on after ('' at the end), [[id, fields, deliveries, attempts or -1 if never written
// down], …]]; `deliveries` counts this one.
extern const script take_over;

// The leases of entries begin anew; answers the ids of those that are not owned. That of an entry that was trimmed away
// cannot: the consumer is heard of instead, so that nobody makes it a dead letter.
// KEYS: stream   ARGV: group, consumer, ids…
extern const script renew;

// Owned entries are given back: others may take them over at once. Their attempts are written down. Answers how many.
// KEYS: stream, its attempts hash   ARGV: group, consumer, then for each: id, attempts
extern const script release;

// Removes consumers from the group that have nothing pending: this one (min-idle -1), or all others that were silent for
// min-idle ms. Answers how many.
// KEYS: stream   ARGV: group, consumer, min-idle
extern const script reap;

// The group, made if it is not there, and its generation: a text that is another one each time it is made. (What a consumer of
// an earlier generation holds is pending nowhere, though another consumer may have made the group anew without a word.)
// KEYS: stream, generation key   ARGV: group, where a new one begins, generation of a new one
// Answers [made? (1/0), generation].
extern const script make_group;

// How far the group has finished the stream: everything up to the answered id is acknowledged. Answers [exclusive?, id]:
// with 1 everything before the id.
// KEYS: stream   ARGV: group
extern const script watermark;

// Takes tokens of the group's rate limit (the generic cell rate algorithm, ATM Forum TM 4.0; by the clock of Redis, which
// may jump: a jump back never blocks for longer than the burst's worth). A burst below 1 is 1. Answers [granted, ms until
// the next].
// KEYS: rate key   ARGV: events per second, burst (events), wanted
extern const script take_tokens;

// A dead letter is delivered again: appended to the redrive stream with `outbox_position` before its fields, and deleted. If
// its aggregate is parked behind it, what is parked follows in order, and the parked hash says "draining <first id> <last
// id>".
// KEYS: dead letter stream, redrive stream, parked hash   ARGV: dead letter id
// Answers the last id appended, or nil if there is no such dead letter; an error "GONE …" if it has no fields.
extern const script redrive;

// A dead letter is deleted, and what is parked behind it is released as by redrive.
// KEYS and ARGV as redrive. Answers 1, or nil if there is no such dead letter.
extern const script discard;

} // namespace outbox::detail

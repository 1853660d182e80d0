// What Redis' replies mean to a consumer, and replies that are parsed once into one block of memory. The meaning is pure and
// fuzzed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include <hiredis/hiredis.h>

namespace outbox::detail {

// Makes a reader build its replies, of type redisReply as always, each in an arena of its own: no allocation for a field, and
// views into a reply stay good for as long as somebody shares the arena. It must outlive the reader. What a server
// announces takes no memory, only what it sends; a reply of more than 2 GiB is refused, which the reader calls out of memory.
// Such a reply is freed by the reader's own freeObject (the async API does so after the callback), never by freeReplyObject.
struct arena_reader {
    void *current = nullptr; // the arena of the reply that is being parsed
    void attach(redisReader &reader) noexcept;
};

// A share of the arena that this reply (the outermost, as the callback got it, of an arena_reader) lives in. Any thread may
// drop it.
std::shared_ptr<const void> share(const redisReply *outermost);

// How many bytes that arena takes.
std::size_t arena_size(const redisReply *outermost) noexcept;

inline std::string_view text(const redisReply &reply) noexcept {
    return reply.str != nullptr ? std::string_view(reply.str, reply.len) : std::string_view();
}

// What to do about an error reply.
enum class trouble {
    none,      // no error
    server,    // nothing will work for now, wait: OOM, MISCONF, NOREPLICAS, CLUSTERDOWN, TRYAGAIN, BUSY, "max number of
               // clients", CLIENT UNBLOCK, and every word that is not known
    reconnect, // as server, but another connection may be better: READONLY, MASTERDOWN, LOADING, MOVED, ASK, a demotion; NOAUTH
               // and WRONGPASS, since only a new connection reads the password again
    no_group,  // NOGROUP; UNBLOCKED, or "no such key", where the stream went away under a read
    no_script, // NOSCRIPT
    key,       // this key cannot work until somebody mends it: WRONGTYPE, NOPERM, CROSSSLOT, IDs used up, a hash of ours that
               // holds no numbers
};
trouble classify(const redisReply &reply) noexcept;
// The text of an error, also of one that a script met: Redis 6.2 wraps those.
trouble classify_error(std::string_view message) noexcept;

// One entry of a reply to XREADGROUP or XCLAIM: `fields` is null where the entry is no longer in the stream.
struct raw_entry {
    std::string_view id;
    const redisReply *fields;
};
struct raw_stream {
    std::string_view key;
    std::vector<raw_entry> entries;
};

// The streams of a reply to XREADGROUP; empty for nil, which is a read that timed out. False if it is no such reply, whatever
// else it is: nothing in it is to be believed then.
bool interpret_read(const redisReply &reply, std::vector<raw_stream> &streams);

// One entry [id, fields]: an ID, and names and values in pairs, or nil. False if it is none. What else is in the row, as in
// those of the script take_over, is the caller's.
bool interpret_entry(const redisReply &reply, raw_entry &entry);

// The summary of XPENDING key group: how many are pending, and with whom. False if it is no such reply.
struct pending_summary {
    struct owner {
        std::string_view name;
        std::uint64_t count;
    };
    std::uint64_t count = 0;
    std::string_view first, last; // IDs
    std::vector<owner> owners;
};
bool interpret_pending(const redisReply &reply, pending_summary &summary);

// A row of XPENDING key group start end count [consumer]
struct pending_entry {
    std::string_view id;
    std::string_view owner;
    std::int64_t idle = 0; // ms
    std::int64_t deliveries = 0;
};
bool interpret_pending_list(const redisReply &reply, std::vector<pending_entry> &entries);

} // namespace outbox::detail

// Replies in arenas, and what they mean: see reply.hpp.
#include "src/reply.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "src/entry_id.hpp"

namespace outbox::detail {

namespace {

// The largest entry that Redis takes is 1 GiB (client-query-buffer-limit), and reading one at a time has to work. hiredis
// counts elements in an int: this keeps them far below its end, too.
constexpr std::size_t most_bytes = std::size_t(2) << 30;
constexpr std::size_t most_elements = most_bytes / sizeof(redisReply);

// An answer of a few bytes takes the first chunk alone; those that follow double up to the last size, which malloc still
// serves without asking the kernel.
constexpr std::size_t first_chunk = 512;
constexpr std::size_t last_chunk = 64 * 1024;

// An array of so many elements gets its vector at once; a longer one as they come, because the number is only announced.
constexpr std::size_t first_elements = 1024;
static_assert(std::has_single_bit(first_elements));

// A reply with everything in it, given back as a whole. It is its own outermost reply, so that one leads to the other.
struct arena : redisReply {
    struct chunk {
        chunk *next;
    };

    std::atomic<std::size_t> holders{1};
    std::size_t bytes = first_chunk;
    std::size_t next_chunk = first_chunk * 2;
    chunk *chunks = nullptr; // but for the one that the arena itself is in
    char *at = reinterpret_cast<char *>(this + 1);
    char *end = reinterpret_cast<char *>(this) + first_chunk;

    arena() noexcept : redisReply() {}

    // Null if memory, or what a reply may have of it, is used up.
    void *allocate(std::size_t size) noexcept {
        if (size > most_bytes)
            return nullptr;
        size = (size + alignof(redisReply) - 1) / alignof(redisReply) * alignof(redisReply);
        if (size > static_cast<std::size_t>(end - at))
            return allocate_chunk(size);
        void *result = at;
        at += size;
        return result;
    }

  private:
    void *allocate_chunk(std::size_t size) noexcept {
        // What is large gets a chunk of its own, and the rest of the open one stays of use.
        bool own = size > last_chunk / 4;
        std::size_t wanted = sizeof(chunk) + (own ? size : std::max(size, next_chunk));
        if (wanted > most_bytes - bytes)
            return nullptr;
        auto *added = static_cast<chunk *>(std::malloc(wanted));
        if (added == nullptr)
            return nullptr;
        added->next = chunks;
        chunks = added;
        bytes += wanted;
        char *result = reinterpret_cast<char *>(added + 1);
        if (!own) {
            at = result + size;
            end = reinterpret_cast<char *>(added) + wanted;
            next_chunk = std::min(next_chunk * 2, last_chunk);
        }
        return result;
    }
};
static_assert(sizeof(arena) < first_chunk);

void release(arena *all) noexcept {
    // The last holder may be another thread than those that read.
    if (all->holders.fetch_sub(1, std::memory_order_acq_rel) != 1)
        return;
    for (arena::chunk *each = all->chunks; each != nullptr;)
        std::free(std::exchange(each, each->next));
    all->~arena();
    std::free(all);
}

arena &arena_of(const redisReadTask *task) noexcept {
    return *static_cast<arena *>(static_cast<arena_reader *>(task->privdata)->current);
}

// The vector was made for a power of two of elements, and is full when the index is one.
bool make_room(arena &all, redisReply &array, std::size_t index) noexcept {
    if (index < first_elements || !std::has_single_bit(index))
        return true;
    auto *longer = static_cast<redisReply **>(
        all.allocate(std::min(2 * index, array.elements) * sizeof(redisReply *)));
    if (longer == nullptr)
        return false;
    std::copy_n(array.element, index, longer);
    array.element = longer;
    return true;
}

// The next reply in its place: the outermost begins an arena.
redisReply *add(const redisReadTask *task) noexcept {
    redisReply *reply;
    if (task->parent == nullptr) {
        void *memory = std::malloc(first_chunk);
        if (memory == nullptr)
            return nullptr;
        auto *all = new (memory) arena;
        static_cast<arena_reader *>(task->privdata)->current = all;
        reply = all;
    } else {
        arena &all = arena_of(task);
        auto &array = *static_cast<redisReply *>(task->parent->obj);
        auto index = static_cast<std::size_t>(task->idx);
        void *memory = all.allocate(sizeof(redisReply));
        if (memory == nullptr || !make_room(all, array, index))
            return nullptr;
        reply = new (memory) redisReply();
        array.element[index] = reply;
    }
    reply->type = task->type;
    return reply;
}

// To the reader: out of memory. It frees the outermost reply, but for one that it was never given.
void *refuse(const redisReadTask *task, redisReply *reply) noexcept {
    if (task->parent == nullptr && reply != nullptr)
        release(&arena_of(task));
    return nullptr;
}

void *add_text(const redisReadTask *task, std::string_view text) noexcept {
    redisReply *reply = add(task);
    char *copy =
        reply == nullptr ? nullptr : static_cast<char *>(arena_of(task).allocate(text.size() + 1));
    if (copy == nullptr)
        return refuse(task, reply);
    std::memcpy(copy, text.data(), text.size());
    copy[text.size()] = '\0'; // hiredis itself prints errors
    reply->str = copy;
    reply->len = text.size();
    return reply;
}

// What hiredis calls, with the types that its own functions would give; noexcept because C is above.

void *create_string(const redisReadTask *task, char *text, std::size_t size) noexcept {
#if HIREDIS_MAJOR >= 1
    if (task->type == REDIS_REPLY_VERB) { // "txt:…", which the reader has checked
        auto *reply = static_cast<redisReply *>(add_text(task, {text + 4, size - 4}));
        if (reply != nullptr)
            std::memcpy(reply->vtype, text, 3);
        return reply;
    }
#endif
    return add_text(task, {text, size});
}

#if HIREDIS_MAJOR >= 1
using announced = std::size_t;
#else
using announced = int;
#endif

void *create_array(const redisReadTask *task, announced count) noexcept {
    redisReply *reply = add(task);
    if (reply == nullptr)
        return nullptr;
    reply->elements = static_cast<std::size_t>(count);
    if (count == 0)
        return reply;
    if (reply->elements > most_elements)
        return refuse(task, reply);
    std::size_t now = std::min(reply->elements, first_elements);
    reply->element =
        static_cast<redisReply **>(arena_of(task).allocate(now * sizeof(redisReply *)));
    return reply->element != nullptr ? reply : refuse(task, reply);
}

void *create_integer(const redisReadTask *task, long long value) noexcept {
    redisReply *reply = add(task);
    if (reply != nullptr)
        reply->integer = value;
    return reply;
}

void *create_nil(const redisReadTask *task) noexcept {
    redisReply *reply = add(task);
    if (reply != nullptr)
        reply->type = REDIS_REPLY_NIL; // of an array or a string, as the task says
    return reply;
}

#if HIREDIS_MAJOR >= 1
void *create_double(const redisReadTask *task, double value, char *text,
                    std::size_t size) noexcept {
    auto *reply = static_cast<redisReply *>(add_text(task, {text, size}));
    if (reply != nullptr)
        reply->dval = value;
    return reply;
}

void *create_bool(const redisReadTask *task, int value) noexcept {
    return create_integer(task, value != 0);
}
#endif

void free_object(void *outermost) noexcept {
    release(static_cast<arena *>(static_cast<redisReply *>(outermost)));
}

redisReplyObjectFunctions functions = {
    .createString = create_string,
    .createArray = create_array,
    .createInteger = create_integer,
#if HIREDIS_MAJOR >= 1
    .createDouble = create_double,
#endif
    .createNil = create_nil,
#if HIREDIS_MAJOR >= 1
    .createBool = create_bool,
#endif
    .freeObject = free_object,
};

} // namespace

void arena_reader::attach(redisReader &reader) noexcept {
    reader.fn = &functions;
    reader.privdata = this;
}

std::shared_ptr<const void> share(const redisReply *outermost) {
    auto *all = const_cast<arena *>(static_cast<const arena *>(outermost));
    all->holders.fetch_add(1, std::memory_order_relaxed);
    return {all, release};
}

std::size_t arena_size(const redisReply *outermost) noexcept {
    return static_cast<const arena *>(outermost)->bytes;
}

trouble classify(const redisReply &reply) noexcept {
    return reply.type == REDIS_REPLY_ERROR ? classify_error(text(reply)) : trouble::none;
}

trouble classify_error(std::string_view message) noexcept {
    // "ERR Error running script (call to f_…): @user_script:7: @user_script: 7: -OOM command not allowed …"
    if (message.starts_with("ERR Error running script")) {
        constexpr std::string_view where = "@user_script";
        auto last = message.rfind(where);
        if (last != std::string_view::npos) {
            message.remove_prefix(last + where.size());
            message.remove_prefix(
                std::min(message.find_first_not_of(": 0123456789-"), message.size()));
        }
    }

    struct row {
        std::string_view text;
        trouble means;
    };
    static constexpr row words[] = {
        {"NOGROUP", trouble::no_group},    {"NOSCRIPT", trouble::no_script},
        {"WRONGTYPE", trouble::key},       {"NOPERM", trouble::key},
        {"CROSSSLOT", trouble::key},       {"READONLY", trouble::reconnect},
        {"LOADING", trouble::reconnect},   {"MASTERDOWN", trouble::reconnect},
        {"MOVED", trouble::reconnect},     {"ASK", trouble::reconnect},
        {"REDIRECT", trouble::reconnect},  {"NOAUTH", trouble::reconnect},
        {"WRONGPASS", trouble::reconnect}, {"OOM", trouble::server},
        {"MISCONF", trouble::server},      {"NOREPLICAS", trouble::server},
        {"CLUSTERDOWN", trouble::server},  {"TRYAGAIN", trouble::server},
        {"BUSY", trouble::server},
    };
    std::string_view word = message.substr(0, message.find(' '));
    for (const row &each : words)
        if (word == each.text)
            return each.means;

    // Those without a word of their own: ERR, UNBLOCKED, and what 6.2 wrapped.
    static constexpr row phrases[] = {
        {"no such key", trouble::no_group},
        {"requires the key to exist", trouble::no_group}, // XGROUP
        {"key no longer exists", trouble::no_group},      // UNBLOCKED
        {"instance state changed", trouble::reconnect},   // UNBLOCKED: a primary became a replica
        {"stale replica", trouble::reconnect},
        {"readonly replica", trouble::reconnect},
        {"non local key", trouble::reconnect}, // MOVED, in a script
        {"do not hash to the same slot", trouble::key},
        {"executing the script", trouble::key}, // NOPERM in a script, up to 7.0
        {"ACL failure in script", trouble::key},
        {"exhausted the last possible ID", trouble::key},
        {"Elements are too large", trouble::key},
        {"hash value is not an integer", trouble::key},
    };
    for (const row &each : phrases)
        if (message.find(each.text) != std::string_view::npos)
            return each.means;
    return trouble::server;
}

static bool is_array(const redisReply &reply, std::size_t elements) noexcept {
    return reply.type == REDIS_REPLY_ARRAY && reply.elements == elements;
}

static bool is_string(const redisReply &reply) noexcept { return reply.type == REDIS_REPLY_STRING; }

bool interpret_entry(const redisReply &reply, raw_entry &entry) {
    entry = {};
    if (reply.type != REDIS_REPLY_ARRAY || reply.elements < 2 || !is_string(*reply.element[0]))
        return false;
    const redisReply &fields = *reply.element[1];
    bool gone = fields.type == REDIS_REPLY_NIL;
    if (!gone) {
        if (fields.type != REDIS_REPLY_ARRAY || fields.elements % 2 != 0)
            return false;
        for (std::size_t i = 0; i < fields.elements; ++i)
            if (!is_string(*fields.element[i]))
                return false;
    }
    entry_id id;
    if (!parse(text(*reply.element[0]), id))
        return false;
    entry = {text(*reply.element[0]), gone ? nullptr : &fields};
    return true;
}

static bool interpret_stream(const redisReply &reply, raw_stream &stream) {
    if (!is_array(reply, 2) || !is_string(*reply.element[0]) ||
        reply.element[1]->type != REDIS_REPLY_ARRAY)
        return false;
    const redisReply &entries = *reply.element[1];
    stream.key = text(*reply.element[0]);
    stream.entries.resize(entries.elements);
    for (std::size_t i = 0; i < entries.elements; ++i)
        if (!interpret_entry(*entries.element[i], stream.entries[i]))
            return false;
    return true;
}

bool interpret_read(const redisReply &reply, std::vector<raw_stream> &streams) {
    streams.clear();
    if (reply.type == REDIS_REPLY_NIL)
        return true;
    if (reply.type != REDIS_REPLY_ARRAY)
        return false;
    streams.resize(reply.elements);
    for (std::size_t i = 0; i < reply.elements; ++i)
        if (!interpret_stream(*reply.element[i], streams[i])) {
            streams.clear();
            return false;
        }
    return true;
}

bool interpret_pending(const redisReply &reply, pending_summary &summary) {
    summary = {};
    if (!is_array(reply, 4) || reply.element[0]->type != REDIS_REPLY_INTEGER ||
        reply.element[0]->integer < 0)
        return false;
    const redisReply &first = *reply.element[1], &last = *reply.element[2],
                     &owners = *reply.element[3];
    if (reply.element[0]->integer == 0)
        return true;
    if (!is_string(first) || !is_string(last) || owners.type != REDIS_REPLY_ARRAY)
        return false;
    pending_summary found = {
        static_cast<std::uint64_t>(reply.element[0]->integer), text(first), text(last), {}};
    found.owners.resize(owners.elements);
    for (std::size_t i = 0; i < owners.elements; ++i) {
        const redisReply &pair = *owners.element[i];
        if (!is_array(pair, 2) || !is_string(*pair.element[0]) || !is_string(*pair.element[1]))
            return false;
        std::string_view digits = text(*pair.element[1]);
        found.owners[i].name = text(*pair.element[0]);
        auto end = digits.data() + digits.size();
        auto parsed = std::from_chars(digits.data(), end, found.owners[i].count);
        if (parsed.ec != std::errc() || parsed.ptr != end)
            return false;
    }
    summary = std::move(found);
    return true;
}

bool interpret_pending_list(const redisReply &reply, std::vector<pending_entry> &entries) {
    entries.clear();
    if (reply.type != REDIS_REPLY_ARRAY)
        return false;
    entries.reserve(reply.elements);
    for (std::size_t i = 0; i < reply.elements; ++i) {
        const redisReply &row = *reply.element[i];
        if (!is_array(row, 4) || !is_string(*row.element[0]) || !is_string(*row.element[1]) ||
            row.element[2]->type != REDIS_REPLY_INTEGER ||
            row.element[3]->type != REDIS_REPLY_INTEGER) {
            entries.clear();
            return false;
        }
        entries.push_back({text(*row.element[0]), text(*row.element[1]), row.element[2]->integer,
                           row.element[3]->integer});
    }
    return true;
}

} // namespace outbox::detail

// The scripts themselves. Lua 5.1, with commands of Redis 6.2 only.
#include "src/scripts.hpp"

#include <openssl/sha.h>

namespace outbox::detail {

script::script(std::string_view source) : text(source) {
    unsigned char digest[SHA_DIGEST_LENGTH];
    SHA1(reinterpret_cast<const unsigned char *>(text.data()), text.size(), digest);
    constexpr char digits[] = "0123456789abcdef";
    for (unsigned char byte : digest) {
        sha += digits[byte >> 4];
        sha += digits[byte & 15];
    }
}

// What the scripts share, before the body of each.
static constexpr std::string_view prelude = R"lua(
-- Redis 7 throws tables; 6.2 throws texts, puts the line before what is its own, and would hide the code of all of them.
local function message(thrown)
    local text = type(thrown) == 'table' and thrown.err or tostring(thrown)
    if string.find(text, "The user executing the script can't", 1, true) then
        return 'NOPERM ' .. text
    end
    return string.match(text, '%u[%u%d]+ [^\r\n]*') or 'ERR ' .. text
end

-- Whether the entry is pending in the group; with the name of a consumer: with that one.
local function pending(stream, group, id, ...)
    return #redis.call('XPENDING', stream, group, id, id, 1, ...) > 0
end

-- The fields of an entry; nil if it is not in the stream.
local function entry(stream, id)
    local found = redis.call('XRANGE', stream, id, id)[1]
    return found and found[2]
end

-- Whether entry a comes before entry b. Their numbers have up to 64 bits, more than those of Lua.
local function before(a, b)
    local a_ms, a_n = string.match(a, '(%d+)-(%d+)')
    local b_ms, b_n = string.match(b, '(%d+)-(%d+)')
    if a_ms == b_ms then
        a_ms, b_ms = a_n, b_n
    end
    if #a_ms ~= #b_ms then
        return #a_ms < #b_ms
    end
    return a_ms < b_ms
end

-- What XINFO says, by name.
local function named(row)
    local about = {}
    for i = 1, #row, 2 do
        about[row[i]] = row[i + 1]
    end
    return about
end

-- Visits the entries of a range, a page at a time.
local function each(stream, first, last, visit)
    repeat
        local page = redis.call('XRANGE', stream, first, last, 'COUNT', 100)
        for _, one in ipairs(page) do
            visit(one[1], one[2])
            first = '(' .. one[1]
        end
    until #page == 0
end

-- Lua can pass at most 8,000 words to a command.
local function too_many(fields, from)
    return #fields - from + 1 > 6000
end

-- Appends an entry: the head, and the fields from this index on.
local function append(stream, head, fields, from)
    for i = from, #fields do
        head[#head + 1] = fields[i]
    end
    return redis.call('XADD', stream, '*', unpack(head))
end

-- Where the fields of the original begin in an entry of the redrive stream, and its position.
local function original(fields, id)
    if fields[1] == 'outbox_position' then
        return 3, fields[2]
    end
    return 1, id
end

local function append_dead_letter(dead, about, fields, from)
    local time = redis.call('TIME')
    return append(dead, {
        'outbox_position', about.position,
        'outbox_stream', about.stream,
        'outbox_error', about.error,
        'outbox_attempts', about.attempts,
        'outbox_consumer', about.consumer,
        'outbox_died_at', time[1] .. string.format('%03d', math.floor(time[2] / 1000)),
        'outbox_aggregate', about.aggregate,
    }, fields, from)
end

-- What the parked hash says about an aggregate: "dead" and the dead letter, or "draining" and the first and the last entry.
local function standing(parked, aggregate)
    return string.match(redis.call('HGET', parked, aggregate) or '', '^(%a+) (%S+) ?(%S*)$')
end

-- Moves what is parked of an aggregate to the end of the redrive stream, in order, behind `first` if that is an entry
-- already. Returns the last one, nil if there is none.
local function release(parked, aggregate, redrive_stream, first)
    local waiting = parked .. ':' .. aggregate
    local last = first
    each(waiting, '-', '+', function(_, fields)
        last = append(redrive_stream, {}, fields, 1)
        first = first or last
    end)
    if last then
        redis.call('HSET', parked, aggregate, 'draining ' .. first .. ' ' .. last)
    else
        redis.call('HDEL', parked, aggregate)
    end
    redis.call('DEL', waiting)
    return last
end

local function body()
)lua";

static constexpr std::string_view postlude = R"lua(
end

local ok, result = pcall(body)
if ok then
    return result
end
return {err = message(result)}
)lua";

static script with_prelude(std::string_view body) {
    return script(std::string(prelude).append(body).append(postlude));
}

const script begin = with_prelude(R"lua(
local stream, attempts, parked, topic_stream, redrive_stream, dead = unpack(KEYS)
local group, consumer, prefix, ttl, park, check = unpack(ARGV, 1, 6)
local RUN, DONE, WAIT, PARKED, NOT_OWNED = 0, 1, 2, 3, 4
local lease_ttl = math.max(tonumber(ttl), 24 * 60 * 60 * 1000)

-- As standing(), without what is over.
local function obstacle(aggregate)
    local state, first, last = standing(parked, aggregate)
    if state == 'dead' and not entry(dead, first) then
        release(parked, aggregate, redrive_stream)
        state, first, last = standing(parked, aggregate)
    end
    if state == 'draining' and #redis.call('XRANGE', redrive_stream, first, last, 'COUNT', 1) == 0 then
        redis.call('HDEL', parked, aggregate)
        return nil
    end
    return state, last
end

local function lease_holds(lease)
    local where, holder = string.match(lease, '^([01])/(%d+%-%d+)$')
    if not where then
        return false
    end
    local its_stream = where == '1' and redrive_stream or topic_stream
    local ok, result = pcall(pending, its_stream, group, holder)
    if not ok and string.sub(message(result), 1, 7) ~= 'NOGROUP' then
        error(result, 0)
    end
    return ok and result
end

local function set_aside(id, aggregate)
    local fields = entry(stream, id)
    if not fields or too_many(fields, stream == redrive_stream and original(fields, id) or 1) then
        return WAIT
    end
    redis.call('HLEN', attempts) -- its errors now, not when the entry is copied already
    local head = {}
    if stream ~= redrive_stream then
        head = {'outbox_position', id}
    end
    append(parked .. ':' .. aggregate, head, fields, 1)
    redis.call('XACK', stream, group, id)
    redis.call('HDEL', attempts, id)
    if stream == redrive_stream then
        redis.call('XDEL', stream, id)
    end
    return PARKED
end

local function verdict(id, event_id, attempt, aggregate)
    local state, last
    if park == '1' and aggregate ~= '' then
        state, last = obstacle(aggregate)
    end
    if (state or check == '1') and not pending(stream, group, id, consumer) then
        return NOT_OWNED
    end
    local key = prefix ~= '' and event_id ~= '' and prefix .. event_id
    local mine = (stream == redrive_stream and '1/' or '0/') .. id
    -- most events were never seen before: one command is enough for them
    local fresh = key and not state and redis.call('SET', key, mine, 'PX', lease_ttl, 'NX')
    local mark = key and not fresh and redis.call('GET', key)
    if mark == 'done' then
        return DONE
    end
    if state == 'dead' or state == 'draining' and (stream ~= redrive_stream or before(last, id)) then
        local result = state == 'dead' and set_aside(id, aggregate) or WAIT
        if mark == mine then
            redis.call('DEL', key) -- what is being released may have the same event, and must not wait for this one
        end
        return result
    end
    if mark and mark ~= mine and lease_holds(mark) then
        return WAIT
    end
    if key and not fresh then
        redis.call('SET', key, mine, 'PX', lease_ttl)
    end
    if attempt ~= '0' then
        redis.call('HSET', attempts, id, attempt)
    end
    return RUN
end

local verdicts = {}
for i = 7, #ARGV, 4 do
    verdicts[#verdicts + 1] = verdict(unpack(ARGV, i, i + 3))
end
return verdicts
)lua");

const script finish = with_prelude(R"lua(
local stream, attempts = unpack(KEYS)
local group, consumer, prefix, ttl, delete, check = unpack(ARGV, 1, 6)
local ids = {}
for i = 7, #ARGV, 2 do
    local id, event_id = ARGV[i], ARGV[i + 1]
    if check == '0' or pending(stream, group, id, consumer) then
        if prefix ~= '' and event_id ~= '' then
            redis.call('SET', prefix .. event_id, 'done', 'PX', ttl)
        end
        ids[#ids + 1] = id
    end
end
local acknowledged = 0
for from = 1, #ids, 1000 do
    local to = math.min(from + 999, #ids)
    redis.call('HDEL', attempts, unpack(ids, from, to))
    acknowledged = acknowledged + redis.call('XACK', stream, group, unpack(ids, from, to))
    if delete == '1' then
        redis.call('XDEL', stream, unpack(ids, from, to))
    end
end
return acknowledged
)lua");

const script bury = with_prelude(R"lua(
local stream, attempts_hash, dead, parked, redrive_stream = unpack(KEYS)
local group, consumer, id, why, attempts, aggregate, park, key = unpack(ARGV)
if not pending(stream, group, id, consumer) then
    return false
end
local fields = entry(stream, id) or {}
local from, position = 1, id
if stream == redrive_stream then
    from, position = original(fields, id)
end
if too_many(fields, from) then
    why = why .. ' (the entry has too many fields to be copied, and is still in the stream)'
    fields = {}
end
park = park == '1' and aggregate ~= ''
local waiting = parked .. ':' .. aggregate
local mark = key ~= '' and redis.call('GET', key)
local state, first, last
redis.call('HLEN', attempts_hash) -- errors now, not when the entry is copied already
if park then
    state, first, last = standing(parked, aggregate)
    redis.call('XLEN', waiting)
    redis.call('XLEN', redrive_stream)
end

local letter = append_dead_letter(dead, {
    position = position,
    stream = stream,
    error = why,
    attempts = attempts,
    consumer = consumer,
    aggregate = aggregate,
}, fields, from)
if park and not (state == 'dead' and entry(dead, first)) then
    if state == 'draining' then
        each(redrive_stream, first, last, function(other, its_fields)
            if stream ~= redrive_stream or other ~= id then
                append(waiting, {}, its_fields, 1)
                redis.call('XACK', redrive_stream, group, other)
                redis.call('XDEL', redrive_stream, other)
            end
        end)
    end
    redis.call('HSET', parked, aggregate, 'dead ' .. letter)
end
if mark == (stream == redrive_stream and '1/' or '0/') .. id then
    redis.call('DEL', key)
end
redis.call('HDEL', attempts_hash, id)
redis.call('XACK', stream, group, id)
if stream == redrive_stream then
    redis.call('XDEL', stream, id)
end
return letter
)lua");

const script take_over = with_prelude(R"lua(
local stream, attempts_hash, dead = unpack(KEYS)
local group, consumer, min_idle, count, after, mine = unpack(ARGV)
local from = after == '-' and '-' or '(' .. after
local rows
if mine == '1' then
    rows = redis.call('XPENDING', stream, group, from, '+', count, consumer)
else
    rows = redis.call('XPENDING', stream, group, 'IDLE', min_idle, from, '+', count)
end

-- The lease of what is not in the stream any more cannot be renewed: it may be with a handler all the same, as long as its
-- consumer is heard of, see renew. Whether it is in our own hands, the caller knows.
local silent
local function is_silent(owner)
    if not silent then
        silent = {}
        for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
            local about = named(row)
            silent[about.name] = about.idle >= tonumber(min_idle)
        end
    end
    return silent[owner]
end

-- First the dead letters, which may fail for want of memory: nothing is moved then.
local trimmed = 0
local taken = {}
for _, row in ipairs(rows) do
    local id, owner, _, deliveries = unpack(row)
    local fields = entry(stream, id)
    local attempts = tonumber(redis.call('HGET', attempts_hash, id) or -1) or -1
    if fields or owner == consumer then
        taken[#taken + 1] = {id, fields or {}, deliveries + 1, attempts}
    elseif is_silent(owner) then
        append_dead_letter(dead, {
            position = id,
            stream = stream,
            error = 'the entry was trimmed away before it was handled',
            attempts = math.max(attempts, 0),
            consumer = consumer,
            aggregate = '',
        }, {}, 1)
        redis.call('HDEL', attempts_hash, id)
        redis.call('XACK', stream, group, id)
        trimmed = trimmed + 1
    end
end
for _, one in ipairs(taken) do
    if #one[2] > 0 then
        redis.call('XCLAIM', stream, group, consumer, 0, one[1], 'RETRYCOUNT', one[3], 'JUSTID')
    end
end
local go_on = #rows == tonumber(count) and rows[#rows][1] or ''
return {trimmed, go_on, taken}
)lua");

// XCLAIM removes entries that are not in the stream any more from what is pending, from Redis 7 on: nobody would hear of them
// again. So release and renew look first; renew, which is asked often and about many, without reading entries that may be
// large, unless something was deleted from the middle of the stream.
const script renew = with_prelude(R"lua(
local stream = KEYS[1]
local group, consumer = unpack(ARGV, 1, 2)
local about = named(redis.call('XINFO', 'STREAM', stream))
local first, deleted = about['first-entry'], about['max-deleted-entry-id'] -- which 6.2 does not know
local function exists(id)
    if first and deleted and not before(id, first[1]) and before(deleted, id) then
        return true
    end
    return entry(stream, id)
end
local lost = {}
local trimmed = false
for i = 3, #ARGV do
    local id = ARGV[i]
    if not pending(stream, group, id, consumer) then
        lost[#lost + 1] = id
    elseif exists(id) then
        redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
    else
        trimmed = true
    end
end
if trimmed then
    -- A look at what is pending behind everything: the consumer is heard of, which before 7.2 waiting for entries does not do.
    -- (With 5 at its end the position would mean ">".)
    local last = '18446744073709551615-18446744073709551614'
    redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', stream, last)
end
return lost
)lua");

const script release = with_prelude(R"lua(
local stream, attempts_hash = unpack(KEYS)
local group, consumer = unpack(ARGV, 1, 2)
local released = 0
for i = 3, #ARGV, 2 do
    local id, attempts = ARGV[i], ARGV[i + 1]
    if pending(stream, group, id, consumer) then
        redis.call('HSET', attempts_hash, id, attempts)
        if entry(stream, id) then
            redis.call('XCLAIM', stream, group, consumer, 0, id, 'TIME', 0, 'JUSTID')
        end
        released = released + 1
    end
end
return released
)lua");

const script reap = with_prelude(R"lua(
local stream = KEYS[1]
local group, consumer, min_idle = unpack(ARGV)
min_idle = tonumber(min_idle)
local reaped = 0
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local about = named(row)
    local chosen = about.name == consumer
    if min_idle >= 0 then
        chosen = about.name ~= consumer and about.idle >= min_idle
    end
    if chosen and about.pending == 0 then
        redis.call('XGROUP', 'DELCONSUMER', stream, group, about.name)
        reaped = reaped + 1
    end
end
return reaped
)lua");

const script make_group = with_prelude(R"lua(
local stream, generation = unpack(KEYS)
local group, start, fresh = unpack(ARGV)
local known = redis.call('GET', generation)
local answer = redis.pcall('XGROUP', 'CREATE', stream, group, start, 'MKSTREAM')
local made = type(answer) ~= 'table' or not answer.err
if not made and not string.find(answer.err, 'BUSYGROUP', 1, true) then
    error(answer)
end
if made or not known then
    known = fresh
    redis.call('SET', generation, fresh)
end
return {made and 1 or 0, known}
)lua");

const script watermark = with_prelude(R"lua(
local stream = KEYS[1]
local group = ARGV[1]
local oldest = redis.call('XPENDING', stream, group, '-', '+', 1)[1]
if oldest then
    return {1, oldest[1]}
end
for _, row in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local about = named(row)
    if about.name == group then
        return {0, about['last-delivered-id']}
    end
end
)lua");

const script take_tokens = with_prelude(R"lua(
local key = KEYS[1]
local interval = 1000000 / tonumber(ARGV[1]) -- µs
local burst, wanted = math.max(tonumber(ARGV[2]), 1), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- The time at which the next event would arrive if all so far had kept the rate; it may be ahead by the burst.
local limit = now + burst * interval
local stored = tonumber(redis.call('GET', key) or now) or now
local arrival = math.min(math.max(stored, now), limit)

local granted = math.min(math.floor((limit - arrival) / interval + 1e-6), wanted)
arrival = arrival + granted * interval
if granted > 0 or stored > limit then
    redis.call('SET', key, string.format('%.3f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
end
return {granted, math.max(math.ceil((arrival + interval - limit) / 1000), 0)}
)lua");

// What redrive and discard share, before the body of each.
static script on_dead_letter(std::string_view body) {
    return with_prelude(std::string(R"lua(
local dead, redrive_stream, parked = unpack(KEYS)
local id = ARGV[1]
local fields = entry(dead, id)
if not fields then
    return false
end
-- The dead letter's own fields, and where those of the original begin.
local about, from = {}, 1
for _, name in ipairs({
    'outbox_position', 'outbox_stream', 'outbox_error', 'outbox_attempts',
    'outbox_consumer', 'outbox_died_at', 'outbox_aggregate',
}) do
    if fields[from] == name then
        about[name] = fields[from + 1]
        from = from + 2
    end
end
local aggregate = about.outbox_aggregate or ''
local state, behind = standing(parked, aggregate)
local is_parked = state == 'dead' and behind == id
redis.call('XLEN', parked .. ':' .. aggregate) -- errors now, not when something is moved already
)lua").append(body));
}

const script redrive = on_dead_letter(R"lua(
if from > #fields then
    return {err = 'GONE the dead letter does not have the fields of the entry, so it cannot be redriven'}
end
local last = append(redrive_stream, {'outbox_position', about.outbox_position or id}, fields, from)
if is_parked then
    last = release(parked, aggregate, redrive_stream, last)
end
redis.call('XDEL', dead, id)
return last
)lua");

const script discard = on_dead_letter(R"lua(
if is_parked then
    release(parked, aggregate, redrive_stream)
end
redis.call('XDEL', dead, id)
return 1
)lua");

} // namespace outbox::detail

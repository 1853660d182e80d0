// What Redis does to trim one stream: it looks at the groups and cuts off in one step, so that nothing can be delivered, claimed
// or begin to read in between; and it does so only for the worker that has the sink.
#pragma once

namespace outbox {

// Keys: the stream; the sink's marker.
// Arguments: the marker as we wrote it; "consumed" or "limits"; the first ID that must stay in any case; how many entries are
// kept, or ""; the first ID that is young enough to be kept, or ""; how many entries may go now.
// Returns how many went; -1 when the marker is another one.
//
// Whole nodes of the stream go first, which is cheap, and up to a number. When no node can go as a whole, the rest is cut off to
// the entry: all of that is in the first node.
inline constexpr char trim_script[] = R"lua(
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
    return -1
end
local length = redis.call('XLEN', KEYS[1])
if length == 0 then
    return 0
end

-- IDs as text that sorts as they do
local function sortable(id)
    local ms, n = string.match(id, '^(%d+)-(%d+)$')
    return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #n) .. n
end
local function lower(a, b)
    if sortable(a) < sortable(b) then return a end
    return b
end
-- the next ID; a number in Lua is not wide enough for it
local function behind(id)
    local ms, n = string.match(id, '^(%d+)-(%d+)$')
    if n == '18446744073709551615' then return id end
    local head, nines = string.match(n, '^(%d-)(9*)$')
    local zeros = string.rep('0', #nines)
    if head == '' then return ms .. '-1' .. zeros end
    return ms .. '-' .. string.sub(head, 1, -2) .. string.format('%d', tonumber(string.sub(head, -1)) + 1) .. zeros
end

local bound = ARGV[3]
if ARGV[2] == 'consumed' then
    local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
    if #groups == 0 then
        return 0
    end
    for _, fields in ipairs(groups) do
        local group = {}
        for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
        bound = lower(bound, behind(group['last-delivered-id']))
        if group['pending'] > 0 then
            local pending = redis.call('XPENDING', KEYS[1], group['name'])
            if pending[2] then bound = lower(bound, pending[2]) end
        end
    end
end

-- cuts off what is below `upto`, at most so many
local function cut(upto, most)
    if most < 1 then
        return 0
    end
    local gone = redis.call('XTRIM', KEYS[1], 'MINID', '~', upto, 'LIMIT', most)
    if gone > 0 then
        return gone
    end
    local count = math.min(most, 100)
    local page = redis.call('XRANGE', KEYS[1], '-', '(' .. upto, 'COUNT', count + 1)
    if #page == 0 then
        return 0
    end
    if #page > count then upto = page[count + 1][1] end
    return redis.call('XTRIM', KEYS[1], 'MINID', '=', upto)
end

local most = tonumber(ARGV[6])
if ARGV[4] == '' and ARGV[5] == '' then
    return cut(bound, most)
end
local gone = 0
if ARGV[4] ~= '' then
    gone = cut(bound, math.min(most, length - tonumber(ARGV[4])))
end
if ARGV[5] ~= '' then
    gone = gone + cut(lower(bound, ARGV[5]), most - gone)
end
return gone
)lua";

} // namespace outbox

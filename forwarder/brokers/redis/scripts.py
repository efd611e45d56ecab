"""What happens on the Redis server: each script is one atomic step of a message's way.

Keys of a queue Q, beside its lists: ``forwarder:{Q}:unacked`` (hash: lease to
the item, byte for byte as it was popped), ``:homes`` (hash: lease to the list it
came from, where that is not Q itself), ``:leases`` (sorted set: lease to its
deadline in ms of the server's clock), ``:deliveries`` (hash: SHA-1 of the item
to its count), ``:seq``, ``:intake:<process>`` (list: popped while waiting, not
registered yet) and ``:intakes`` (sorted set: such a list to its deadline).
A lease is ``<seq>:<process>:<SHA-1 of the item>``: two identical items don't
collide, nor does a lease from before a server lost its last seconds.

An item is never decoded and encoded again here: cjson makes ``{}`` of ``[]``.
What may fail (a push) comes before what removes: a script that fails half-way
is not undone. The first argument is always the queue, but for those that take several.
"""

from __future__ import annotations

import functools
import hashlib

_QUEUE = """
local base = 'forwarder:{' .. ARGV[1] .. '}:'
local unacked, homes, leases = base .. 'unacked', base .. 'homes', base .. 'leases'
local deliveries, intakes = base .. 'deliveries', base .. 'intakes'
local function sha_of(lease) return string.sub(lease, -40) end
local function forget(lease)
    redis.call('ZREM', leases, lease)
    redis.call('HDEL', unacked, lease)
    redis.call('HDEL', homes, lease)
end
local function uncount(sha)  -- a count of 0 tells of deliveries that don't count
    local count = tonumber(redis.call('HGET', deliveries, sha))
    if count and count > 0 then redis.call('HINCRBY', deliveries, sha, -1) end
end
local function give_back(lease)
    local item = redis.call('HGET', unacked, lease)
    if item then
        redis.call('RPUSH', redis.call('HGET', homes, lease) or ARGV[1], item)
    end
    forget(lease)
    return item
end
"""

_CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

#: ARGV: most items, lease in ms, most bytes of an item, and of all but the last, process,
#: number of queues, the queues, then the lists to pop from: those of the first priority for every
#: queue, and so on.
#: Returns {place of the list, lease, count, 1 when it was delivered before, item} each; of an
#: item that is too large {place, lease, count, 0 or 1, nil, bytes, task id or nil}.
TAKE = (
    _CLOCK
    + """
local most, bytes_max, together = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local process, queues = ARGV[5], tonumber(ARGV[6])
local deadline = now + tonumber(ARGV[2])
local taken, bytes = {}, 0
local function queue_of(place) return ARGV[7 + place % queues] end
local function base_of(place) return 'forwarder:{' .. queue_of(place) .. '}:' end
local function take(list, place)
    while #taken < most and bytes < together do
        local item = redis.call('RPOP', list)
        if not item then return end
        local base, home, sha = base_of(place), ARGV[7 + queues + place], redis.sha1hex(item)
        local lease = redis.call('INCR', base .. 'seq') .. ':' .. process .. ':' .. sha
        redis.call('HSET', base .. 'unacked', lease, item)
        if home ~= queue_of(place) then redis.call('HSET', base .. 'homes', lease, home) end
        redis.call('ZADD', base .. 'leases', deadline, lease)
        local again = redis.call('HEXISTS', base .. 'deliveries', sha)
        local count = redis.call('HINCRBY', base .. 'deliveries', sha, 1)
        if #item > bytes_max then
            local id = string.match(item, '"id":%s*"([^"]+)"') or false
            taken[#taken + 1] = {place, lease, count, again, false, #item, id}
        else
            taken[#taken + 1] = {place, lease, count, again, item}
            bytes = bytes + #item
        end
    end
end
for place = 0, queues - 1 do take(base_of(place) .. 'intake:' .. process, place) end
for place = 0, #ARGV - 7 - queues do take(ARGV[7 + queues + place], place) end
if #taken == 0 then
    -- The caller waits next, into its intake lists: a peer empties them once they are overdue.
    for place = 0, queues - 1 do
        redis.call('ZADD', base_of(place) .. 'intakes', deadline, base_of(place) .. 'intake:' .. process)
    end
end
return taken
"""
)

#: ARGV: queue, lease. Returns 0 when there is no such lease.
ACK = (
    _QUEUE
    + """
local held = redis.call('ZREM', leases, ARGV[2])
if held == 1 then
    forget(ARGV[2])
    redis.call('HDEL', deliveries, sha_of(ARGV[2]))
end
return held
"""
)

#: ARGV: queue, lease, 1 when the delivery counts; then 1 when there was none, neither this one nor
#: an earlier one. Returns 0 when there is no such lease.
GIVE_BACK = (
    _QUEUE
    + """
if not give_back(ARGV[2]) then return 0 end
if ARGV[3] ~= '1' then uncount(sha_of(ARGV[2])) end
if ARGV[4] == '1' then redis.call('HDEL', deliveries, sha_of(ARGV[2])) end
return 1
"""
)

#: ARGV: queue, lease, dead letter list, entry; or the entry's text before and after the item,
#: which then stands between them as a JSON string. Returns 0 when there is no such lease.
PUT_ASIDE = (
    _QUEUE
    + """
local item = redis.call('HGET', unacked, ARGV[2])
if not item then return 0 end
redis.call('LPUSH', ARGV[3], ARGV[5] and ARGV[4] .. cjson.encode(item) .. ARGV[5] or ARGV[4])
forget(ARGV[2])
redis.call('HDEL', deliveries, sha_of(ARGV[2]))
return 1
"""
)

#: ARGV: queue, lease, the list at whose end the item goes, uncounted. Returns 0 when there is no such lease.
PUT_OFF = (
    _QUEUE
    + """
local item = redis.call('HGET', unacked, ARGV[2])
if not item then return 0 end
redis.call('LPUSH', ARGV[3], item)
forget(ARGV[2])
uncount(sha_of(ARGV[2]))
return 1
"""
)

#: ARGV: queue, lease in ms, leases. Returns those that are no more.
RENEW = (
    _QUEUE
    + _CLOCK
    + """
local missing = {}
for place = 3, #ARGV do
    -- Removed first: a server without memory takes no script whose first write adds something.
    if redis.call('ZREM', leases, ARGV[place]) == 1 then
        redis.call('ZADD', leases, now + tonumber(ARGV[2]), ARGV[place])
    else
        missing[#missing + 1] = ARGV[place]
    end
end
return missing
"""
)

#: ARGV: queue, lease in ms, process, item, its list, its count. For a server that lost data:
#: registers an item again, takes back the copy that rose from a snapshot, and returns the
#: new lease; nil when somebody else already holds that copy.
REOPEN = (
    _QUEUE
    + _CLOCK
    + """
local sha = redis.sha1hex(ARGV[4])
for _, lease in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    if sha_of(lease) == sha then return false end
end
local lease = redis.call('INCR', base .. 'seq') .. ':' .. ARGV[3] .. ':' .. sha
redis.call('HSET', unacked, lease, ARGV[4])
if ARGV[5] ~= ARGV[1] then redis.call('HSET', homes, lease, ARGV[5]) end
redis.call('ZADD', leases, now + tonumber(ARGV[2]), lease)
redis.call('HSET', deliveries, sha, ARGV[6])
redis.call('LREM', ARGV[5], -1, ARGV[4])
return lease
"""
)

#: ARGV: queue, most leases at a time, number of lists, the queue's lists. Returns how many items went back.
SWEEP = (
    _QUEUE
    + _CLOCK
    + """
local moved = 0
-- The oldest goes back last, also where this takes several calls: it is taken first.
for _, lease in ipairs(redis.call('ZRANGE', leases, now, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[2])) do
    if give_back(lease) then moved = moved + 1 end
end
for _, intake in ipairs(redis.call('ZRANGE', intakes, '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[2])) do
    while redis.call('LMOVE', intake, ARGV[1], 'LEFT', 'RIGHT') do moved = moved + 1 end
    redis.call('ZREM', intakes, intake)
end
-- Counts of items that somebody else removed belong to nothing once the queue is empty.
local left = redis.call('ZCARD', leases)
for place = 3, #ARGV do left = left + redis.call('LLEN', ARGV[place]) end
for _, intake in ipairs(redis.call('ZRANGE', intakes, 0, -1)) do left = left + redis.call('LLEN', intake) end
if left == 0 then redis.call('DEL', deliveries) end
return moved
"""
)

#: ARGV: age in s, entries to skip, entries to look at, separator of priority lists, separator's
#: steps as a JSON array, our queues. Gives back what stock workers left in kombu's index, which
#: all queues of a database share. Returns {entries looked at, items given back}.
#: An entry is ``[<item>, "<exchange>", "<routing key>"]``, so the item's own bytes go back.
SWEEP_STOCK = (
    _CLOCK
    + """
local separator, steps, ours = ARGV[4], cjson.decode(ARGV[5]), {}
for place = 6, #ARGV do ours[ARGV[place]] = true end
local function targets(exchange, key)
    if exchange == '' then return ours[key] and {key} or {} end
    local found = {}
    for _, member in ipairs(redis.call('SMEMBERS', '_kombu.binding.' .. exchange)) do
        local first = string.find(member, separator, 1, true)
        local last = first and string.find(member, separator, first + #separator, true)
        local queue = last and string.sub(member, last + #separator)
        if queue and ours[queue] and string.sub(member, 1, first - 1) == key then
            found[#found + 1] = queue
        end
    end
    return found
end
local function list_of(queue, item)
    local read, message = pcall(cjson.decode, item)
    local read_too, priority = pcall(function() return tonumber(message.properties.priority) end)
    local step = 0
    for _, candidate in ipairs(steps) do
        if read and read_too and priority and candidate <= priority then step = candidate end
    end
    return step == 0 and queue or queue .. separator .. string.format('%d', step)
end
local oldest = now / 1000 - tonumber(ARGV[1])
local tags = redis.call('ZRANGE', 'unacked_index', '-inf', oldest, 'BYSCORE', 'LIMIT', ARGV[2], ARGV[3])
local moved = 0
for _, tag in ipairs(tags) do
    local entry = redis.call('HGET', 'unacked', tag) or ''
    local item, route = string.match(entry, '^%[(.*), ("[^"]*", "[^"]*")%]$')
    local read, names = pcall(cjson.decode, '[' .. (route or '') .. ']')
    local queues = item and read and targets(names[1], names[2]) or {}
    for _, queue in ipairs(queues) do redis.call('RPUSH', list_of(queue, item), item) end
    if #queues > 0 then
        redis.call('ZREM', 'unacked_index', tag)
        redis.call('HDEL', 'unacked', tag)
        moved = moved + 1
    end
end
return {#tags, moved}
"""
)

#: ARGV: most bytes of an item, then lists. Returns {length, the item that is taken next} each; without an
#: item or with a larger one {length, ''}.
LOOK = """
local found = {}
for number = 2, #ARGV do
    local item = redis.call('LINDEX', ARGV[number], -1) or ''
    if #item > tonumber(ARGV[1]) then item = '' end
    found[number - 1] = {redis.call('LLEN', ARGV[number]), item}
end
return found
"""

#: ARGV: dead letter list, entry, list it goes to, item. Returns 0 when the entry is no more there.
REVIVE = """
if not redis.call('LPOS', ARGV[1], ARGV[2], 'RANK', -1) then return 0 end
redis.call('LPUSH', ARGV[3], ARGV[4])
return redis.call('LREM', ARGV[1], -1, ARGV[2])
"""


@functools.cache
def sha1(script: str) -> str:
    """Return the name under which the server knows a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()

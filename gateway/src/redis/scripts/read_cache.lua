-- Reads the newest messages of a lobby cache (see cache.lua).
--
-- KEYS    the list, and the string beside it
-- ARGV    epoch and sequence of the place behind which to begin, if the epoch is the cache's; most messages; most bytes
--
-- Returns {epoch, sequence of the first message, message, ...}; {epoch, the sequence that comes next} if there are none, and
-- {0, 0} if there is no cache.

-- Messages read at once: what the bounds then leave out was read for nothing.
local CHUNK = 256

local cache = read_cache(call('GET', KEYS[2]))
if not cache or call('LLEN', KEYS[1]) ~= cache.messages then
  return { 0, 0 }
end
trim_cache(cache, now_ms(), cache.messages, cache.bytes)

local messages_max, bytes_max = tonumber(ARGV[3]), tonumber(ARGV[4])
local next_seq = cache.first + cache.messages
local from = math.max(cache.first, next_seq - messages_max)
if tonumber(ARGV[1]) == cache.epoch then
  from = math.max(from, tonumber(ARGV[2]) + 1)
end

local newest, bytes = {}, 0
local stop = next_seq - 1
while stop >= from do
  local start = math.max(from, stop - CHUNK + 1)
  local part = call('LRANGE', KEYS[1], start - next_seq, stop - next_seq)
  for i = #part, 1, -1 do
    bytes = bytes + #part[i]
    if bytes > bytes_max then
      start = from
      break
    end
    newest[#newest + 1] = part[i]
  end
  stop = start - 1
end

local reply = { cache.epoch, next_seq - #newest }
for i = #newest, 1, -1 do
  reply[#reply + 1] = newest[i]
end
return reply

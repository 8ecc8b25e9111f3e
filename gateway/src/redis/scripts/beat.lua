-- A gateway says that it lives. Repeating it is harmless.
--
-- KEYS[1] the hash of beats
-- ARGV[1] the gateway    ARGV[2] its process (16 hex digits)    ARGV[3] ms for which it is believed
--
-- Returns 1 if the process was known, 0 if it was not: then what it holds is to be renewed.

local FORGET_AFTER_MS = 3600 * 1000

local now = now_ms()
local before = redis.call('HGET', KEYS[1], ARGV[1])
local is_known = before and string.match(before, '^%d+ (%x+)$') == ARGV[2]
speak(KEYS[1], ARGV[1], ARGV[2], now, tonumber(ARGV[3]), '')
if not is_known then
  -- Rare enough to look for those who are long gone.
  local beats = redis.call('HGETALL', KEYS[1])
  for i = 1, #beats, 2 do
    local last = string.match(beats[i + 1], '^(%d+) %x+')
    if last and now - tonumber(last) > FORGET_AFTER_MS then
      redis.call('HDEL', KEYS[1], beats[i])
    end
  end
end
return is_known and 1 or 0

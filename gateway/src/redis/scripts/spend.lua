-- Adds to allowances to send what gateways let pass, and says what debt each has then. A repetition adds it again; one
-- without costs is harmless.
--
-- KEYS[1..n]  one text per allowance: when it is whole again, in microseconds on this server's clock
-- ARGV[1]     ms for which an allowance is kept after it was whole
-- ARGV[2]     per allowance: what passed, since how long, the debt at least, the debt at most; four i64, big-endian, microseconds
--
-- Returns one integer per allowance: microseconds until it is whole.

local call, format = redis.call, string.format
local time = call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local kept = tonumber(ARGV[1])
local reply = {}
for i = 1, #KEYS do
  local cost, age, least, most = struct.unpack('>i8i8i8i8', ARGV[2], (i - 1) * 32 + 1)
  local known = tonumber(call('GET', KEYS[i]) or 0) or 0
  local whole_at = known
  if cost > 0 then
    whole_at = math.max(known, now - age) + cost
  end
  whole_at = math.min(math.max(whole_at, now + least), now + most)
  local debt = math.max(whole_at - now, 0)
  if (cost > 0 or debt > 0) and whole_at ~= known then
    call('SET', KEYS[i], format('%.0f', whole_at), 'PX', format('%.0f', math.ceil(debt / 1000) + kept))
  end
  reply[i] = debt
end
return reply

-- Remembers how far the archive is. Repeating it changes nothing.
--
-- KEYS[1..n]  what the archive is known to have committed, per conversation: "<epoch> <sequence>"
-- ARGV[1]     per conversation: the archive's end: epoch (u32), sequence (i64); big-endian

-- What fits on Lua's stack as the arguments of one call.
local CHUNK = 1000
local call, match, format = redis.call, string.match, string.format

local written = {}
for i = 1, #KEYS, CHUNK do
  local values = call('MGET', unpack(KEYS, i, math.min(i + CHUNK - 1, #KEYS)))
  for j = 1, #values do
    local at = i + j - 1
    local epoch, last = struct.unpack('>I4i8', ARGV[1], (at - 1) * 12 + 1)
    local kept_epoch, kept_last = match(values[j] or '', '^(%d+) (%d+)$')
    kept_epoch, kept_last = tonumber(kept_epoch or 0), tonumber(kept_last or 0)
    if epoch > kept_epoch or (epoch == kept_epoch and last > kept_last) then
      written[#written + 1] = KEYS[at]
      written[#written + 1] = format('%.0f %.0f', epoch, last)
    end
  end
end
for i = 1, #written, CHUNK do
  call('MSET', unpack(written, i, math.min(i + CHUNK - 1, #written)))
end
return redis.status_reply('OK')

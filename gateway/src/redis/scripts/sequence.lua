-- Gives sequences to one batch. Repeating it repeats the answer.
--
-- KEYS[1..n]    one counter per run: the last sequence given in that conversation, for whoever reads along
-- KEYS[n+1..2n] what the archive is known to have committed: "<epoch> <sequence>"
-- ARGV[1]       per run: number of messages (u32), and the archive's end: epoch (u32), sequence (i64); big-endian
--
-- Returns integers, per run: the first sequence; or 0, epoch and sequence of what was committed, if the end is behind it.

-- What fits on Lua's stack as the arguments of one call.
local CHUNK = 1000
local call, match, format = redis.call, string.match, string.format

local runs = #KEYS / 2
local kept = {}
for i = 1, runs, CHUNK do
  local values = call('MGET', unpack(KEYS, runs + i, runs + math.min(i + CHUNK - 1, runs)))
  for j = 1, #values do
    kept[i + j - 1] = values[j]
  end
end

local reply, written = {}, {}
for run = 1, runs do
  local count, epoch, last = struct.unpack('>I4I4i8', ARGV[1], (run - 1) * 16 + 1)
  local kept_epoch, kept_last = match(kept[run] or '', '^(%d+) (%d+)$')
  kept_epoch, kept_last = tonumber(kept_epoch or 0), tonumber(kept_last or 0)
  if kept_epoch > epoch or (kept_epoch == epoch and kept_last > last) then
    reply[#reply + 1] = 0
    reply[#reply + 1] = kept_epoch
    reply[#reply + 1] = kept_last
  else
    reply[#reply + 1] = last + 1
    written[#written + 1] = KEYS[run]
    written[#written + 1] = format('%.0f', last + count)
    if kept_epoch ~= epoch or kept_last ~= last then
      written[#written + 1] = KEYS[runs + run]
      written[#written + 1] = format('%.0f %.0f', epoch, last)
    end
  end
end
for i = 1, #written, CHUNK do
  call('MSET', unpack(written, i, math.min(i + CHUNK - 1, #written)))
end
return reply

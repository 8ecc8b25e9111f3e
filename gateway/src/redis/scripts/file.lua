-- Files messages for recipients: counts them, and keeps those of the users who are away. Repeating it changes nothing.
--
-- KEYS      per filing `counts` and `tallies` (see unread.lua), and if it has messages for the inbox also the inbox (list)
--           and its guard (hash: conversation -> highest sequence ever put into the inbox)
-- ARGV[1]   the filings: conversation (length as u8, text), number of sequences (u32), number of inbox messages (u32),
--           sequences (u64), per inbox message sequence (u64) and place in ARGV (u32); big-endian
-- ARGV[2]   most sequences in a tail        ARGV[3] seconds counts live
-- ARGV[4]   most messages in an inbox       ARGV[5] seconds an inbox lives
-- ARGV[6..] encoded messages

local filings = ARGV[1]
local tail_bytes_max, counts_ttl = tonumber(ARGV[2]) * 8, ARGV[3]
local inbox_max, inbox_ttl = tonumber(ARGV[4]), ARGV[5]

local function count(counts, tallies, conversation, from, seqs)
  local known = call('HMGET', tallies, 'state', conversation)
  local state = known[1]
  if not state then
    return
  end
  local tally = read_tally(known[2])
  local highest = tally.counted_to
  if tally.tail ~= '' then
    highest = math.max(highest, (struct.unpack('>I8', tally.tail, #tally.tail - 7)))
  end
  -- Ascending, so what is new is the end.
  local first = 0
  while first < seqs and struct.unpack('>I8', filings, from + first * 8) <= highest do
    first = first + 1
  end
  if first == seqs then
    return
  end
  tally.filed = tally.filed + seqs - first
  local tail = tally.tail .. string.sub(filings, from + first * 8, from + seqs * 8 - 1)
  if #tail > tail_bytes_max then
    tally.dropped = struct.unpack('>I8', tail, #tail - tail_bytes_max - 7)
    tail = string.sub(tail, -tail_bytes_max)
  end
  tally.tail = tail
  write_tally(counts, tallies, state, conversation, tally)
  if state == 'known' then
    call('EXPIRE', counts, counts_ttl)
    call('EXPIRE', tallies, counts_ttl)
  end
end

local function keep(inbox, guard, conversation, from, messages)
  local filed_to = tonumber(call('HGET', guard, conversation) or 0)
  local new = {}
  for i = 0, messages - 1 do
    local seq, place = struct.unpack('>I8I4', filings, from + i * 12)
    if seq > filed_to then
      filed_to = seq
      new[#new + 1] = ARGV[place]
    end
  end
  if #new > 0 then
    call('RPUSH', inbox, unpack(new))
    call('LTRIM', inbox, -inbox_max, -1)
    call('HSET', guard, conversation, filed_to)
    call('EXPIRE', inbox, inbox_ttl)
    call('EXPIRE', guard, inbox_ttl)
  end
end

local at, key = 1, 1
while at <= #filings do
  local conversation, seqs, messages
  conversation, seqs, messages, at = struct.unpack('>Bc0I4I4', filings, at)
  count(KEYS[key], KEYS[key + 1], conversation, at, seqs)
  at = at + seqs * 8
  key = key + 2
  if messages > 0 then
    keep(KEYS[key], KEYS[key + 1], conversation, at, messages)
    at = at + messages * 12
    key = key + 2
  end
end
return 1

-- Takes all counts of a user from the archive, after take_summary.lua said that they are unknown. Repeating it is harmless.
--
-- KEYS    counts, tallies (see unread.lua)
-- ARGV[1] the counts: conversation (length as u8, text), unread (u32), counted_to (u64); big-endian
-- ARGV[2] seconds counts live    ARGV[3] the seeding they were made for

local counts, tallies = KEYS[1], KEYS[2]
if call('HGET', tallies, 'state') ~= ARGV[3] then
  -- The question was lost with what was filed since: stays unknown, even if another was asked after that. Or they are known
  -- by now: another login's were as exact, and these may be older.
  return 0
end

local before = {}
local fields = call('HGETALL', tallies)
for i = 1, #fields, 2 do
  if fields[i] ~= 'state' then
    before[fields[i]] = fields[i + 1]
  end
end
call('DEL', counts, tallies)

local at = 1
while at <= #ARGV[1] do
  local conversation, unread, counted_to
  conversation, unread, counted_to, at = struct.unpack('>Bc0I4I8', ARGV[1], at)
  local tally = read_tally(before[conversation])
  before[conversation] = nil
  if not replace_tally(tally, unread, counted_to) then
    call('DEL', counts, tallies)
    return 0
  end
  write_tally(counts, tallies, 'known', conversation, tally)
end
-- Conversations not among them have begun since.
for conversation, packed in pairs(before) do
  write_tally(counts, tallies, 'known', conversation, read_tally(packed))
end
call('HSET', tallies, 'state', 'known')
call('EXPIRE', counts, ARGV[2])
call('EXPIRE', tallies, ARGV[2])
return 1

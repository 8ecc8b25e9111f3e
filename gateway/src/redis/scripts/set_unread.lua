-- Takes single counts from the archive after users have read. Repeating it is harmless.
--
-- KEYS    per count `counts` and `tallies` (see unread.lua)
-- ARGV[1] the counts: conversation (length as u8, text), unread (u32), counted_to (u64); big-endian

local at, key = 1, 1
while at <= #ARGV[1] do
  local conversation, unread, counted_to
  conversation, unread, counted_to, at = struct.unpack('>Bc0I4I8', ARGV[1], at)
  local counts, tallies = KEYS[key], KEYS[key + 1]
  key = key + 2
  local known = call('HMGET', tallies, 'state', conversation)
  if known[1] then
    local tally = read_tally(known[2])
    if replace_tally(tally, unread, counted_to) then
      write_tally(counts, tallies, known[1], conversation, tally)
    else
      -- Too far behind to be brought up to date: the next login asks the archive.
      call('DEL', counts, tallies)
    end
  end
end
return 1

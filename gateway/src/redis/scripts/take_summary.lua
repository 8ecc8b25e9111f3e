-- Reads a user's counts and takes the inbox. If the counts are unknown, what is filed from now on is remembered for
-- seed_unread.lua.
--
-- KEYS    counts, tallies (see unread.lua), inbox (list)
-- ARGV[1] seconds counts live    ARGV[2] seconds within which unknown counts must be handed in
-- ARGV[3] the seeding that begins if none is under way
--
-- Returns {`known` or the seeding under way, {conversation, count, ...}, {message, ...}}.

local counts, tallies, inbox = KEYS[1], KEYS[2], KEYS[3]
local state, unread = call('HGET', tallies, 'state'), {}
if state == 'known' then
  -- From the tallies, not from the counts: those are a copy for others.
  local fields = call('HGETALL', tallies)
  for i = 1, #fields, 2 do
    if fields[i] ~= 'state' then
      local _, said, filed = struct.unpack(HEAD, fields[i + 1])
      if said + filed > 0 then
        unread[#unread + 1] = fields[i]
        unread[#unread + 1] = said + filed
      end
    end
  end
  call('EXPIRE', counts, ARGV[1])
  call('EXPIRE', tallies, ARGV[1])
else
  -- `seeding` is what earlier versions wrote: what has been filed since is remembered, but nobody can name it.
  if not state or state == 'seeding' then
    state = ARGV[3]
    call('HSET', tallies, 'state', state)
  end
  call('EXPIRE', tallies, ARGV[2])
end
local messages = call('LRANGE', inbox, 0, -1)
if #messages > 0 then
  call('DEL', inbox)
end
return { state, unread, messages }

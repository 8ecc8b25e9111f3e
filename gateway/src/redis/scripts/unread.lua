-- Shared by the scripts that count unread messages; their text follows this one.
--
-- A user has two hashes: `counts` (conversation -> count, for everybody to read, no field at zero) and `tallies`, which is
-- ours: field `state` is `known` or, between the question for the counts and their answer, the seeding under way: a random
-- number, so that an answer is not taken for that to a later question; without it the user's counts are unknown and nothing
-- is counted. A conversation's field holds big-endian u64s: counted_to (up to here the archive was asked, 0 if never), unread
-- (what it said), filed (how many were filed above counted_to), dropped (the highest of those that is no longer in the
-- tail), and the tail: the newest of them, ascending.
-- What must hold: a known user's count is unread + filed.

local call = redis.call
local HEAD = '>I8I8I8I8'
local HEAD_BYTES = 32

local function read_tally(packed)
  if not packed then
    return { counted_to = 0, unread = 0, filed = 0, dropped = 0, tail = '' }
  end
  local counted_to, unread, filed, dropped = struct.unpack(HEAD, packed)
  local tail = string.sub(packed, HEAD_BYTES + 1)
  return { counted_to = counted_to, unread = unread, filed = filed, dropped = dropped, tail = tail }
end

local function pack_tally(tally)
  return struct.pack(HEAD, tally.counted_to, tally.unread, tally.filed, tally.dropped) .. tally.tail
end

-- Takes one count from the archive. It may be older than what is known: both a watermark and the newest sequence only move
-- forward, so the greater `counted_to` is the newer, and at the same one the fewer unread.
-- Returns whether it could be brought up to date.
local function replace_tally(tally, unread, counted_to)
  if counted_to < tally.counted_to then
    return true
  end
  if counted_to == tally.counted_to and counted_to > 0 then
    tally.unread = math.min(tally.unread, unread)
    return true
  end
  if counted_to < tally.dropped then
    return false
  end
  local first = 1
  while first < #tally.tail and struct.unpack('>I8', tally.tail, first) <= counted_to do
    first = first + 8
  end
  tally.tail = string.sub(tally.tail, first)
  tally.filed = #tally.tail / 8
  tally.counted_to = counted_to
  tally.unread = unread
  return true
end

local function write_tally(counts, tallies, state, conversation, tally)
  call('HSET', tallies, conversation, pack_tally(tally))
  if state == 'known' then
    local count = tally.unread + tally.filed
    if count > 0 then
      call('HSET', counts, conversation, count)
    else
      call('HDEL', counts, conversation)
    end
  end
end

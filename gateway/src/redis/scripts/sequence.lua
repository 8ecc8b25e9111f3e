-- Allocates sequences for one batch. Repeating it repeats the answer.
--
-- KEYS[1]   hash: message id -> "<sequence> <counter's key>", allocations the archive is not known to hold
-- KEYS[2..] one counter per run: the last sequence given in that conversation
-- ARGV[1]   ids (16 bytes each) to take out of KEYS[1]
-- ARGV[2]   ids of all runs, in order
-- ARGV[3]   per run: number of ids (u32), floor (i64, -1 if unknown); big-endian
--
-- Returns integers, per run: -1 if a floor is needed; or the first sequence, if the run's sequences are consecutive; or
-- 0 and then every sequence.

-- What fits on Lua's stack as the arguments of one call.
local CHUNK = 1000
local ID = 16
local call, sub, match, format = redis.call, string.sub, string.match, string.format

-- Calls `command key` with the items of a list, so many at a time.
local function spread(command, key, items)
  for i = 1, #items, CHUNK do
    call(command, key, unpack(items, i, math.min(i + CHUNK - 1, #items)))
  end
end

local function split(ids)
  local list = {}
  for i = 1, #ids / ID do
    list[i] = sub(ids, (i - 1) * ID + 1, i * ID)
  end
  return list
end

local pending_key = KEYS[1]
spread('HDEL', pending_key, split(ARGV[1]))

local ids = split(ARGV[2])
local pending = {}
for i = 1, #ids, CHUNK do
  local values = call('HMGET', pending_key, unpack(ids, i, math.min(i + CHUNK - 1, #ids)))
  for j = 1, #values do
    pending[i + j - 1] = values[j]
  end
end
local counters = {}
for i = 2, #KEYS, CHUNK do
  local values = call('MGET', unpack(KEYS, i, math.min(i + CHUNK - 1, #KEYS)))
  for j = 1, #values do
    counters[i + j - 1] = tonumber(values[j] or nil)
  end
end

-- The highest pending sequence of each counter. Looked at only where a counter was lost: what it gave before may not be in
-- the archive yet, and so be above the floor.
local highest_pending
local function pending_above(key)
  if not highest_pending then
    highest_pending = {}
    local all = call('HVALS', pending_key)
    for i = 1, #all do
      local seq, counter = match(all[i], '^(%d+) (.+)$')
      if seq then
        highest_pending[counter] = math.max(highest_pending[counter] or 0, tonumber(seq))
      end
    end
  end
  return highest_pending[key] or 0
end

local reply, allocated, raised = {}, {}, {}
local at = 0
for run = 2, #KEYS do
  local key = KEYS[run]
  local count, floor = struct.unpack('>I4i8', ARGV[3], (run - 2) * 12 + 1)

  -- A message of another conversation under the same id is no repetition.
  local given, found, last = {}, 0, counters[run]
  for i = 1, count do
    local value = pending[at + i]
    if value then
      local seq, counter = match(value, '^(%d+) (.+)$')
      if counter == key then
        found = found + 1
        given[i] = tonumber(seq)
      end
    end
  end

  if not last and floor < 0 then
    -- Nothing says how far the archive is: repeat what was given before, if that is all that is asked.
    if found < count then
      reply[#reply + 1] = -1
      given = nil
    end
  else
    if not last then
      last = pending_above(key)
    end
    last = math.max(last, floor)
    for i = 1, count do
      last = math.max(last, given[i] or 0)
    end
    local fresh = {}
    for i = 1, count do
      if not given[i] then
        local id = ids[at + i]
        if not fresh[id] then
          last = last + 1
          fresh[id] = last
          allocated[#allocated + 1] = id
          allocated[#allocated + 1] = format('%.0f ', last) .. key
        end
        given[i] = fresh[id]
      end
    end
    if last ~= counters[run] then
      raised[#raised + 1] = key
      raised[#raised + 1] = format('%.0f', last)
    end
  end

  if given then
    local consecutive = true
    for i = 2, count do
      if given[i] ~= given[i - 1] + 1 then
        consecutive = false
        break
      end
    end
    if consecutive then
      reply[#reply + 1] = given[1] or 1
    else
      reply[#reply + 1] = 0
      for i = 1, count do
        reply[#reply + 1] = given[i]
      end
    end
  end
  at = at + count
end

spread('HSET', pending_key, allocated)
for i = 1, #raised, CHUNK do
  call('MSET', unpack(raised, i, math.min(i + CHUNK - 1, #raised)))
end
return reply

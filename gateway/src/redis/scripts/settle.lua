-- Remembers how far the archive is, and adds to lobby caches (see cache.lua) what it committed. Repeating it changes nothing.
--
-- KEYS[1..n]  what the archive is known to have committed, per conversation: "<epoch> <sequence>"
-- KEYS[n+1..] per run of messages: the cache's list, and the string beside it
-- ARGV[1]     per conversation: the archive's end: epoch (u32), sequence (i64); big-endian
-- ARGV[2]     per run: epoch (u32), sequence of the first message (u64), number of messages (u32), and the bounds of the
--             cache: messages (u32), bytes (u32), ms a message is kept (u32)
-- ARGV[3..]   the messages of all runs, encoded

-- What fits on Lua's stack as the arguments of one call.
local CHUNK = 1000
-- Messages that are added one after the other become one lot up to this part of each of the bounds: so there are some
-- hundreds of lots at most.
local LOTS_BY_TIME, LOTS_BY_SIZE = 64, 16
local match, format = string.match, string.format

local function settle(conversations)
  local written = {}
  for i = 1, conversations, CHUNK do
    local values = call('MGET', unpack(KEYS, i, math.min(i + CHUNK - 1, conversations)))
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
end

local function add_lot(cache, now, messages, bytes, messages_max, bytes_max)
  local added, lot_messages, lot_bytes = now, messages, bytes
  if cache.lots ~= '' then
    local before, its_messages, its_bytes = struct.unpack(LOT, cache.lots, #cache.lots - LOT_BYTES + 1)
    its_messages, its_bytes = its_messages + messages, its_bytes + bytes
    local fits = its_messages <= messages_max / LOTS_BY_SIZE and its_bytes <= bytes_max / LOTS_BY_SIZE
    if fits and now - before <= cache.keep_ms / LOTS_BY_TIME then
      added, lot_messages, lot_bytes = before, its_messages, its_bytes
      cache.lots = string.sub(cache.lots, 1, -LOT_BYTES - 1)
    end
  end
  cache.lots = cache.lots .. struct.pack(LOT, added, lot_messages, lot_bytes)
  cache.messages = cache.messages + messages
  cache.bytes = cache.bytes + bytes
end

-- Adds the messages ARGV[from..to].
local function add(list, info, now, from, to, epoch, first, messages_max, bytes_max, keep_ms)
  local function begin(at)
    return { epoch = epoch, first = first + at - from, messages = 0, bytes = 0, lots = '' }
  end

  local cache = read_cache(call('GET', info))
  if cache and epoch < cache.epoch then
    return
  end
  local new = from
  if cache and epoch == cache.epoch and first <= cache.first + cache.messages then
    new = from + cache.first + cache.messages - first
    if new > to then
      return
    end
  else
    cache = begin(from)
  end

  -- What would have to leave at once does not come.
  local fit, bytes = to + 1, 0
  while fit > new and to - fit + 2 <= messages_max and bytes + #ARGV[fit - 1] <= bytes_max do
    fit = fit - 1
    bytes = bytes + #ARGV[fit]
  end
  if fit > to then
    call('DEL', list, info)
    return
  end
  if fit > new then
    cache = begin(fit)
  end

  local length
  for i = fit, to, CHUNK do
    length = call('RPUSH', list, unpack(ARGV, i, math.min(i + CHUNK - 1, to)))
  end
  local added = to - fit + 1
  if length ~= cache.messages + added then
    -- The cache begins anew, or somebody else changed or lost the list.
    cache = begin(fit)
  end
  cache.keep_ms = keep_ms
  add_lot(cache, now, added, bytes, messages_max, bytes_max)
  trim_cache(cache, now, messages_max, bytes_max)
  if length ~= cache.messages then
    call('LTRIM', list, -cache.messages, -1)
  end
  call('PEXPIRE', list, keep_ms)
  call('SET', info, pack_cache(cache), 'PX', keep_ms)
end

local conversations = #ARGV[1] / 12
settle(conversations)

local key, message, at = conversations + 1, 3, 1
local now = ARGV[2] ~= '' and now_ms()
while at <= #ARGV[2] do
  local epoch, first, messages, messages_max, bytes_max, keep_ms
  epoch, first, messages, messages_max, bytes_max, keep_ms, at = struct.unpack('>I4I8I4I4I4I4', ARGV[2], at)
  local last = message + messages - 1
  add(KEYS[key], KEYS[key + 1], now, message, last, epoch, first, messages_max, bytes_max, keep_ms)
  key, message = key + 2, last + 1
end
return redis.status_reply('OK')

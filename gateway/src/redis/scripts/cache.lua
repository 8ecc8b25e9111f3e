-- Shared by the scripts that use lobby caches; their text follows this one.
--
-- A cache is a list of encoded messages, oldest first, for everybody to read, and a string beside it, which is ours:
-- big-endian epoch (u32), sequence of the first message (u64), messages (u32), bytes (u32), ms they are kept (u32); and, oldest
-- first, its lots: when the first message of it was added (Unix ms, u64), messages (u32), bytes (u32). A lot is what is dropped
-- at once: messages that were added together, or shortly after one another.
-- What must hold: the list has no gap, and the messages the string says, or else it is not believed.

local call = redis.call
local HEAD, HEAD_BYTES = '>I4I8I4I4I4', 24
local LOT, LOT_BYTES = '>I8I4I4', 16

local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What the string says; nil if there is none, or none of ours.
local function read_cache(packed)
  if not packed or #packed <= HEAD_BYTES or (#packed - HEAD_BYTES) % LOT_BYTES ~= 0 then
    return nil
  end
  local epoch, first, messages, bytes, keep_ms = struct.unpack(HEAD, packed)
  local lots = string.sub(packed, HEAD_BYTES + 1)
  return { epoch = epoch, first = first, messages = messages, bytes = bytes, keep_ms = keep_ms, lots = lots }
end

local function pack_cache(cache)
  local head = struct.pack(HEAD, cache.epoch, cache.first, cache.messages, cache.bytes, cache.keep_ms)
  return head .. cache.lots
end

-- Drops the oldest lots, until the oldest is not too old and the rest within the bounds.
local function trim_cache(cache, now, messages_max, bytes_max)
  local at = 1
  while at < #cache.lots do
    local added, messages, bytes = struct.unpack(LOT, cache.lots, at)
    if added + cache.keep_ms > now and cache.messages <= messages_max and cache.bytes <= bytes_max then
      break
    end
    cache.first = cache.first + messages
    cache.messages = cache.messages - messages
    cache.bytes = cache.bytes - bytes
    at = at + LOT_BYTES
  end
  cache.lots = string.sub(cache.lots, at)
end

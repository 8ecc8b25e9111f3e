-- Who lives: what beat.lua, change_presence.lua and presence.lua share.
--
-- The hash of beats: gateway -> "<last sign of life, Unix ms> <process, hex>", and with a "?" behind it as long as the
-- gateway has not been told that it was unknown; `newest`, the last sign of life of any of them; `resumed`, the first one
-- after a time when nobody gave any; `began`, the first one of all. Ids of gateways never contain a colon, so `:newest`,
-- `:resumed` and `:began` are none.
--
-- A gateway is judged by the others: while nobody beats, it is the store that was away, and everybody is believed.

local NEWEST, RESUMED, BEGAN = ':newest', ':resumed', ':began'

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether the hash is so young that a gateway may not have spoken since it began: it is new, or everything was lost.
local function is_young(beats, now, gateway_ttl_ms)
  return now - tonumber(redis.call('HGET', beats, BEGAN) or now) < gateway_ttl_ms / 2
end

-- A gateway's own process has spoken.
local function speak(beats, gateway, process, now, gateway_ttl_ms, mark)
  local newest = tonumber(redis.call('HGET', beats, NEWEST) or '0')
  if now - newest > gateway_ttl_ms / 2 then
    redis.call('HSET', beats, RESUMED, string.format('%.0f', now))
  end
  redis.call('HSETNX', beats, BEGAN, string.format('%.0f', now))
  redis.call('HSET', beats, gateway, string.format('%.0f %s%s', now, process, mark), NEWEST, string.format('%.0f', now))
end

-- A function that says whether a place of that gateway and process holds anybody.
local function judge(beats, now, gateway_ttl_ms)
  local known = {}
  local newest = tonumber(redis.call('HGET', beats, NEWEST) or '0')
  local resumed = tonumber(redis.call('HGET', beats, RESUMED) or '0')
  return function(gateway, process)
    local beat = known[gateway]
    if beat == nil then
      local last, holder = string.match(redis.call('HGET', beats, gateway) or '', '^(%d+) (%x+)')
      beat = last and { tonumber(last), holder } or false
      known[gateway] = beat
    end
    -- One that never beat is of another release; its places end by themselves.
    if not beat then
      return true
    end
    if process and process ~= beat[2] then
      return false
    end
    return now - newest > gateway_ttl_ms / 2 or now - math.max(beat[1], resumed) <= gateway_ttl_ms
  end
end


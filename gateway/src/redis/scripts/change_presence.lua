-- Applies presence changes of one gateway, in order. Repeating it is harmless.
--
-- KEYS[1]   the hash of beats, see beats.lua
-- KEYS[2..] per change the user's hash: `gatewayId` (the gateway of the latest session), `device:<device>` and, where only a
--           renewal is known, `gateway:<gateway>`, both "<gateway>|<session, hex>|<valid until, Unix ms>|<process, hex>"
-- ARGV[1]   the gateway    ARGV[2] ms until what is not renewed is over
-- ARGV[3]   the changes: `H`ere, `G`one or `R`enewed, device (length as u8, text), session (16 hex digits)
-- ARGV[4]   the gateway's process (16 hex digits)    ARGV[5] ms for which a gateway is believed
--
-- Each place carries its own end: the hash of a user lives on while one device is renewed, others may have died since.

local call = redis.call
local gateway, ttl_ms, process = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local now = now_ms()

-- Whoever changes something lives, also before its first beat; that one will hear that it was unknown.
local before = string.match(call('HGET', KEYS[1], gateway) or '', '^%d+ (%x+)')
if before ~= process then
  speak(KEYS[1], gateway, process, now, tonumber(ARGV[5]), '?')
end

local function place(session)
  return string.format('%s|%s|%.0f|%s', gateway, session, now + ttl_ms, process)
end

-- The live places of a user as {field, gateway, session, until}; takes out those that are over.
local function live_places(key)
  local places = {}
  local fields = call('HGETALL', key)
  for i = 1, #fields, 2 do
    local held_by, session, valid_until = string.match(fields[i + 1], '^([^|]+)|(%x+)|(%d+)|?%x*$')
    if held_by then
      if tonumber(valid_until) > now then
        places[#places + 1] = { fields[i], held_by, session, tonumber(valid_until) }
      else
        call('HDEL', key, fields[i])
      end
    end
  end
  return places
end

local at = 1
for i = 2, #KEYS do
  local key = KEYS[i]
  local change, device, session
  change, device, session, at = struct.unpack('>c1Bc0c16', ARGV[3], at)
  local field = 'device:' .. device
  local places = live_places(key)
  if change == 'H' then
    call('HSET', key, 'gatewayId', gateway, field, place(session))
    call('PEXPIRE', key, ttl_ms)
  elseif change == 'G' then
    local latest
    for _, held in ipairs(places) do
      if held[1] == field and held[2] == gateway and held[3] == session then
        call('HDEL', key, field)
      elseif not latest or held[4] > latest[4] then
        latest = held
      end
    end
    if latest then
      call('HSET', key, 'gatewayId', latest[2])
    else
      call('DEL', key)
    end
  else
    local renewed = false
    for _, held in ipairs(places) do
      if held[2] == gateway and string.sub(held[1], 1, 7) == 'device:' then
        call('HSET', key, held[1], place(held[3]))
        renewed = true
      end
    end
    if not renewed then
      -- The record was lost. Which devices there are is not known here, but that there are some is.
      call('HSET', key, 'gateway:' .. gateway, place('0'))
    end
    call('HSETNX', key, 'gatewayId', gateway)
    call('PEXPIRE', key, ttl_ms)
  end
end
return 1

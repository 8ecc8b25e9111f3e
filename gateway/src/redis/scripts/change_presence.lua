-- Applies presence changes of one gateway, in order. Repeating it is harmless.
--
-- KEYS[1]   the hash of beats, see beats.lua
-- KEYS[2..] per change the user's hash: `gatewayId` (the gateway of the latest session, none while the user is away) and
--           `device:<device>`: "<gateway>|<session>|<valid until, Unix ms>|<process>|<attachment>|<lobbies watched>", numbers
--           but the time in hex; without a gateway the connection has ended and the session waits to be resumed
-- ARGV[1]   the gateway    ARGV[2] ms until what is not renewed is over    ARGV[3] ms for which a session waits
-- ARGV[4]   the changes: `H`ere, `G`one or `R`enewed, device (length as u8, text), session, attachment (16 hex digits each),
--           lobbies (length as u16, text joined by commas)
-- ARGV[5]   the gateway's process (16 hex digits)    ARGV[6] ms for which a gateway is believed
-- ARGV[7]   ms by which a login must be earlier than the one that has the device, to be too late
--
-- Returns one text per change: empty; `T<gateway>|<attachment>` if the device was taken from that connection; `L` if a
-- renewed session was not known, or only an earlier connection of its device; `X` if a later one has the device (well later, for
-- `H`), and nothing was changed.
--
-- Each place carries its own end: the hash of a user lives on while one device is renewed, others may have died since.

local call = redis.call
local gateway, ttl_ms, grace_ms, process = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5]
local late_login_ms = tonumber(ARGV[7])
local now = now_ms()

-- Whoever changes something lives, also before its first beat; that one will hear that it was unknown.
local before = string.match(call('HGET', KEYS[1], gateway) or '', '^%d+ (%x+)')
if before ~= process then
  speak(KEYS[1], gateway, process, now, tonumber(ARGV[6]), '?')
end

local function place(held_by, session, valid_ms, attachment, watching)
  return string.format('%s|%s|%.0f|%s|%s|%s', held_by, session, now + valid_ms, process, attachment, watching)
end

-- The places of a user that are not over, by field; takes out the others.
local function read_places(key)
  local places = {}
  local fields = call('HGETALL', key)
  for i = 1, #fields, 2 do
    local held_by, session, valid_until, rest = string.match(fields[i + 1], '^([^|]*)|(%x+)|(%d+)|?(.*)$')
    if held_by then
      if tonumber(valid_until) > now then
        local attachment, watching = string.match(rest, '^%x*|(%x*)|(.*)$')
        places[fields[i]] = {
          gateway = held_by, session = session, valid_until = tonumber(valid_until),
          attachment = attachment or '', watching = watching or '',
        }
      else
        call('HDEL', key, fields[i])
      end
    end
  end
  return places
end

-- An attachment's first eleven digits are the time of its login in ms. Zero for one of an older release.
local function login_ms(attachment)
  return tonumber(string.sub(attachment, 1, 11), 16) or 0
end

local function here(key, field, held, session, attachment, watching)
  if held and held.gateway ~= '' and login_ms(held.attachment) > login_ms(attachment) + late_login_ms then
    return 'X'
  end
  call('HSET', key, 'gatewayId', gateway, field, place(gateway, session, ttl_ms, attachment, watching))
  call('PEXPIRE', key, ttl_ms)
  if held and held.gateway ~= '' and held.attachment ~= attachment then
    return 'T' .. held.gateway .. '|' .. held.attachment
  end
  return ''
end

local function renewed(key, field, held, session, attachment, watching)
  -- Attachments grow with time and are of one length. An earlier one here means that the store went back.
  if held and held.attachment > attachment then
    return 'X'
  end
  local is_known = held and held.attachment == attachment
  call('HSET', key, field, place(gateway, session, ttl_ms, attachment, watching))
  call(held and not is_known and 'HSET' or 'HSETNX', key, 'gatewayId', gateway)
  call('PEXPIRE', key, ttl_ms)
  return is_known and '' or 'L'
end

local function gone(key, field, places, attachment)
  local held = places[field]
  if not held or held.attachment ~= attachment or held.gateway == '' then
    return ''
  end
  call('HSET', key, field, place('', held.session, grace_ms, attachment, held.watching))
  local latest
  for other, place_there in pairs(places) do
    local is_later = not latest or place_there.valid_until > latest.valid_until
    if other ~= field and place_there.gateway ~= '' and is_later then
      latest = place_there
    end
  end
  if latest then
    call('HSET', key, 'gatewayId', latest.gateway)
  else
    call('HDEL', key, 'gatewayId')
    call('PEXPIRE', key, grace_ms)
  end
  return ''
end

local reply, at = {}, 1
for i = 2, #KEYS do
  local key = KEYS[i]
  local change, device, session, attachment, watching
  change, device, session, attachment, watching, at = struct.unpack('>c1Bc0c16c16Hc0', ARGV[4], at)
  local field = 'device:' .. device
  local places = read_places(key)
  if change == 'H' then
    reply[i - 1] = here(key, field, places[field], session, attachment, watching)
  elseif change == 'R' then
    reply[i - 1] = renewed(key, field, places[field], session, attachment, watching)
  else
    reply[i - 1] = gone(key, field, places, attachment)
  end
end
return reply

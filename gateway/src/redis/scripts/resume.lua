-- What a session watched, if it can be gone on with. Changes nothing.
--
-- KEYS[1] the user's hash, see change_presence.lua    ARGV[1] the device's field    ARGV[2] the session (16 hex digits)
--
-- Returns the lobbies joined by commas, or nothing.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local session, valid_until, watching = string.match(held, '^[^|]*|(%x+)|(%d+)|%x*|%x*|(.*)$')
if session == ARGV[2] and tonumber(valid_until) > now then
  return watching
end
return false

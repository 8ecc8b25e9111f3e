-- Says where users are.
--
-- KEYS[1]   the hash of beats, see beats.lua
-- KEYS[2..] one hash per user, see change_presence.lua
-- ARGV[1]   ms for which a gateway is believed
--
-- Returns one text per user: the gateways that hold a live session, joined by commas, behind a "?" if some may be unknown.

local now = now_ms()
local lives = judge(KEYS[1], now, tonumber(ARGV[1]))
local uncertain = is_young(KEYS[1], now, tonumber(ARGV[1])) and '?' or ''
local reply = {}
for i = 2, #KEYS do
  local gateways, seen = {}, {}
  local values = redis.call('HVALS', KEYS[i])
  for j = 1, #values do
    local gateway, valid_until, process = string.match(values[j], '^([^|]+)|%x+|(%d+)|?(%x*)')
    if gateway and tonumber(valid_until) > now and not seen[gateway] and lives(gateway, process ~= '' and process) then
      seen[gateway] = true
      gateways[#gateways + 1] = gateway
    end
  end
  reply[i - 1] = uncertain .. table.concat(gateways, ',')
end
return reply

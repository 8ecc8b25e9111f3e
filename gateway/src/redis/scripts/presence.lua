-- Says where users are.
--
-- KEYS one hash per user, see change_presence.lua
--
-- Returns one text per user: the gateways that hold a live session, joined by commas.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
for i = 1, #KEYS do
  local gateways, seen = {}, {}
  local values = redis.call('HVALS', KEYS[i])
  for j = 1, #values do
    local gateway, valid_until = string.match(values[j], '^([^|]+)|%x+|(%d+)$')
    if gateway and tonumber(valid_until) > now and not seen[gateway] then
      seen[gateway] = true
      gateways[#gateways + 1] = gateway
    end
  end
  reply[i] = table.concat(gateways, ',')
end
return reply

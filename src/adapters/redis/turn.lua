local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = tonumber(ARGV[1])
local lapsed = 0
while true do
  local first = redis.call('ZRANGEBYSCORE', KEYS[1], 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  local score = tonumber(first[2])
  if not score or score > mine then
    return {0, lapsed}
  elseif score == mine then
    return {1, lapsed}
  end
  local ahead, good = first[1]:match('^(%d+):(%d+)$')
  if good and tonumber(good) > now then
    local room = redis.call('ZCOUNT', KEYS[1], 0, '+inf') < tonumber(ARGV[2])
      or redis.call('ZCOUNT', KEYS[1], ARGV[1], ARGV[1]) > 0
    return {room and 2 or 3, lapsed, ahead}
  end
  redis.call('ZREM', KEYS[1], first[1])
  lapsed = lapsed + 1
end

if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
local time = redis.call('TIME')
local good = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[1], string.format('%s:%.0f', ARGV[1], good))
local gone = good + tonumber(ARGV[3])
if redis.call('PEXPIRETIME', KEYS[1]) < gone then
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', gone))
end
return 1

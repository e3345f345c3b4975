redis.call('ZREMRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[1])
redis.call('ZADD', KEYS[1], -1 - tonumber(ARGV[1]), ARGV[1])
local ended = redis.call('ZCOUNT', KEYS[1], '-inf', '(0')
if ended > tonumber(ARGV[2]) then
  redis.call('ZREMRANGEBYRANK', KEYS[1], ARGV[2], ended - 1)
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1

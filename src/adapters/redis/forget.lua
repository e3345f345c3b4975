local value = redis.pcall('GET', KEYS[1])
local kind = '?'
if value == false then
  return false
elseif type(value) == 'table' then
  if value.err:sub(1, 9) ~= 'WRONGTYPE' then
    return value
  end
elseif value == '1' or value == 'F' then
  kind = value
elseif value:sub(1, 2) == 'P.' then
  kind = 'P'
end
if ARGV[1]:find(kind, 1, true) then
  redis.call('DEL', KEYS[1])
end
return kind

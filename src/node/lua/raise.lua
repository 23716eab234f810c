-- Accepts a higher fence where the lock is held by whoever asks. While it is, nobody else moves the counter. Runs inside of
-- strictly.lua, which has read the `marker`.
--
-- KEYS[1]  the lock key
-- KEYS[2]  the counter of its resource
-- ARGV[1]  the value, compared whole
-- ARGV[2]  the fence: whole, below 2^53
-- ARGV[3]  for how many milliseconds the counter is kept
--
-- Returns 1 if the fence is accepted, 2 and the counter if it is not above that, 0 if the key is missing, -1 if another value
-- stands.

local value = redis.call('GET', KEYS[1])

if value ~= ARGV[1] then
  return value and -1 or 0
end

local counter = redis.call('GET', KEYS[2]) or marker.high_water

if marker.floor ~= counter and tonumber(marker.floor) > tonumber(counter) then
  counter = marker.floor
end

local fence = tonumber(ARGV[2])

if fence <= tonumber(counter) then
  return { 2, counter }
end

redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if fence > tonumber(marker.high_water) then
  redis.call('HSET', marker.key, 'high_water', ARGV[2])
end
return 1

-- Takes a lock if it is free, and accepts the fence that comes with it if that is above all that were accepted before. Runs
-- inside of strictly.lua, which has read the `marker`.
--
-- KEYS[1]  the lock key
-- KEYS[2]  the counter of its resource: the largest fence that was accepted
-- ARGV[1]  the value
-- ARGV[2]  how long the key lives, in milliseconds
-- ARGV[3]  the fence: whole, below 2^53, and never made into a string here, which would round it
-- ARGV[4]  for how many milliseconds the counter is kept; after that the high-water mark of the namespace stands for it
-- ARGV[5]  how far ahead of this server's clock a fence may be, in microseconds: a client whose clock is a century ahead would
--          make all clocks useless. The one right above the counter is always fine.
--
-- Returns 1 if the key is taken and the fence accepted; else 2 (only the key) or 3 (the key was there), and the counter.

local counter = redis.call('GET', KEYS[2]) or marker.high_water

if tonumber(marker.floor) > tonumber(counter) then
  counter = marker.floor
end

if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return { 3, counter }
end

local fence = tonumber(ARGV[3])
local highest = tonumber(counter) + 1

if fence < highest then
  return { 2, counter }
end

if fence > highest then
  local time = redis.call('TIME')
  if fence > time[1] * 1000000 + time[2] + ARGV[5] then
    return { 2, counter }
  end
end

redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
if fence > tonumber(marker.high_water) then
  redis.call('HSET', marker.key, 'high_water', ARGV[3])
end
return 1

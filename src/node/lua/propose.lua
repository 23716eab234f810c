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

local own = redis.call('GET', KEYS[2])
local counter = own or marker.high_water
local highest = tonumber(counter)

if marker.floor ~= counter and tonumber(marker.floor) > highest then
  counter = marker.floor
  highest = tonumber(counter)
end

if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 3, counter }
end

-- What a user may not do fails here, and not when the key is set.
local fence = tonumber(ARGV[3])
local is_accepted = fence > highest

if fence > highest + 1 then
  local time = redis.call('TIME')
  is_accepted = fence <= time[1] * 1000000 + time[2] + ARGV[5]
end

if is_accepted then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
  if fence > tonumber(marker.high_water) then
    redis.call('HSET', marker.key, 'high_water', ARGV[3])
  end
elseif not own then
  -- What other resources accept moves the high-water mark. Of this one nothing shall while the key stands: a fence is to be raised
  -- above what is said now.
  redis.call('SET', KEYS[2], counter, 'PX', ARGV[4])
end

redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])

if is_accepted then
  return 1
end

return { 2, counter }

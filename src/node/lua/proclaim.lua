-- Writes beside a lock what its holder proclaims, for those who look on. It goes by itself: whoever reads it compares it with the
-- value that stands then.
--
-- KEYS[1]  the lock key
-- KEYS[2]  what is proclaimed beside it
-- ARGV[1]  the holder's value, compared whole
-- ARGV[2]  what it proclaims
-- ARGV[3]  for how many milliseconds that is kept
--
-- Returns 1 if it is written, 0 if the lock is missing, -1 if another value stands.

local value = redis.call('GET', KEYS[1])

if value ~= ARGV[1] then
  return value and -1 or 0
end

redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1

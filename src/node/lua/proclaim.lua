-- Writes beside a lock what its holder proclaims, for those who look on. It goes by itself: whoever reads it compares it with the
-- value that stands then.
--
-- KEYS[1]  the lock key
-- KEYS[2]  what is proclaimed beside it
-- ARGV[1]  the holder's value, compared whole
-- ARGV[2]  what it proclaims
-- ARGV[3]  for how many milliseconds that is kept
--
-- Returns 1 if it is written, 0 if the lock is missing, -1 if another value stands. It answers with an error, and nothing is written,
-- where a lock has the name of what is proclaimed: one of the empty namespace has any name.

local value = redis.call('GET', KEYS[1])

if value ~= ARGV[1] then
  return value and -1 or 0
end

local before = redis.call('GET', KEYS[2])

-- Behind the LeaseId, 32 digits, a lock names its holder, who has a name.
if before and string.sub(before, 33, 34) ~= '::' then
  return redis.error_reply('OCCUPIED a lock stands where this would be proclaimed')
end

redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1

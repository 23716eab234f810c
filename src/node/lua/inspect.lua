-- Shows who holds a lock. Changes nothing.
--
-- KEYS[1]  the lock key
--
-- Returns nil if the key is missing, else its value and how long it has to live in milliseconds (-1: for ever).

local value = redis.call('GET', KEYS[1])

if not value then
  return nil
end

return { value, redis.call('PTTL', KEYS[1]) }

-- Takes a lock away from whoever holds it: an operator's act.
--
-- KEYS[1]  the lock key
--
-- Returns nil if the key is missing, else its value and how long it had to live in milliseconds (-1: for ever).

local value = redis.call('GET', KEYS[1])

if not value then
  return nil
end

local expires_in = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
return { value, expires_in }

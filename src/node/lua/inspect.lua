-- Shows who holds a lock. Changes nothing.
--
-- KEYS[1]  the lock key
-- KEYS[2]  left out, or what the holder proclaims beside it
--
-- Returns nil if the key is missing, else its value and how long it has to live in milliseconds (-1: for ever); and what is
-- proclaimed, if that was asked for, or nil.

local value = redis.call('GET', KEYS[1])

if not value then
  return nil
end

local expires_in = redis.call('PTTL', KEYS[1])

if KEYS[2] then
  return { value, expires_in, redis.call('GET', KEYS[2]) }
end

return { value, expires_in }

-- Extends a lock by whoever holds it, or sets it again where it was lost.
--
-- KEYS[1]  the lock key
-- ARGV[1]  the holder's value, compared whole
-- ARGV[2]  how long the key shall live from now, in milliseconds
-- ARGV[3]  '1' if a missing key is to be set again
--
-- What is written is read again: a server that tracks keys for this client forgets that it read them when they change.
--
-- Returns 1 if the value stands (its expiry is raised to ARGV[2], never lowered, and none is set where an operator took
-- it off), 2 if the key was missing and is set again, 0 if it is missing, -1 if another value stands.

local value = redis.call('GET', KEYS[1])

if value == ARGV[1] then
  local expires_in = redis.call('PTTL', KEYS[1])
  if expires_in >= 0 and expires_in < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    redis.call('PTTL', KEYS[1])
  end
  return 1
end

if value then
  return -1
end

if ARGV[3] == '1' then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  redis.call('PTTL', KEYS[1])
  return 2
end

return 0

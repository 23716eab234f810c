-- Releases a lock: deletes the key if the value is the one that was written by whoever asks.
--
-- KEYS[1]  the lock key
-- ARGV[1]  the value, compared whole
-- ARGV[2]  '0', or for how many milliseconds the key shall still exclude others before it expires by itself
--
-- Returns 1 if the key is deleted or expires so, 0 if it was missing, -1 if another value stands.

local value = redis.call('GET', KEYS[1])

if value == ARGV[1] then
  if ARGV[2] == '0' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return 1
end

if value then
  return -1
end

return 0

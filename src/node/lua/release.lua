-- Releases a lock: deletes the key if the value is the one that was written by whoever asks. If the key is free then, the one
-- that has waited longest is woken by a message on its channel; one whose channel nobody listens to is passed over.
--
-- KEYS[1]  the lock key
-- KEYS[2]  its wait list; left out where nobody is to be woken
-- ARGV[1]  the value, compared whole
-- ARGV[2]  with a wait list: the channel of whoever asks, which is not woken; '' if it has none
-- ARGV[3]  left out or '', or: 'peek' to wake nobody, but to see whether somebody waits; 'leave' to delete nothing, only to
--          leave the list, and to wake the next one where the key is free
-- ARGV[4]  left out, or for how many milliseconds the key shall still exclude others before it expires by itself
--
-- Returns 1 if the key is deleted or expires so, 2 if besides somebody waits or was woken, 0 if it was missing, -1 if another
-- value stands. What goes wrong with the wait list changes nothing of that: those who wait look for themselves before long.
--
-- Whoever releases runs it, and mostly nobody waits: so nothing is done that need not be done then.

local value = redis.call('GET', KEYS[1])
local mode = ARGV[3]
local result = 0

if mode == 'leave' then
  redis.pcall('ZREM', KEYS[2], ARGV[2])
elseif value == ARGV[1] then
  if ARGV[4] then
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return 1
  end
  redis.call('DEL', KEYS[1])
  value = false
  result = 1
end

if value then
  return -1
end

if not KEYS[2] then
  return result
end

-- Taking the first one off an empty list would cost more than asking whether there is one.
if redis.pcall('EXISTS', KEYS[2]) ~= 1 then
  return result
end

if mode == 'peek' then
  return result * 2
end

for _ = 1, 16 do
  local first = redis.pcall('ZPOPMIN', KEYS[2])
  if first.err or not first[1] then
    return result
  end
  if first[1] ~= ARGV[2] then
    local listeners = redis.pcall('PUBLISH', first[1], KEYS[2])
    if type(listeners) == 'number' and listeners > 0 then
      return result * 2
    end
  end
end

return result * 2

-- Shows who holds a lock, and puts whoever asks on the list of those who want to be woken when it is released.
--
-- KEYS[1]  the lock key
-- KEYS[2]  its wait list: channels, by since when they wait on this server's clock, in microseconds
-- ARGV[1]  the channel of whoever asks
-- ARGV[2]  for how many microseconds it has waited: that decides its place, wherever it was before
-- ARGV[3]  for how many milliseconds the list is kept if nobody says again that it waits
--
-- Returns whether it is on the list (1 or 0: not every user may write there, and a full server takes nothing new), and then,
-- unless the key is missing, its value and how long it has to live in milliseconds (-1: for ever).

local value = redis.call('GET', KEYS[1])
local time = redis.pcall('TIME')
local is_listed = 0

if not time.err then
  local since = time[1] * 1000000 + time[2] - ARGV[2]
  local added = redis.pcall('ZADD', KEYS[2], since, ARGV[1])
  if type(added) == 'number' then
    if redis.pcall('PEXPIRE', KEYS[2], ARGV[3]) == 1 then
      is_listed = 1
    else
      redis.pcall('ZREM', KEYS[2], ARGV[1])
    end
  end
end

if not value then
  return { is_listed }
end

return { is_listed, value, redis.call('PTTL', KEYS[1]) }

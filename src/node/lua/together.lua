-- Releases several locks, each as release.lua does: it stands behind that script, which is the function `carry_out`.
--
-- KEYS       the lock keys, and behind them their wait lists in the same order; left out where nobody is to be woken
-- ARGV[1]    the channel of whoever asks
-- ARGV[2..]  the values, in the order of the keys
--
-- Returns the number of locks if all are deleted and nobody waits for any of them, which is how it mostly is, and which takes two
-- or three calls however many they are. Else it returns what release.lua says of each, in their order.

local locks = #ARGV - 1
local has_lists = #KEYS > locks
local values = redis.pcall('MGET', unpack(KEYS, 1, locks))
local all_stand = true

for i = 1, locks do
  all_stand = all_stand and values[i] == ARGV[i + 1]
end

if all_stand and (not has_lists or redis.pcall('EXISTS', unpack(KEYS, locks + 1)) == 0) then
  return redis.call('DEL', unpack(KEYS, 1, locks))
end

local said = {}

for i = 1, locks do
  -- One that cannot be read keeps no other from being released.
  local value = redis.pcall('GET', KEYS[i])
  if type(value) == 'table' then
    said[i] = value
  else
    said[i] = carry_out({ KEYS[i], KEYS[locks + i] }, { ARGV[i + 1], ARGV[1] })
  end
end

return said

-- Whether this server counts for the strict kinds of locks of a namespace; if not, it is observed from now on, and once it was
-- for long enough, whoever observed it lets it count.
--
-- KEYS[1]  the marker of the namespace
-- ARGV[1]  the process that the client takes this server for
-- ARGV[2]  what the clients have agreed on: the fingerprint of their nodes
-- ARGV[3]  and the longest ttl that they ask for
-- ARGV[4]  a new nonce: under this one it is observed from now on, if it is not yet
-- ARGV[5]  '' to observe, 'overrule' to forget before what others have agreed on, or the floor: let it count if it was observed
--          all the time, and never accept a fence that is not above this one
-- ARGV[6]  with a floor: the nonce under which it was observed. Where that is forgotten it does not come back: to others who have
--          waited with it, it would say that nothing was forgotten
--
-- Returns 1 and the largest fence that was accepted in the namespace if it counts, else 0 and the nonce under which it is
-- observed. Answers that clients have agreed on other rules with an error, and nothing is done.

local process, nodes, max_ttl, nonce, act, observed_under = unpack(ARGV)
local fields = redis.call('HMGET', KEYS[1], 'process', 'nodes', 'max_ttl', 'observed', 'nonce', 'high_water')
local is_enrolled = fields[1] == process
local is_observed = fields[4] == process
local high_water = fields[6] or '0'

if (is_enrolled or is_observed) and (fields[2] ~= nodes or fields[3] ~= max_ttl) then
  if act ~= 'overrule' then
    return redis.error_reply('OTHERRULES clients of this namespace name other nodes, or another max_ttl')
  end
  is_enrolled = false
  is_observed = false
end

if is_observed and observed_under and fields[5] == observed_under then
  if tonumber(act) > tonumber(high_water) then
    high_water = act
  end
  redis.call('HDEL', KEYS[1], 'observed')
  redis.call('HSET', KEYS[1], 'process', process, 'high_water', high_water, 'floor', high_water)
  is_enrolled = true
end

if is_enrolled then
  return { 1, high_water }
end

if is_observed then
  return { 0, fields[5] }
end

redis.call('HDEL', KEYS[1], 'process')
redis.call('HSET', KEYS[1], 'observed', process, 'nonce', nonce, 'nodes', nodes, 'max_ttl', max_ttl)
return { 0, nonce }

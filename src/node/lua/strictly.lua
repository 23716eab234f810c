-- Has another script carried out, and says whether the answer counts by the rules of the strict kinds of locks: the two happen
-- in one step, so that nothing is forgotten in between. It stands behind that script, which is the function `carry_out`.
--
-- KEYS[last]    the marker of the namespace
-- ARGV[last-3]  the process that the client takes this server for; '' if it does not know
-- ARGV[last-2]  what the clients of the namespace have agreed on: the fingerprint of their nodes
-- ARGV[last-1]  and the longest ttl that they ask for, in milliseconds
-- ARGV[last]    the ttl that is asked for now; 0 if none is; '' if the script only takes away what is the client's own
--
-- Returns the nonce under which this server was observed before it was enrolled if the answer counts, else '', and what the script
-- returns. Where clients have agreed on other rules it answers
-- with an error, and nothing is done, unless it only takes away.

local last = #ARGV
local process, nodes, max_ttl, ttl = unpack(ARGV, last - 3)
local key = KEYS[#KEYS]

-- That script looks at how many there are.
KEYS[#KEYS] = nil
for i = last - 3, last do
  ARGV[i] = nil
end

local fields = redis.call('HMGET', key, 'process', 'nodes', 'max_ttl', 'nonce', 'high_water', 'floor')
local incarnation = ''

if fields[1] and fields[1] == process then
  if fields[2] == nodes and fields[3] == max_ttl then
    incarnation = fields[4]
  elseif ttl ~= '' then
    return redis.error_reply('OTHERRULES clients of this namespace name other nodes, or another max_ttl')
  end
end

if ttl ~= '' and ttl ~= max_ttl and tonumber(ttl) > tonumber(max_ttl) then
  return redis.error_reply('OTHERRULES the ttl is above the max_ttl')
end

local marker = { key = key, high_water = fields[5] or '0', floor = fields[6] or '0' }
return { incarnation, carry_out(KEYS, ARGV, marker) }

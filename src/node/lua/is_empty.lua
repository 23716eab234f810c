-- Says whether somebody is on a wait list. It is sent behind CLIENT CACHING YES: the server tells whoever asks when that changes.
--
-- KEYS[1]  the wait list
--
-- Returns 0 if it is empty, else 1.
--
-- A server remembers whom it is to tell until it has told them, also those who are gone. So that they do not become more and more
-- where a list does not change, it is changed for a moment first: who has asked before is told now, and forgotten.

redis.pcall('ZADD', KEYS[1], 0, '')
redis.pcall('ZREM', KEYS[1], '')
return redis.call('EXISTS', KEYS[1])

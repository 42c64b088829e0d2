-- ARGV[3]: lease.
if not call('ZSCORE', root .. ':leases', ARGV[3]) then return false end
local ttl = call('HGET', root .. ':ttls', ARGV[3])
call('ZADD', root .. ':leases', int(now + ttl), ARGV[3])
return ttl

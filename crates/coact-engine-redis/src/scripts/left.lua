-- ARGV[3]: lease.
local ends = call('ZSCORE', root .. ':leases', ARGV[3])
return ends and int(ends - now)

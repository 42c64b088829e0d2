-- ARGV[3]: lease.
if call('ZSCORE', root .. ':leases', ARGV[3]) then end_lease(ARGV[3]) end
return 1

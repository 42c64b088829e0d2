-- ARGV[3..4]: lease and length in ms.
call('ZADD', root .. ':leases', int(now + ARGV[4]), ARGV[3])
call('HSET', root .. ':ttls', ARGV[3], ARGV[4])
return ARGV[4]

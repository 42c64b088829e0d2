-- ARGV[3..4]: dir and name.
return call('HGET', root .. ':v:' .. ARGV[3], ARGV[4])

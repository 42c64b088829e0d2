-- ARGV[3..4]: dir and name. ARGV[5]: the revision that created the entry. ARGV[6]: the channel of who waits.
local entry = load(ARGV[3], ARGV[4])
if not entry or entry.created ~= ARGV[5] then return 1 end
call('SADD', root .. ':w:' .. ARGV[3] .. '//' .. ARGV[4], ARGV[6])
return 0

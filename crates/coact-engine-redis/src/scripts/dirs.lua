-- ARGV[3]: beginning. ARGV[4]: after which. ARGV[5]: how many.
local prefix, after = ARGV[3], ARGV[4]
local from = after >= prefix and '(' .. after or '[' .. prefix
return call('ZRANGEBYLEX', root .. ':dirs', from, '(' .. prefix .. '\255', 'LIMIT', 0, ARGV[5])

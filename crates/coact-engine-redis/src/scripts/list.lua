-- ARGV[3]: dir. ARGV[4]: N (by name) or C (by creation). ARGV[5]: after what. ARGV[6]: how many.
local dir, limit = ARGV[3], tonumber(ARGV[6])
local names
if ARGV[4] == 'N' then
  local from = ARGV[5] == '' and '-' or '(' .. ARGV[5]
  names = call('ZRANGEBYLEX', root .. ':n:' .. dir, from, '+', 'LIMIT', 0, limit + 1)
else
  names = call('ZRANGEBYSCORE', root .. ':c:' .. dir, '(' .. ARGV[5], '+inf', 'LIMIT', 0, limit + 1)
end
local more = #names > limit
if more then
  local keep = limit
  if ARGV[4] == 'C' then
    -- What one transaction created stays together, unless that alone is too much.
    local key = root .. ':c:' .. dir
    local cut = call('ZSCORE', key, names[limit + 1])
    while keep > 0 and call('ZSCORE', key, names[keep]) == cut do keep = keep - 1 end
    if keep == 0 then keep = limit end
  end
  for index = #names, keep + 1, -1 do names[index] = nil end
end
local entries = {}
for index, name in ipairs(names) do
  entries[index] = { name, call('HGET', root .. ':v:' .. dir, name) }
end
return { call('HGET', root, 'rev') or '0', more and 1 or 0, entries }

-- ARGV[3..4]: after which revision and which part of it; an empty revision asks for the present alone. ARGV[5]: how many.
local present = call('HGET', root, 'rev') or '0'
if ARGV[3] == '' then return { present, 0, {} } end
local first = call('XRANGE', root .. ':changes', '-', '+', 'COUNT', 1)[1]
local kept = tonumber(present)
if first then
  local revision, part = string.match(first[1], '^(%d+)-(%d+)$')
  kept = tonumber(revision)
  if first[2][1] == 'E' then
    kept = tonumber(first[2][2])
  elseif part == '0' then
    kept = kept - 1
  end
end
local after = tonumber(ARGV[3])
local lost = (after < kept or after > tonumber(present)) and 1 or 0
return { present, lost, call('XRANGE', root .. ':changes', '(' .. ARGV[3] .. '-' .. ARGV[4], '+', 'COUNT', ARGV[5]) }

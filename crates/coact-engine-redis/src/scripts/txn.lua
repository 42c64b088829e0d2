-- ARGV[3..5]: how many checks, reads and writes follow, in this order.
local at = 6
local function take(count)
  at = at + count
  return unpack(ARGV, at - count, at - 1)
end

for index = 1, tonumber(ARGV[3]) do
  local kind, dir, name, expected = take(4)
  if kind == 'L' then
    if not call('ZSCORE', root .. ':leases', expected) then return { 'refused', index, false } end
  else
    local entry = load(dir, name)
    local holds
    if kind == 'A' then
      holds = not entry
    elseif kind == 'C' then
      holds = entry and entry.created == expected
    else
      holds = entry and entry.modified == expected
    end
    if not holds then return { 'refused', index, entry and entry.packed or false } end
  end
end

local found = {}
for index = 1, tonumber(ARGV[4]) do
  local kind, dir, name = take(3)
  if kind == 'G' then
    found[index] = { name, call('HGET', root .. ':v:' .. dir, name) }
  elseif kind == '#' then
    found[index] = call('ZCARD', root .. ':c:' .. dir)
  else
    local rank = kind == 'F' and 0 or -1
    local names = call('ZRANGE', root .. ':c:' .. dir, rank, rank)
    found[index] = names[1] and { names[1], call('HGET', root .. ':v:' .. dir, names[1]) } or { '', false }
  end
end

-- Everything that can fail comes before the first change.
local writes = {}
for index = 1, tonumber(ARGV[5]) do
  local kind, dir, name, value, lease = take(5)
  local entry = load(dir, name)
  if kind == 'P' and lease ~= '' and not call('ZSCORE', root .. ':leases', lease) then
    return { 'fenced', lease }
  end
  if kind == 'I' then
    -- Redis counts with 64 bits and Lua does not.
    local scratch = root .. ':scratch'
    call('HSET', scratch, 'n', entry and string.sub(entry.packed, entry.at) or '0')
    local sum = redis.pcall('HINCRBY', scratch, 'n', value)
    value = type(sum) == 'number' and call('HGET', scratch, 'n')
    call('DEL', scratch)
    if not value then return { 'invalid', sum.err, dir .. '//' .. name } end
    kind, lease = 'P', entry and entry.lease or ''
  end
  if kind == 'P' or entry then
    writes[#writes + 1] = { kind = kind, dir = dir, name = name, value = value, lease = lease, entry = entry }
  end
end

if #writes == 0 then return { 'committed', call('HGET', root, 'rev') or '0', found } end

local number = call('HINCRBY', root, 'rev', 1)
local revision, changes = int(number), {}
for _, write in ipairs(writes) do
  local entry = write.entry
  if write.kind == 'D' then
    remove(write.dir, write.name, entry, 'D', changes)
  else
    local place = write.dir .. '//' .. write.name
    local lease = entry and entry.lease or ''
    if lease ~= write.lease then
      if lease ~= '' then call('SREM', root .. ':l:' .. lease, place) end
      if write.lease ~= '' then call('SADD', root .. ':l:' .. write.lease, place) end
    end
    local packed = pack(entry and entry.created or revision, revision, write.lease, write.value)
    call('HSET', root .. ':v:' .. write.dir, write.name, packed)
    if not entry then
      call('ZADD', root .. ':c:' .. write.dir, revision, write.name)
      if call('ZADD', root .. ':n:' .. write.dir, 0, write.name) == 1 and call('ZCARD', root .. ':c:' .. write.dir) == 1 then
        call('ZADD', root .. ':dirs', 0, write.dir)
      end
    end
    changes[#changes + 1] = 'P' .. place
    changes[#changes + 1] = packed
  end
end
tell(number, changes)
return { 'committed', revision, found }

-- What every script begins with. KEYS[1] is the namespace's hash, `coact:{namespace}`, and the beginning of every other
-- key, so that all of them are in one slot. ARGV[1] is the server that the client believes to talk to, ARGV[2] how many
-- changes the history keeps.
--
--   coact:{ns}                    rev, server
--   coact:{ns}:v:realm/dir        name -> "created modified lease\nvalue"
--   coact:{ns}:c:realm/dir        names by the revision that created them
--   coact:{ns}:n:realm/dir        names in their own order
--   coact:{ns}:dirs               "realm/dir" of each dir with entries
--   coact:{ns}:leases, :ttls      when each lease ends by the server's clock in ms; its length in ms
--   coact:{ns}:l:LEASE            "realm/dir//name" of its entries
--   coact:{ns}:w:realm/dir//name  channels of those who wait for the entry to go
--   coact:{ns}:changes            stream: REVISION-n, one field for each change; also the channel that tells of it
local root = KEYS[1]
local history = ARGV[2]
local call = redis.call

local function int(number)
  return string.format('%.0f', number)
end

-- Every revision has its entry in the stream: a gap between entries is history that was trimmed.
local function tell(revision, changes)
  local part = 0
  local fields = #changes
  for first = 1, fields, 2000 do
    local last = math.min(first + 1999, fields)
    call('XADD', root .. ':changes', 'MAXLEN', '~', history, int(revision) .. '-' .. part, unpack(changes, first, last))
    part = part + 1
  end
  call('PUBLISH', root .. ':changes', int(revision))
end

-- After a restart or a failover, writes may be lost that clients have seen: revisions go on far above all of them.
do
  local known = call('HGET', root, 'server')
  if known ~= ARGV[1] then
    local info = call('INFO', 'server') .. call('INFO', 'replication')
    local server = string.match(info, 'run_id:(%x+)') .. ':' .. string.match(info, 'master_replid:(%x+)')
    if known ~= server then
      call('HSET', root, 'server', server)
      if known then
        local before = call('HGET', root, 'rev') or '0'
        tell(call('HINCRBY', root, 'rev', 4294967296), { 'E', before })
      end
    end
  end
end

local function split(place)
  return string.match(place, '^(.*)//(.*)$')
end

local function pack(created, modified, lease, value)
  return created .. ' ' .. modified .. ' ' .. lease .. '\n' .. value
end

local function load(dir, name)
  local packed = call('HGET', root .. ':v:' .. dir, name)
  if not packed then return nil end
  local created, modified, lease, at = string.match(packed, '^(%d+) (%d+) (%d*)\n()')
  return { created = created, modified = modified, lease = lease, at = at, packed = packed }
end

local function remove(dir, name, entry, kind, changes)
  local place = dir .. '//' .. name
  call('HDEL', root .. ':v:' .. dir, name)
  call('ZREM', root .. ':n:' .. dir, name)
  call('ZREM', root .. ':c:' .. dir, name)
  if call('EXISTS', root .. ':c:' .. dir) == 0 then
    call('ZREM', root .. ':dirs', dir)
  end
  if entry.lease ~= '' then
    call('SREM', root .. ':l:' .. entry.lease, place)
  end
  local waiting = root .. ':w:' .. place
  local channels = call('SMEMBERS', waiting)
  if #channels > 0 then
    for _, channel in ipairs(channels) do
      call('PUBLISH', channel, entry.created .. ' ' .. place)
    end
    call('DEL', waiting)
  end
  changes[#changes + 1] = kind .. place
  changes[#changes + 1] = ''
end

local function end_lease(lease)
  call('ZREM', root .. ':leases', lease)
  call('HDEL', root .. ':ttls', lease)
  local places = call('SMEMBERS', root .. ':l:' .. lease)
  if #places == 0 then return end
  table.sort(places)
  local revision, changes = call('HINCRBY', root, 'rev', 1), {}
  for _, place in ipairs(places) do
    local dir, name = split(place)
    remove(dir, name, load(dir, name), 'X', changes)
  end
  tell(revision, changes)
end

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A lease ends here and nowhere else: until then it is alive for everybody, after it for nobody.
for _, lease in ipairs(call('ZRANGEBYSCORE', root .. ':leases', '-inf', int(now), 'LIMIT', 0, 64)) do
  end_lease(lease)
end

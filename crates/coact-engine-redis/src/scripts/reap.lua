-- What has ended was ended above. Answers in how many ms the next lease ends.
local first = call('ZRANGE', root .. ':leases', 0, 0, 'WITHSCORES')
return first[2] and int(first[2] - now)

-- Requests of a file, one after the other; the results as a line of JSON.
-- Each request in the file is a line "PATH HEAD SIZE" and SIZE bytes of body, of which HEAD are the
-- JSON head of Triton Server's binary tensor protocol. A second file gets a line "DIGEST SECONDS",
-- of the monotonic clock, when an answer names a digest for the first time.
local requests, at = {}, 0
local ffi = require("ffi")
ffi.cdef[[
typedef struct { long seconds; long nanoseconds; } pidep_time;
int clock_gettime(int clock, pidep_time *now);
]]
local now, known, seen = ffi.new("pidep_time"), {}, nil

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for line in function() return file:read("*l") end do
    local path, head, size = line:match("(%S+) (%d+) (%d+)")
    local headers = {
      ["Inference-Header-Content-Length"] = head,
      ["Content-Type"] = "application/octet-stream",
    }
    requests[#requests + 1] = wrk.format("POST", path, headers, file:read(tonumber(size)))
  end
  file:close()
  if args[2] then
    seen = assert(io.open(args[2], "a"))
    response = first_answers
  end
end

function first_answers(status, headers, body)
  for digest in body:gmatch("sha256:%x+") do
    if not known[digest] then
      known[digest] = true
      ffi.C.clock_gettime(1, now)
      local seconds = tonumber(now.seconds) + tonumber(now.nanoseconds) / 1e9
      seen:write(string.format("%s %.6f\n", digest, seconds))
      seen:flush()
    end
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "not_200": %d, "socket_errors": %d, "timeouts": %d, ' ..
    '"p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write, errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3))
end

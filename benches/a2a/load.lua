-- What wrk sends: a message with an id of its own each time. A good answer has the completed task in it.
local key, path, method, text = os.getenv("KEY"), os.getenv("AT"), os.getenv("METHOD"), os.getenv("TEXT")
local base, n = nil, 0
good, bad = 0, 0
threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(_)
  math.randomseed(os.time())
  base = string.format("%x-%x", os.time(), math.random(1, 2 ^ 31 - 1))
  good, bad = 0, 0
  headers = { ["Content-Type"] = "application/json", ["A2A-Version"] = "1.0" }
  if key ~= "" then headers["Authorization"] = "Bearer " .. key end
end

function request()
  n = n + 1
  local message = '{"jsonrpc":"2.0","id":1,"method":"%s","params":{"message":{"messageId":"%s-%d","role":"ROLE_USER","parts":[{"text":"%s"}]}}}'
  return wrk.format("POST", path, headers, string.format(message, method, base, n, text))
end

function response(status, _, body)
  if status == 200 and string.find(body, "TASK_STATE_COMPLETED", -400, true) then good = good + 1 else
    if status == 200 and string.find(body, "TASK_STATE_COMPLETED", 1, true) then good = good + 1 else bad = bad + 1 end
  end
end

function done(summary, latency, _)
  local g, b = 0, 0
  for _, thread in ipairs(threads) do g = g + thread:get("good"); b = b + thread:get("bad") end
  io.write(string.format('\n{"good": %d, "bad": %d, "seconds": %.6f, "p50": %.1f, "p99": %.1f}\n',
    g, b, summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end

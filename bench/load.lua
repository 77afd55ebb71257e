-- For wrk: prints how many requests were answered, and how long the answers took, in microseconds.
-- An echo server is sent what is an answer; but the first that is made wrk looks at only, and it must be a request.
if os.getenv("UM_BENCH_ECHO") then
  local looked = false
  request = function()
    if looked then
      return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    end
    looked = true
    return wrk.format()
  end
end

done = function(summary, latency)
  io.write(string.format(
    '\n{"requests": %d, "errors": %d, "p50": %d, "p99": %d, "p999": %d}\n',
    summary.requests,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end

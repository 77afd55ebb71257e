# frozen_string_literal: true

require "json"
require "tempfile"

# What asks the servers that are measured: wrk, in a process of its own, as fast as it is answered. (It asks again only
# when it has been answered, so that a server that stands still is asked less: its latencies flatter.)
class HttpLoad
  SCRIPT = File.join(__dir__, "load.lua")

  def self.there? = system("command -v wrk >/dev/null")

  # Starts it.
  def initialize(port, connections, seconds: 2, echo: false)
    @log = Tempfile.new("um")
    command = %W[wrk -t1 -c#{connections} -d#{seconds}s --timeout 10s -s #{SCRIPT} http://127.0.0.1:#{port}/]
    @process = Process.spawn({ "UM_BENCH_ECHO" => ("1" if echo) }, *command, out: @log.path, err: @log.path)
  end

  # Waits for its end, and returns what it found: requests, errors, and percentiles in microseconds.
  def result
    Process.wait(@process)
    line = File.read(@log.path).lines.last
    JSON.parse(line, symbolize_names: true)
  rescue JSON::ParserError, TypeError
    abort "wrk: #{File.read(@log.path)}"
  end
end

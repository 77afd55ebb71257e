# frozen_string_literal: true

# Measures workloads with peers and prints CPU time per operation, and its ratio to the better of Async's selectors in
# the same run. Each measurement is a process of its own, and the peers take turns.
#
#   script/bench [--rounds N] [--peers a,b] [--markdown FILE] [--picture FILE.svg] [WORKLOAD…]

require "json"
require "optparse"
require "rbconfig"
require "uringmachine"
require_relative "peers"
require_relative "workloads"
require_relative "machine_workloads"

# Seconds that one measurement may take.
LIMIT = 120

# One measurement, in this process: prints what it found as JSON.
def measure(workload, peer)
  if (machine_workload = MachineWorkloads::ALL[workload])
    found = timed(machine_workload.operations) { MachineWorkloads.measure(machine_workload, peer) }
  else
    workload = Workloads::ALL.fetch(workload)
    operations = peer == "threads" ? workload.threads_operations : workload.operations
    found = timed(operations) do
      counted = nil
      Peers.run(peer) { |spawn| counted = workload.body.call(spawn, operations) }
      counted
    end
  end
  puts JSON.generate(found)
end

# Microseconds of CPU and wall time an operation. The block may return a proc that says how many there were, or what it
# has measured itself.
def timed(operations)
  GC.start
  clocks = [Process::CLOCK_PROCESS_CPUTIME_ID, Process::CLOCK_MONOTONIC]
  before = clocks.map { |clock| Process.clock_gettime(clock) }
  found = yield
  return found if found.is_a?(Hash)

  cpu, wall = clocks.zip(before).map { |clock, start| Process.clock_gettime(clock) - start }
  operations = found.call if found.is_a?(Proc)
  { cpu: cpu / operations * 1e6, wall: wall / operations * 1e6 }
end

if ARGV.first == "--measure"
  measure(ARGV[1], ARGV[2])
  exit
end

options = { rounds: 5, peers: Peers::NAMES }
OptionParser.new do |parser|
  parser.banner = "Usage: script/bench [options] [workload…]\nWorkloads: #{[*Workloads::ALL.keys, *MachineWorkloads::ALL.keys].join(", ")}"
  parser.on("--rounds N", Integer, "measurements of each (5)") { |rounds| options[:rounds] = rounds }
  parser.on("--peers LIST", Array, "of #{Peers::NAMES.join(", ")}") { |peers| options[:peers] = peers }
  parser.on("--markdown FILE", "write the table there too") { |file| options[:markdown] = file }
  parser.on("--picture FILE", "draw the ratios as SVG") { |file| options[:picture] = file }
end.parse!

peers = options[:peers].select do |peer|
  reason = Peers.missing(peer)
  warn "#{peer} is skipped: #{reason}" if reason
  reason.nil?
end
known = Workloads::ALL.keys + MachineWorkloads::ALL.keys
workloads = ARGV.empty? ? known : ARGV
unknown = workloads - known
abort "no such workload: #{unknown.join(", ")}" unless unknown.empty?
jit = RbConfig::CONFIG["YJIT_SUPPORT"].to_s == "no" ? [] : ["--yjit"]

# What one measurement found, from a process of its own; nil if it failed or took too long.
def sample(command)
  reader, writer = IO.pipe
  child = Process.spawn(*command, out: writer, pgroup: true)
  writer.close
  return warn("\r#{command.last(2).join(" with ")}: no answer in #{LIMIT} s") unless reader.wait_readable(LIMIT)

  line = reader.read.lines.last
  line && JSON.parse(line, symbolize_names: true)
ensure
  reader.close
  if child && Process.wait(child, Process::WNOHANG).nil?
    Process.kill(:KILL, -child)
    Process.wait(child)
  end
end

def median(values) = values.sort[values.size / 2]

MACHINE_PEERS = %w[machine floor].freeze

# The peers that can run a workload.
def peers_for(workload, peers)
  machine_workload = MachineWorkloads::ALL[workload]
  machine_workload ? MACHINE_PEERS.reject { |peer| MachineWorkloads.missing(machine_workload, peer) } : peers
end

rows = workloads.map do |workload|
  samples = Hash.new { |hash, peer| hash[peer] = [] }
  options[:rounds].times do |round|
    peers_for(workload, peers).each do |peer|
      $stderr.print "\r#{workload}: round #{round + 1} of #{options[:rounds]}, #{peer}          "
      command = [RbConfig.ruby, *jit, "-W0", __FILE__, "--measure", workload, peer]
      found = sample(command)
      samples[peer] << found if found
    end
  end
  $stderr.print "\r#{" " * 60}\r"
  cpu = samples.transform_values { |found| median(found.map { |sample| sample[:cpu] }) }
  spread = samples.transform_values { |found| found.map { |sample| sample[:cpu] }.minmax }
  wall = samples.transform_values { |found| median(found.map { |sample| sample[:wall] }) }
  best = cpu.slice("async-epoll", "async-uring", "floor").values.min
  ours = cpu["um"] || cpu["machine"]
  row = { workload: workload, cpu: cpu, spread: spread, wall: wall, ratio: best && ours && (ours / best) }
  line = cpu.map { |peer, value| format("%s %.2f (%.2f-%.2f)", peer, value, *spread[peer]) }.join("  ")
  puts format("%-12s %s%s", workload, line, row[:ratio] ? format("  ratio %.2f", row[:ratio]) : "")
  $stdout.flush
  row
end

def table(rows, peers, ratio)
  lines = rows.map do |row|
    cells = peers.map { |peer| row[:cpu][peer] ? format("%.2f", row[:cpu][peer]) : "" }
    "| #{row[:workload]} | #{cells.join(" | ")} | #{format("%.2f", row[:ratio]) if row[:ratio]} |"
  end
  ["| workload | #{peers.join(" | ")} | #{ratio} |", "|---#{"|---" * peers.size}|---|", *lines].join("\n")
end

if options[:markdown]
  machine_rows, scheduler_rows = rows.partition { |row| MachineWorkloads::ALL.key?(row[:workload]) }
  tables = []
  tables << table(scheduler_rows, peers, "um to the better Async") unless scheduler_rows.empty?
  tables << table(machine_rows, MACHINE_PEERS, "machine to the floor") unless machine_rows.empty?
  File.write(options[:markdown], "#{tables.join("\n\n")}\n")
end

if options[:picture]
  height = 26
  width = 360
  bars = rows.select { |row| row[:ratio] && row[:cpu]["um"] }.each_with_index.map do |row, index|
    y = 40 + (index * height)
    <<~SVG
      <text x="110" y="#{y + 15}" text-anchor="end">#{row[:workload]}</text>
      <rect x="120" y="#{y + 2}" width="#{(row[:ratio] * width).clamp(1, 620).round}" height="#{height - 8}" fill="#{row[:ratio] < 1 ? "#3a7d44" : "#b23a48"}"/>
      <text x="#{126 + (row[:ratio] * width).clamp(1, 620).round}" y="#{y + 15}">#{format("%.2f", row[:ratio])}</text>
    SVG
  end
  File.write(options[:picture], <<~SVG)
    <svg xmlns="http://www.w3.org/2000/svg" width="800" height="#{60 + (rows.size * height)}" font-family="sans-serif" font-size="13">
    <rect width="100%" height="100%" fill="white"/>
    <text x="120" y="22">CPU time per operation, as a ratio to the better of Async's selectors (lower is better)</text>
    <line x1="#{120 + width}" x2="#{120 + width}" y1="32" y2="#{45 + (rows.size * height)}" stroke="#999"/>
    #{bars.join}</svg>
  SVG
end

# frozen_string_literal: true

# One measurement, in a process of its own: prints what it found as JSON.
#
#   measure.rb WORKLOAD PEER
#   measure.rb GROWTH:NUMBER PEER
#   measure.rb --missing PEER     prints why the peer cannot be had, if it cannot

require "etc"
require "json"
require_relative "peers"
require_relative "workloads"
require_relative "machine_workloads"

# Seconds of CPU time, user and system apart, and of wall time.
def clocks
  times = Process.times
  [Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID), times.utime, times.stime, Process.clock_gettime(Process::CLOCK_MONOTONIC)]
end

# Microseconds an operation. The block returns what else it has found: `operations`, if it is only known afterwards;
# `cpu`, `user` and `system` seconds, if they are not this process's; latencies.
def timed(operations)
  GC.start
  before = clocks
  found = yield
  spent = clocks.zip(before).map { |now, start| now - start }
  found = {} unless found.is_a?(Hash)
  # The floor has measured itself.
  return found if found.key?(:wall)

  operations = found.fetch(:operations, operations)
  spent = %i[cpu user system wall].zip(spent).to_h.merge(found.slice(:cpu, :user, :system))
  found.merge(spent.transform_values { |seconds| seconds / operations * 1e6 })
end

# Two words: what grows, and how far.
def measure_growth(name, number, peer)
  found = timed(1) do
    found = nil
    Peers.run(peer) { |spawn| found = Workloads::GROWTH.fetch(name).last.call(spawn, number) }
    found.call
  end
  found.compact
end

def measure(name, peer)
  growing, number = name.split(":")
  return measure_growth(growing, Integer(number), peer) if number

  if (workload = MachineWorkloads::ALL[name])
    return timed(workload.operations) { MachineWorkloads.measure(workload, peer) }
  end

  workload = Workloads::ALL.fetch(name)
  # That takes as long for a hundred operations as for many.
  Peers.load(peer) if Peers::ALL.key?(peer)
  operations = peer == "threads" ? workload.threads_operations : workload.operations
  timed(operations) { workload.measure(peer, operations) }
end

if ARGV.first == "--missing"
  reason = ARGV[1] == "machine" || ARGV[1] == "floor" ? MachineWorkloads.missing(ARGV[1]) : Peers.missing(ARGV[1])
  puts reason if reason
else
  puts JSON.generate(measure(*ARGV))
end

# frozen_string_literal: true

# Short children, all at once: a thread of Ruby's for each with Process.wait, and UM::Process on a machine and under the
# scheduler. Prints wall time and CPU time of this process, and their ratios to the threads'.
#
#   script/with-ruby ruby bench/processes.rb [CHILDREN [ROUNDS]]

require "uringmachine"

CHILDREN = Integer(ARGV.fetch(0, 500))
ROUNDS = Integer(ARGV.fetch(1, 3))
COMMAND = ["/bin/true"].freeze

def threads
  Array.new(CHILDREN) { Thread.new { Process.wait(Process.spawn(*COMMAND)) } }.each(&:join)
end

def on_a_machine
  machine = UM.new
  machine.join(Array.new(CHILDREN) do
    machine.spin { UM::Process.spawn(*COMMAND, machine:).tap(&:wait).close }
  end)
end

def under_the_scheduler
  Thread.new do
    Fiber.set_scheduler(UM::FiberScheduler.new)
    CHILDREN.times { Fiber.schedule { UM::Process.spawn(*COMMAND).tap(&:wait).close } }
  end.join
end

def clock(name) = Process.clock_gettime(Process.const_get("CLOCK_#{name}"))

def measure(name)
  GC.start
  before = [clock(:MONOTONIC), clock(:PROCESS_CPUTIME_ID)]
  send(name)
  [clock(:MONOTONIC), clock(:PROCESS_CPUTIME_ID)].zip(before).map { |after, start| after - start }
end

WAYS = %i[threads on_a_machine under_the_scheduler].freeze
WAYS.each { |name| send(name) }
# The ways take turns, so that what disturbs the machine disturbs all of them; the median counts.
rounds = Array.new(ROUNDS) { WAYS.to_h { |name| [name, measure(name)] } }
medians = WAYS.to_h { |name| [name, [0, 1].map { |place| rounds.map { |round| round[name][place] }.sort[ROUNDS / 2] }] }

puts "#{CHILDREN} children, median of #{ROUNDS} rounds, #{RUBY_ENGINE} #{RUBY_VERSION}"
puts "                       wall, ms    CPU, ms    wall, ratio     CPU, ratio"
medians.each do |name, (wall, cpu)|
  ratios = [wall, cpu].zip(medians[:threads]).map { |ours, theirs| ours / theirs }
  puts format("%-20s %10.1f %10.1f %14.2f %14.2f", name.to_s.tr("_", " "), wall * 1000, cpu * 1000, *ratios)
end

# frozen_string_literal: true

# Short children, all at once: a thread of Ruby's for each with Process.wait, fibers with Process.wait under the scheduler
# and under Async, and UM::Process. CPU time is this process's, without the children's.
#
#   script/with-ruby ruby bench/processes.rb [CHILDREN [ROUNDS]]

require_relative "comparison"

CHILDREN = Integer(ARGV.fetch(0, 500))
ROUNDS = Integer(ARGV.fetch(1, 5))
COMMAND = ["/bin/true"].freeze

comparison = Comparison.new("#{CHILDREN} children at once", operations: CHILDREN, unit: "child")
comparison.peers(%w[threads um async-epoll async-uring]) do |spawn|
  CHILDREN.times { spawn.call { Process.wait(Process.spawn(*COMMAND)) } }
end
comparison.way("um, UM::Process") do
  Peers.run("um") { |spawn| CHILDREN.times { spawn.call { UM::Process.spawn(*COMMAND).tap(&:wait).close } } }
end
comparison.way("machine, UM::Process") do
  machine = UM.new
  machine.join(Array.new(CHILDREN) { machine.spin { UM::Process.spawn(*COMMAND, machine:).tap(&:wait).close } })
end
comparison.run(rounds: ROUNDS)

# frozen_string_literal: true

# Runs commands as child processes, at most so many at a time, and reports each as it ends.
#
#   script/with-ruby ruby examples/workers.rb [COMMAND…]

require "uringmachine"

AT_A_TIME = 4
commands = ARGV.empty? ? Array.new(8) { |number| "sleep 0.0#{number}; exit #{number % 2}" } : ARGV

Fiber.set_scheduler(UM::FiberScheduler.new)

queue = Queue.new
commands.each { |command| queue << command }
queue.close

AT_A_TIME.times do |worker|
  Fiber.schedule do
    while (command = queue.pop)
      output = `#{command} 2>&1`
      puts "worker #{worker}: #{command.inspect} ended with #{$?.exitstatus}#{": #{output.lines.first}" unless output.empty?}"
    end
  end
end

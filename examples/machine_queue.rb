# frozen_string_literal: true

# A queue between fibers, and a mutex around what only one may do at a time.
#
#   ruby examples/machine_queue.rb

require "uringmachine"

machine = UM.new
queue = UM::Queue.new
mutex = UM::Mutex.new
sum = 0

producer = machine.spin do
  (1..100).each do |number|
    machine.sleep(0.0001)
    machine.push(queue, number)
  end
  3.times { machine.push(queue, :stop) }
end

consumers = Array.new(3) do
  machine.spin do
    until (number = machine.shift(queue)) == :stop
      machine.synchronize(mutex) do
        before = sum
        machine.snooze
        sum = before + number
      end
    end
  end
end

machine.await(producer, *consumers)
puts "sum: #{sum}"

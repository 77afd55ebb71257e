# frozen_string_literal: true

# Fibers of a machine: started, joined, timed out, ended.
#
#   ruby examples/machine_fibers.rb

require "uringmachine"

machine = UM.new
reader, writer = UM.pipe

reading = machine.spin do
  buffer = +""
  lines = 0
  while machine.read(reader, buffer, 8192).positive?
    puts buffer
    lines += buffer.count("\n")
  end
  lines
end

writing = machine.spin do
  (1..5).each do |count|
    machine.sleep(0.01)
    machine.write(writer, "#{count} Mississippi\n")
  end
  machine.close(writer)
end

lines, = machine.join(reading, writing)
puts "#{lines} lines"

# What a fiber waits for is ended by an exception: here after a time, and by hand.
class TooSlow < StandardError; end

begin
  machine.timeout(0.01, TooSlow) { machine.sleep(10) }
rescue TooSlow
  puts "too slow"
end

sleeping = machine.spin do
  machine.sleep(10)
rescue RuntimeError => e
  e.message
end
machine.snooze
machine.schedule(sleeping, RuntimeError.new("cancelled"))
puts machine.join(sleeping)

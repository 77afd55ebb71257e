# frozen_string_literal: true

# Messages of 1 KiB through pipes, written and read by fibers of a machine: plain Ruby's threads, Async, and the machine
# with descriptors and with files that are registered with its ring.
#
#   script/with-ruby ruby bench/registered_files.rb [MESSAGES]

require_relative "comparison"

MESSAGES = Integer(ARGV.fetch(0, 200_000))
PAIRS = 48
SHARE = MESSAGES / PAIRS
MESSAGE = ("*" * 1024).freeze

def through_ios(spawn)
  PAIRS.times do
    reader, writer = IO.pipe
    spawn.call { SHARE.times { writer.write(MESSAGE) } }
    spawn.call do
      buffer = +""
      SHARE.times { reader.readpartial(1024, buffer) }
    end
  end
end

def through_a_machine(registered)
  machine = UM.new
  pipes = Array.new(PAIRS) { UM.pipe }
  pipes.flatten.each { |fd| machine.register_file(fd) } if registered
  fibers = pipes.flat_map do |reader, writer|
    buffer = +""
    [machine.spin { SHARE.times { machine.write(writer, MESSAGE) } }, machine.spin { SHARE.times { machine.read(reader, buffer, 1024) } }]
  end
  machine.await(fibers)
  pipes.flatten.each { |fd| machine.close(fd) }
end

comparison = Comparison.new("#{MESSAGES} messages through pipes", operations: MESSAGES, unit: "message")
comparison.peers(%w[threads um async-epoll async-uring]) { |spawn| through_ios(spawn) }
comparison.way("machine") { through_a_machine(false) }
comparison.way("machine, registered") { through_a_machine(true) }
comparison.run

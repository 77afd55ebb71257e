# frozen_string_literal: true

# Reads of 64 KiB, of a file without the page cache (O_DIRECT) and of one in it: plain Ruby, Async, and the machine into
# memory that is registered with the ring and into memory that is not.
#
#   script/with-ruby ruby bench/registered_buffers.rb [READS]

require "tempfile"
require_relative "comparison"

READS = Integer(ARGV.fetch(0, 5_000))
SIZE = 65_536
BLOCKS = 256
FILE = Tempfile.create("um", "/var/tmp").tap { |file| file.write(Random.bytes(SIZE * BLOCKS)) && file.fsync }

def machine_reads(machine, buffer, flags)
  machine.open(FILE.path, UM::O_RDONLY | flags) do |fd|
    READS.times { |number| machine.read(fd, buffer, SIZE, 0, number % BLOCKS * SIZE) }
  end
end

def plain_reads(flags, memory = IO::Buffer.new(SIZE))
  File.open(FILE.path, File::RDONLY | flags) do |file|
    READS.times { |number| memory.pread(file, number % BLOCKS * SIZE, SIZE) }
  end
end

machine = UM.new
registered = machine.register_buffers(count: 1, size: SIZE).acquire
plain = IO::Buffer.new(SIZE)
{ "without the page cache" => UM::O_DIRECT, "from the page cache" => 0 }.each do |name, flags|
  comparison = Comparison.new("#{READS} reads of 64 KiB #{name}", operations: READS, unit: "read")
  comparison.way("plain Ruby") { plain_reads(flags) }
  comparison.peers { |spawn| spawn.call { plain_reads(flags) } }
  comparison.way("um, registered") do
    Peers.run("um") do |spawn|
      spawn.call { Fiber.scheduler.machine.register_buffers(count: 1, size: SIZE).acquire { |buffer| plain_reads(flags, buffer) } }
    end
  end
  comparison.way("machine") { machine_reads(machine, plain, flags) }
  comparison.way("machine, registered") { machine_reads(machine, registered, flags) }
  comparison.run
end
File.unlink(FILE.path)

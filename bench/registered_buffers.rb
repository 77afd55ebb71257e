# frozen_string_literal: true

# Reads of 64 KiB into a buffer that is registered with the ring and into one that is not: of a file without the page
# cache (O_DIRECT), and of one in it. CPU and wall time a read, and the ratio, in one run; plain Ruby's pread beside them.
#
#   script/with-ruby ruby bench/registered_buffers.rb [READS]

require "tempfile"
require "uringmachine"

READS = Integer(ARGV.fetch(0, 5_000))
SIZE = 65_536
BLOCKS = 256
FILE = Tempfile.create("um", "/var/tmp").tap { |file| file.write(Random.bytes(SIZE * BLOCKS)) && file.fsync }

def machine_reads(machine, buffer, flags)
  machine.open(FILE.path, UM::O_RDONLY | flags) do |fd|
    READS.times { |number| machine.read(fd, buffer, SIZE, 0, number % BLOCKS * SIZE) }
  end
end

def plain_reads(flags)
  File.open(FILE.path, File::RDONLY | flags) do |file|
    memory = IO::Buffer.new(SIZE)
    READS.times { |number| memory.pread(file, number % BLOCKS * SIZE, SIZE) }
  end
end

def measure
  clocks = [Process::CLOCK_PROCESS_CPUTIME_ID, Process::CLOCK_MONOTONIC]
  before = clocks.map { |clock| Process.clock_gettime(clock) }
  yield
  clocks.zip(before).map { |clock, start| (Process.clock_gettime(clock) - start) / READS * 1e6 }
end

machine = UM.new
registered = machine.register_buffers(count: 1, size: SIZE).acquire
plain = IO::Buffer.new(SIZE)
{ "O_DIRECT" => UM::O_DIRECT, "page cache" => 0 }.each do |name, flags|
  samples = { "plain Ruby" => [], "machine" => [], "registered" => [] }
  5.times do
    samples["plain Ruby"] << measure { plain_reads(flags) }
    samples["machine"] << measure { machine_reads(machine, plain, flags) }
    samples["registered"] << measure { machine_reads(machine, registered, flags) }
  end
  medians = samples.transform_values { |found| found.transpose.map { |values| values.sort[values.size / 2] } }
  medians.each do |kind, (cpu, wall)|
    puts format("%-10s %-10s CPU %7.2f us  wall %7.2f us  CPU to plain Ruby %.2f", name, kind, cpu, wall, cpu / medians["plain Ruby"][0])
  end
end
File.unlink(FILE.path)

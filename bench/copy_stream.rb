# frozen_string_literal: true

# IO.copy_stream of a file to a socket and from a socket to a socket: plain Ruby and the scheduler, in one run. CPU and wall
# time a megabyte, and the ratio. (script/bench measures the first beside Async too.)
#
#   script/with-ruby ruby bench/copy_stream.rb [MEGABYTES]

require "socket"
require "tempfile"
require "uringmachine"

MEGABYTES = Integer(ARGV.fetch(0, 512))
FILE = Tempfile.new.tap { |file| file.write("c" * (1 << 20) * 16) && file.flush }

# What takes the bytes, or sends them, is a process of its own, the same for both.
def sink
  there, here = UNIXSocket.pair
  child = fork do
    here.close
    buffer = +""
    nil while there.read(1 << 20, buffer)
    exit!(0)
  end
  there.close
  yield here
  here.close
  Process.wait(child)
end

def source
  there, here = UNIXSocket.pair
  child = fork do
    here.close
    bytes = "s" * (1 << 20)
    MEGABYTES.times { there.write(bytes) }
    exit!(0)
  end
  there.close
  yield here
  Process.wait(child)
end

WORK = {
  "file to socket" => -> { sink { |target| (MEGABYTES / 16).times { FILE.rewind && IO.copy_stream(FILE, target) } } },
  "socket to socket" => -> { sink { |target| source { |from| IO.copy_stream(from, target) } } }
}.freeze

def scheduled(work)
  Thread.new do
    Fiber.set_scheduler(UM::FiberScheduler.new)
    Fiber.schedule(&work)
  end.join
end

def measure
  clocks = [Process::CLOCK_PROCESS_CPUTIME_ID, Process::CLOCK_MONOTONIC]
  before = clocks.map { |clock| Process.clock_gettime(clock) }
  yield
  clocks.zip(before).map { |clock, start| (Process.clock_gettime(clock) - start) / MEGABYTES * 1e6 }
end

WORK.each do |name, work|
  samples = { "plain" => [], "um" => [] }
  5.times do
    samples["plain"] << measure { work.call }
    samples["um"] << measure { scheduled(work) }
  end
  plain, um = samples.values.map { |found| found.transpose.map { |values| values.sort[values.size / 2] } }
  puts format("%-17s plain: CPU %7.1f us, wall %7.1f us  um: CPU %7.1f us, wall %7.1f us  ratio of CPU %.2f", name, *plain, *um, um[0] / plain[0])
end

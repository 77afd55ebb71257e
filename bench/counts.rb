# frozen_string_literal: true

# Counts what an operation costs: instructions, calls of malloc, system calls and Ruby objects. Counts do not depend on
# how fast or busy a machine is, so that a change can be held to them.
#
#   script/counts [--save] [--check] [ROW…]
#
# Each row runs twice under valgrind (callgrind), with a number of operations and with three times as many; the
# difference is what the operations cost. The collector is off: its work depends on what else the program has.

require "json"
require "optparse"
require "rbconfig"
require "tempfile"

# A row's code sees `n`, the operations to do, and runs on a thread of its own for which `machine` is the thread's UM
# or whose scheduler is ours.
Row = Struct.new(:kind, :operations, :code)

MACHINE = {
  "method call" => [5_000, "n.times { machine.size }"],
  "switch" => [5_000, "other = machine.spin { loop { machine.switch } }; n.times { machine.snooze }"],
  "switch to another" => [3_000, "other = machine.spin { n.times { machine.snooze } }; n.times { machine.snooze }; machine.join(other)"],
  "queue push" => [10_000, "queue = UM::Queue.new; n.times { machine.push(queue, 1) }"],
  "queue push and shift" => [10_000, "queue = UM::Queue.new; n.times { machine.push(queue, 1); machine.shift(queue) }"],
  "UM#read and write, pipe" => [2_000, "reader, writer = UM.pipe; s = +''; n.times { machine.write(writer, 'x'); machine.read(reader, s, 1) }"],
  "UM#read that waits, pipe" => [1_000, <<~RUBY],
    reader, writer = UM.pipe
    other = machine.spin { s = +''; n.times { machine.read(reader, s, 1) } }
    n.times { machine.snooze; machine.write(writer, 'x') }
    machine.join(other)
  RUBY
  "UM#send and recv, socket" => [2_000, "a, b = UM.socketpair(UM::AF_UNIX, UM::SOCK_STREAM, 0); s = +''; n.times { machine.send(a, 'x', 1, 0); machine.recv(b, s, 1, 0) }"],
  "UM#sleep 0" => [2_000, "n.times { machine.sleep(0) }"],
  "spin and join" => [1_000, "n.times { machine.join(machine.spin { nil }) }"]
}.freeze

SCHEDULER = {
  "sleep 0" => [5_000, "n.times { sleep(0) }"],
  "schedule and finish" => [1_000, "n.times { Fiber.schedule { nil } }"],
  "Queue between fibers" => [3_000, "queue = Queue.new; Fiber.schedule { n.times { queue.pop } }; n.times { queue << 1; sleep(0) }"],
  "pipe, ready" => [2_000, "reader, writer = IO.pipe; writer.sync = true; n.times { writer.write('x'); reader.readpartial(8) }"],
  "pipes, there and back" => [1_000, <<~RUBY],
    there, back = Array.new(2) { IO.pipe }
    [there, back].each { |_, writer| writer.sync = true }
    Fiber.schedule { n.times { back[1].write(there[0].readpartial(8)) } }
    n.times { there[1].write('x'); back[0].readpartial(8) }
  RUBY
  "socket, ready" => [2_000, "a, b = UNIXSocket.pair; n.times { a.write('x'); b.readpartial(8) }"],
  "socket, there and back" => [1_000, <<~RUBY],
    a, b = UNIXSocket.pair
    Fiber.schedule { n.times { b.write(b.readpartial(8)) } }
    n.times { a.write('x'); a.readpartial(8) }
  RUBY
  # A read that fills its buffer may have left something.
  "socket, no more than is read" => [1_000, <<~RUBY]
    a, b = UNIXSocket.pair
    Fiber.schedule { n.times { b.write(b.readpartial(8)) } }
    n.times { a.write('12345678'); a.readpartial(8) }
  RUBY
}.freeze

ROWS = MACHINE.transform_values { |n, code| Row.new(:machine, n, code) }.merge(SCHEDULER.transform_values { |n, code| Row.new(:scheduler, n, code) }).freeze

# What runs under valgrind. The objects are counted from inside.
PROGRAM = {
  machine: <<~RUBY,
    Thread.new do
      n = Integer(ARGV.first)
      machine = UM.new
      before = GC.stat(:total_allocated_objects)
      %s
      $stderr << "objects \#{GC.stat(:total_allocated_objects) - before}\n"
    end.join
  RUBY
  scheduler: <<~RUBY
    Thread.new do
      n = Integer(ARGV.first)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      before = GC.stat(:total_allocated_objects)
      Fiber.schedule do
        %s
      end
      Fiber.set_scheduler(nil)
      $stderr << "objects \#{GC.stat(:total_allocated_objects) - before}\n"
    end.join
  RUBY
}.freeze

COLUMNS = %w[instructions mallocs syscalls objects].freeze
# The allocator's ways in.
MALLOC = /\A(malloc|calloc|realloc|posix_memalign|aligned_alloc|memalign)(@.*)?\z/

# A system call as valgrind notes it when it begins; what is none without valgrind (vdso(7)) does not count.
SYSCALL = /SYSCALL\[.*\) sys_(?!clock_gettime|gettimeofday|time\b|getcpu)/

# Counts of one run with a number of operations.
def run(row, operations)
  Tempfile.create("counts") do |found|
    Tempfile.create("log") do |log|
      code = "GC.disable; require 'socket'; require 'uringmachine'\n#{format(PROGRAM.fetch(row.kind), row.code)}"
      command = [ENV.fetch("VALGRIND", "valgrind"), "--tool=callgrind", "--trace-syscalls=yes", "--log-file=#{log.path}", "--callgrind-out-file=#{found.path}",
                 RbConfig.ruby, "--disable=gems,jit", "-W0", "-e", code, operations.to_s]
      output = IO.popen(command, err: %i[child out], &:read)
      $?.success? or abort("the row's program failed:\n#{output}")
      instructions, mallocs = profile(found.path)
      [instructions, mallocs, File.foreach(log.path).count { |line| SYSCALL.match?(line) }, Integer(output[/objects (\d+)/, 1])]
    end
  end
end

# Instructions in all, and calls of the allocator, of a profile as callgrind writes it
# (https://valgrind.org/docs/manual/cl-format.html): a name follows its number where it comes first.
def profile(path)
  total = mallocs = 0
  names = {}
  called = nil
  File.foreach(path) do |line|
    case line
    when /\Ac?fn=\((\d+)\)(?: (.+))?/
      names[$1] = $2 if $2
      called = names[$1] if line.start_with?("c")
    when /\Acalls=(\d+)/ then mallocs += $1.to_i if MALLOC.match?(called)
    when /\A(?:summary|totals): (\d+)/ then total = $1.to_i
    end
  end
  [total, mallocs]
end

def measure(row)
  few, many = run(row, row.operations), run(row, row.operations * 3)
  COLUMNS.zip(many.zip(few).map { |more, less| (more - less).fdiv(row.operations * 2) }).to_h
end

BASELINE = File.join(__dir__, "counts.json")
# Counts differ a little from run to run: seeds of hashes, addresses, ticks.
ALLOWED = 1.03

def label(name, value, before)
  change = before && !before.zero? && value.positive? ? format(" %+.1f %%", (value / before - 1) * 100) : ""
  format(name == "instructions" ? "%.0f%s" : "%.2f%s", value, change)
end

options = {}
OptionParser.new do |parser|
  parser.banner = "Usage: script/counts [options] [row…]\nRows: #{ROWS.keys.join(", ")}"
  parser.on("--save", "make what is found the baseline of this Ruby") { options[:save] = true }
  parser.on("--check", "fail where a row is more than 3 % above its baseline") { options[:check] = true }
end.parse!

names = ARGV.empty? ? ROWS.keys : ARGV
unknown = names - ROWS.keys
abort("no such row: #{unknown.join(", ")}; rows: #{ROWS.keys.join(", ")}") unless unknown.empty?

baselines = File.exist?(BASELINE) ? JSON.parse(File.read(BASELINE)) : {}
baseline = baselines[RUBY_VERSION] ||= {}
puts "| operation (Ruby #{RUBY_VERSION}, #{RUBY_PLATFORM}) | #{COLUMNS.join(" | ")} |", "|#{"---|" * (COLUMNS.size + 1)}"
above = []
found = names.to_h do |name|
  counts = measure(ROWS.fetch(name))
  before = baseline.fetch(name, {})
  puts "| #{name} | #{counts.map { |column, value| label(column, value, before[column]) }.join(" | ")} |"
  $stdout.flush
  above << name if before.any? { |column, value| counts.fetch(column) > value * ALLOWED + 0.05 }
  [name, counts.transform_values { |value| value.round(2) }]
end
if options[:save]
  baseline.merge!(found)
  File.write(BASELINE, "#{JSON.pretty_generate(baselines)}\n")
end
abort("above the baseline: #{above.join(", ")}") if options[:check] && above.any?

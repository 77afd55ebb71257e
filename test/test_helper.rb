# frozen_string_literal: true

require "minitest/autorun"
require "timeout"
require "socket"
require "io/wait"
require "tempfile"
require "tmpdir"
require "fileutils"
require "uringmachine"

# What every test may use.
class PatientTest < Minitest::Test
  # Longer than any test takes, on any machine: a test that hangs says where.
  PATIENCE = Integer(ENV.fetch("UM_TEST_PATIENCE", 60))

  def setup
    @watchdog = Thread.new do
      sleep PATIENCE
      # Not `warn`, which -W0 silences.
      $stderr << "#{name} hangs:\n"
      Thread.list.each { |thread| $stderr << [thread.inspect, *thread.backtrace&.first(15), "\n"].join("\n") }
      $stderr << UM::Report.all.join("\n")
      exit!(1)
    end
  end

  def teardown
    GC.enable
    @fillers&.each(&:close)
    @watchdog.kill.join
    assert_empty children, "#{name} leaves children"
  end

  # The program's children, with what they run. One that a test leaves is the surprise of another, which waits for anybody.
  def children
    Dir.glob("/proc/[0-9]*/stat").filter_map do |path|
      stat = File.read(path)
      [stat.to_i, stat[/\((.*)\)/m, 1]] if stat[/.*\) \S (\d+)/m, 1].to_i == Process.pid
    rescue Errno::ENOENT, Errno::ESRCH
      nil
    end
  end

  # From here to the test's end, the number of a descriptor that is closed is the next that is given: no other is free,
  # and the collector frees none.
  def keep_numbers
    GC.start
    GC.disable
    taken = Dir.children("/proc/self/fd").map(&:to_i).sort
    # Those far above are valgrind's own.
    highest = taken.slice_when { |a, b| b - a > 200 }.first.last
    @fillers = ((0..highest).to_a - taken).map { File.open(File::NULL) }
  end

  # How many descriptors are open, once the collector has closed what earlier tests have left.
  def settled_descriptors
    GC.start
    open_descriptors
  end

  def open_descriptors
    Dir.children("/proc/self/fd").size
  end

  # Runs Ruby code in a process of its own, which another command may start; returns its output and status.
  def ruby(code, *arguments, env: {}, before: [])
    output = IO.popen([env, *before, *ruby_command(code, *arguments)], err: %i[child out], &:read)
    [output, $?]
  end

  # What starts Ruby with the gem, to run code.
  def ruby_command(code, *arguments)
    [RbConfig.ruby, "-W:no-experimental", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, "-ruringmachine", "-e", code, *arguments]
  end

  # Runs the `uringmachine` command within the test: its status, and what it says on either stream.
  def run_command(*arguments)
    output, errors = StringIO.new, StringIO.new
    [UM::Command.run(arguments, output:, errors:), output.string, errors.string]
  end

  def rss
    File.read("/proc/self/status")[/VmRSS:\s+(\d+)/, 1].to_i
  end
end

# Tests of the scheduler.
class SchedulerTest < PatientTest
  # Runs the block as the body of a thread with a scheduler; returns what it returns once every fiber has ended.
  def scheduled(scheduler = nil)
    Thread.new do
      Thread.current.report_on_exception = false
      scheduler ||= UM::FiberScheduler.new
      # What a fiber raises, a failed assertion too, fails the test.
      scheduler.abort_on_exception = true
      Fiber.set_scheduler(scheduler)
      result = yield scheduler
      Fiber.set_scheduler(nil)
      result
    end.value
  end

  # Runs the block in a fiber under a scheduler; returns what it returns.
  def in_fiber
    result = nil
    scheduled { |scheduler| Fiber.schedule { result = yield scheduler } }
    result
  end
end

# Tests of the machine's own methods.
class MachineTest < PatientTest
  attr_reader :machine

  def setup
    super
    @machine = UM.new
    @opened = []
  end

  def teardown
    @opened.each do |fd|
      machine.close(fd)
    rescue Errno::EBADF
      # The test has closed it.
    end
    super
  end

  # Notes descriptors that are closed when the test ends; returns them.
  def opened(*fds)
    @opened.concat(fds.flatten)
    fds.size == 1 ? fds.first : fds
  end

  # Runs other fibers until the block is true.
  def eventually
    machine.snooze until yield
  end

  # Asserts that a call raises an error of a class whose message names an argument.
  def assert_names(name, error_class, &)
    error = assert_raises(error_class, &)
    assert_match(/\b#{Regexp.escape(name)}\b/, error.message)
  end
end

# A folder for each test of a MachineTest, and a file in it.
module InFolder
  def setup
    super
    @folder = Dir.mktmpdir
    @path = File.join(@folder, "file")
  end

  def teardown
    super
    FileUtils.rm_rf(@folder)
  end

  # A descriptor of the file.
  def file(content = "")
    File.write(@path, content)
    opened(machine.open(@path, File::RDWR))
  end
end

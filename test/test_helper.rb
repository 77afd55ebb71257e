# frozen_string_literal: true

require "minitest/autorun"
require "timeout"
require "socket"
require "io/wait"
require "tempfile"
require "uringmachine"

# What every test may use.
class SchedulerTest < Minitest::Test
  # Longer than any test takes, on any machine: a test that hangs says where.
  PATIENCE = 60

  def setup
    @watchdog = Thread.new do
      sleep PATIENCE
      warn "#{name} hangs:"
      Thread.list.each { |thread| warn thread.inspect, *thread.backtrace&.first(15), "" }
      exit!(1)
    end
  end

  def teardown
    @watchdog.kill.join
  end

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

  def open_descriptors
    Dir.children("/proc/self/fd").size
  end

  # Runs Ruby code in a process of its own; returns its output and status.
  def ruby(code, *arguments, env: {})
    command = [env, RbConfig.ruby, "-W:no-experimental", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, "-ruringmachine", "-e", code, *arguments]
    output = IO.popen(command, err: %i[child out], &:read)
    [output, $?]
  end

  def rss
    File.read("/proc/self/status")[/VmRSS:\s+(\d+)/, 1].to_i
  end
end

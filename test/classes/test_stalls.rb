# frozen_string_literal: true

require_relative "../test_helper"

# What keeps the thread from all other fibers, and the numbers that a scheduler tells.
class TestStalls < SchedulerTest
  # Holds the thread, without Ruby's lock, until the block is true in another thread.
  def hold(&)
    reader, writer = IO.pipe
    waker = Thread.new do
      Thread.pass until yield
      writer.write("x")
    end
    Fiber.blocking { reader.wait_readable }
    waker.join
  end

  def test_a_fiber_that_holds_the_thread_is_told_of_once_a_place
    told = Thread::Queue.new
    scheduled do |scheduler|
      assert_same scheduler, scheduler.warn_of_stalls(0.01) { |*stall| told << stall }
      other = Fiber.schedule { sleep }
      Fiber.schedule do
        # The same place twice: it is counted twice, and told of once.
        2.times do |time|
          sleep 0
          hold { scheduler.machine.stalls.first > time }
        end
        count, longest = scheduler.metrics.values_at(:stalls_total, :stall_longest_seconds)
        assert_equal 2, count
        assert_operator longest, :>=, 0.01
        other.kill
      end
    end
    assert_equal 1, told.size
    seconds, backtrace = told.pop
    assert_operator seconds, :>=, 0.01
    assert(backtrace.any? { |frame| frame.end_with?("in 'TestStalls#hold'") }, backtrace.join("\n"))
  end

  def test_it_is_printed_unless_there_is_a_block
    output, status = ruby(<<~RUBY)
      printed, $stderr = IO.pipe
      Fiber.set_scheduler(scheduler = UM::FiberScheduler.new)
      scheduler.warn_of_stalls(0.001)
      other = Fiber.schedule { sleep }
      Fiber.schedule do
        Fiber.blocking { 2.times { puts printed.gets } }
        other.kill
      end
    RUBY
    assert_predicate status, :success?, output
    assert_match(/\Auringmachine: a fiber has kept its thread from all others for 0\.\d+ s, and still does:\n +-e:6:in '.*#gets'\n\z/, output)
  end

  def test_who_sleeps_or_is_alone_holds_nobody_up
    scheduled do |scheduler|
      scheduler.warn_of_stalls(0.001) { flunk }
      hold { scheduler.machine.stalls }
      Fiber.schedule { sleep 0.02 }
      scheduler.run
      assert_equal [0, 0.0], scheduler.machine.stalls
      scheduler.warn_of_stalls(nil)
      assert_nil scheduler.machine.stalls
      refute scheduler.metrics.key?(:stalls_total)
    end
  end

  def test_limits_that_make_no_sense
    machine = UM.new
    [0, -1, -0.5].each { |limit| assert_match(/limit/, assert_raises(ArgumentError) { machine.warn_of_stalls(limit) }.message) }
    ["1", Object.new].each { |limit| assert_match(/limit/, assert_raises(TypeError) { machine.warn_of_stalls(limit) }.message) }
    assert_nil machine.stalls
  end

  def test_metrics
    scheduled do |scheduler|
      reader, writer = IO.pipe
      Fiber.schedule { reader.gets }
      Fiber.schedule do
        sleep 0
        metrics = scheduler.metrics
        assert_equal 2, metrics[:fibers]
        assert_equal 1, metrics[:operations_total].values.sum
        assert_operator metrics[:switches_total], :>, 0
        refute metrics.key?(:utilization)
        scheduler.machine.profile_mode = true
        sleep 0.001
        metrics = scheduler.metrics
        assert_operator metrics[:seconds_asleep_total], :>, 0
        assert_includes 0.0..1.0, metrics[:utilization]
        numbers = metrics.values.flat_map { |value| value.is_a?(Hash) ? value.values : [value] }
        assert(numbers.all?(Numeric))
        writer.puts
      end
    end
  end

  # The time of a sleep counts while it lasts.
  def test_the_sleep_of_a_thread_is_told_to_others_while_it_lasts
    machine = nil
    sleeper = Thread.new do
      machine = UM.new
      machine.profile_mode = true
      machine.sleep
    end
    Thread.pass until machine&.report&.to_h&.fetch(:asleep)
    first = machine.metrics[:time_total_wait]
    sleep 0.001
    assert_operator machine.metrics[:time_total_wait], :>=, first + 0.001
  ensure
    sleeper.kill.join
  end
end

# frozen_string_literal: true

require_relative "../test_helper"

# sleep, timeout, periodically and prep_timeout.
class TestMachineTime < MachineTest
  class TooLate < StandardError; end
  class TooLateOuter < StandardError; end
  class Marker; end

  def elapsed
    started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    yield
    Process.clock_gettime(Process::CLOCK_MONOTONIC) - started
  end

  def test_what_is_longer_than_any_time_is_for_ever
    [Float::INFINITY, 1e30, 10**30, Rational(10**40, 3)].each do |duration|
      fiber = machine.spin { machine.sleep(duration) }
      2.times { machine.snooze }
      refute fiber.done?
      machine.schedule(fiber, :woken)
      assert_equal :woken, machine.join(fiber)
      assert_equal :done, machine.timeout(duration, TooLate) { machine.sleep(0) && :done }
      refute_predicate machine.prep_timeout(duration), :done?
    end
  end

  def test_sleep_sleeps_and_returns_its_duration
    assert_operator elapsed { assert_equal 0.02, machine.sleep(0.02) }, :>=, 0.02
    assert_operator elapsed { assert_equal 1r / 50, machine.sleep(1r / 50) }, :>=, 0.02
  end

  def test_sleep_of_zero_returns_and_lets_others_run
    ran = false
    machine.spin { ran = true }
    assert_equal 0, machine.sleep(0)
    assert ran
    assert_equal 0.0, machine.sleep(0.0)
  end

  def test_sleep_for_ever_ends_when_it_is_scheduled
    fiber = machine.spin { machine.sleep }
    other = machine.spin { machine.sleep(nil) }
    machine.snooze
    machine.schedule(fiber, :awake)
    machine.schedule(other, :too)
    assert_equal %i[awake too], machine.join(fiber, other)
  end

  def test_sleep_of_nonsense
    assert_names("duration", ArgumentError) { machine.sleep(-1) }
    assert_names("duration", ArgumentError) { machine.sleep(-0.1) }
    assert_names("duration", TypeError) { machine.sleep("1") }
    assert_names("duration", TypeError) { machine.sleep([]) }
    [-Float::INFINITY, -1e30, -(10**30), Float::NAN].each { |duration| assert_names("duration", ArgumentError) { machine.sleep(duration) } }
  end

  def test_timeout_returns_what_the_block_returns
    assert_equal 42, machine.timeout(10, TooLate) { 42 }
    assert_equal 0, machine.metrics[:ops_pending]
  end

  def test_a_block_may_be_a_method_that_takes_nothing
    assert_equal 42, machine.timeout(10, TooLate, &-> { 42 })
    assert_equal 1, machine.synchronize(UM::Mutex.new, &-> { 1 })
    rounds = 0
    tick = -> { (rounds += 1) == 2 && throw(:out) }
    catch(:out) { machine.periodically(0.001, &tick) }
    assert_equal 2, rounds
    fiber = Fiber.new { machine.run(fiber, &-> { :ran }) }
    machine.schedule(fiber, nil)
    assert_equal :ran, machine.join(fiber)
  end

  def test_timeout_raises_a_class_an_instance_or_with_a_message
    assert_raises(TooLate) { machine.timeout(0.005, TooLate) { machine.sleep } }
    instance = TooLate.new("this one")
    assert_same instance, assert_raises(TooLate) { machine.timeout(0.005, instance) { machine.sleep } }
    error = assert_raises(TooLate) { machine.timeout(0.005, TooLate, "my words") { machine.sleep } }
    assert_equal "my words", error.message
  end

  def test_timeout_of_another_object_has_the_wait_return_it
    assert_instance_of(Marker, machine.timeout(0.005, Marker) { machine.sleep })
    assert_equal :late, machine.timeout(0.005, :late) { machine.sleep }
  end

  def test_nested_timeouts_fire_each_for_its_own_block
    error = assert_raises(TooLate) { machine.timeout(10, TooLateOuter) { machine.timeout(0.005, TooLate) { machine.sleep } } }
    assert_instance_of TooLate, error
    assert_raises(TooLateOuter) { machine.timeout(0.005, TooLateOuter) { machine.timeout(10, TooLate) { machine.sleep } } }
    swallowed = machine.timeout(0.02, TooLateOuter) do
      machine.timeout(0.005, TooLate) { machine.sleep }
    rescue TooLate
      :inner
    end
    assert_equal :inner, swallowed
    assert_equal 0, machine.metrics[:ops_pending]
  end

  # The operation has completed and the time is up when the machine looks: the result counts, and what comes after the
  # block is neither raised at nor cut short.
  def test_a_timeout_never_fires_after_its_block_and_cuts_nothing_else_short
    reader, writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
    20.times do
      read = machine.timeout(0.001, TooLate) do
        machine.write_async(writer, "x")
        machine.submit
        started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
        nil until Process.clock_gettime(Process::CLOCK_MONOTONIC) - started > 0.002
        machine.read(reader, +"", 1)
      rescue TooLate
        machine.read(reader, +"", 1)
      end
      assert_equal 1, read
      assert_operator elapsed { assert_equal 0.003, machine.sleep(0.003) }, :>=, 0.003
    end
  end

  def test_an_exception_of_the_block_disarms_the_timeout
    assert_raises(ArgumentError) { machine.timeout(10, TooLate) { raise ArgumentError } }
    assert_equal 0, machine.metrics[:ops_pending]
    assert_equal(:broken, catch(:out) { machine.timeout(10, TooLate) { throw :out, :broken } })
    assert_equal 0, machine.metrics[:ops_pending]
  end

  def test_timeout_of_nonsense
    assert_names("interval", TypeError) { machine.timeout("1", TooLate) {} }
    assert_names("interval", TypeError) { machine.timeout(nil, TooLate) {} }
    assert_names("interval", ArgumentError) { machine.timeout(-1, TooLate) {} }
    assert_raises(ArgumentError) { machine.timeout(1, TooLate) }
    assert_raises(ArgumentError) { machine.timeout(1) {} }
  end

  def test_periodically_runs_until_it_is_left
    count = 0
    took = elapsed do
      result = machine.periodically(0.005) { (count += 1) == 4 and break :left }
      assert_equal :left, result
    end
    assert_equal 4, count
    assert_operator took, :>=, 0.02
    assert_raises(TooLate) { machine.timeout(0.02, TooLate) { machine.periodically(0.005) { count += 1 } } }
    assert_operator count, :>, 4
    assert_equal 0, machine.metrics[:ops_pending]
  end

  def test_periodically_leaves_out_what_it_missed
    times = []
    machine.periodically(0.01) do
      times << Process.clock_gettime(Process::CLOCK_MONOTONIC)
      machine.sleep(0.025) if times.size == 1
      break if times.size == 3
    end
    assert_operator times[2] - times[0], :>=, 0.035
  end

  def test_periodically_of_nonsense
    assert_names("interval", ArgumentError) { machine.periodically(0) {} }
    assert_names("interval", ArgumentError) { machine.periodically(-1) {} }
    assert_names("interval", TypeError) { machine.periodically("1") {} }
    assert_raises(ArgumentError) { machine.periodically(1) }
  end

  def test_a_timeout_in_a_fiber_of_the_programs_own_that_has_been_suspended
    reader, writer = opened(UM.pipe)
    buffer = +""
    fiber = Fiber.new do
      machine.timeout(0.1, TooLate, "in time") do
        machine.snooze
        Fiber.yield
        # Both are there at once: the result counts, and the exception comes at the next wait. (Not if the kernel has
        # not looked at the pipe again yet, as older ones have not: then the bytes are for the next read.)
        machine.spin { sleep 0.11; IO.for_fd(writer, autoclose: false).syswrite("there") }
        machine.read(reader, buffer, 8192)
        machine.sleep
      end
    end
    fiber.resume
    machine.snooze
    assert_equal "in time", assert_raises(TooLate) { fiber.resume }.message
    machine.read(reader, buffer, 8192) if buffer.empty?
    assert_equal "there", buffer
  end
end

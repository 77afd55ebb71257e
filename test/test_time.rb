# frozen_string_literal: true

require_relative "test_helper"

# sleep, Timeout, and what bad durations get.
class TestTime < SchedulerTest
  def test_sleeps_overlap_and_end_in_the_order_of_their_deadlines
    order = []
    started = now
    scheduled do
      [0.09, 0.03, 0.06].each do |seconds|
        Fiber.schedule do
          sleep seconds
          order << seconds
        end
      end
    end
    assert_equal [0.03, 0.06, 0.09], order
    assert_operator now - started, :>=, 0.09
  end

  def test_sleep_never_ends_early
    in_fiber do
      [0.001, Rational(1, 100), 0.0105].each do |seconds|
        started = now
        sleep seconds
        assert_operator now - started, :>=, seconds
      end
    end
  end

  def test_sleep_zero_lets_others_run
    order = []
    scheduled do
      2.times do |name|
        Fiber.schedule do
          2.times do |round|
            order << [name, round]
            sleep 0
          end
        end
      end
    end
    assert_equal [[0, 0], [1, 0], [0, 1], [1, 1]], order
  end

  def test_a_fiber_that_yields_for_ever_starves_neither_timers_nor_io
    reader, writer = IO.pipe
    log = []
    scheduled do
      stop = false
      Fiber.schedule { sleep 0 until stop }
      Fiber.schedule do
        sleep 0.005
        log << :timer
        writer << "x"
      end
      Fiber.schedule do
        log << reader.readpartial(1)
        stop = true
      end
    end
    assert_equal [:timer, "x"], log
  end

  def test_what_waits_for_ever_in_plain_ruby_does
    [Float::INFINITY, 1e30].each do |duration|
      queue = Thread::Queue.new
      told = []
      scheduled do
        Fiber.schedule { told << queue.pop(timeout: duration) }
        Fiber.schedule { told << Thread.new { :ended }.join(duration).value }
        Fiber.schedule { told << Timeout.timeout(duration) { sleep(0) && :in_time } }
        Fiber.schedule { queue << :popped }
      end
      assert_equal %i[ended in_time popped], told.sort
    end
  end

  def test_bad_durations_raise_what_plain_ruby_raises
    [-1, -0.5, "soon", Object.new, Float::INFINITY, 1e30, Float::NAN].each do |duration|
      plain = assert_raises(ArgumentError, TypeError, RangeError) { sleep(duration) }
      ours = in_fiber { assert_raises(plain.class) { sleep(duration) } }
      assert_equal plain.message, ours.message
    end
  end

  def test_a_timeout_ends_what_waits
    in_fiber do
      reader, = IO.pipe
      [-> { sleep }, -> { Queue.new.pop }, -> { reader.readpartial(1) }, -> { reader.wait_readable }, -> { IO.select([reader]) }].each do |wait|
        assert_raises(Timeout::Error) { Timeout.timeout(0.005) { wait.call } }
      end
    end
  end

  def test_a_timeout_raises_the_class_and_message_asked_for
    in_fiber do
      error = assert_raises(IOError) { Timeout.timeout(0.001, IOError, "too late") { sleep } }
      assert_equal "too late", error.message
    end
  end

  def test_a_timeout_that_does_not_fire_returns_the_value_and_leaves_nothing
    in_fiber do
      assert_equal :value, Timeout.timeout(0.002) { :value }
      # The next wait outlives the deadline that is no more.
      started = now
      sleep 0.01
      assert_operator now - started, :>=, 0.01
    end
  end

  def test_nested_timeouts_raise_inside_their_own_block
    in_fiber do
      log = []
      begin
        Timeout.timeout(0.005) do
          Timeout.timeout(1) { sleep }
        rescue Timeout::Error
          log << :inner
          raise
        end
      rescue Timeout::Error
        log << :outer
      end
      assert_equal :outer, log.last
      assert_raises(Timeout::Error) { Timeout.timeout(1) { Timeout.timeout(0.001) { sleep } } }
    end
  end

  def test_a_timeout_reaches_a_fiber_that_waits_in_an_enumerator
    in_fiber do
      enumerator = Enumerator.new { |yielder| yielder << sleep }
      assert_raises(Timeout::Error) { Timeout.timeout(0.005) { enumerator.next } }
    end
  end

  def test_a_timeout_reaches_a_fiber_that_waits_in_another_while_others_are_ready
    done = false
    result = nil
    scheduled do
      Fiber.schedule { Fiber.scheduler.yield until done }
      Fiber.schedule do
        result = assert_raises(Timeout::Error) { Timeout.timeout(0.01) { Fiber.new { IO.pipe.first.read(1) }.resume } }
      ensure
        done = true
      end
    end

    assert_instance_of Timeout::Error, result
  end

  def test_timeout_error_is_caught_where_plain_ruby_catches_it
    in_fiber do
      outcome = begin
        Timeout.timeout(0.001) do
          sleep
        rescue StandardError
          :inside
        end
      rescue Timeout::Error
        :outside
      end
      assert_includes %i[inside outside], outcome
    end
  end

  private

  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
end

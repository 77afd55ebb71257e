# frozen_string_literal: true

require_relative "../test_helper"

# sleep, and what bad durations get.
class TestKernelSleep < SchedulerTest
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

  private

  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
end

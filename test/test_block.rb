# frozen_string_literal: true

require_relative "test_helper"

# Mutex, Queue, ConditionVariable, Thread#join, Monitor: between fibers, and between threads.
class TestBlock < SchedulerTest
  def test_a_mutex_lets_one_fiber_in_at_a_time
    inside = most = 0
    mutex = Mutex.new
    scheduled do
      20.times do
        Fiber.schedule do
          mutex.synchronize do
            inside += 1
            most = [most, inside].max
            sleep 0
            inside -= 1
          end
        end
      end
    end
    assert_equal 1, most
  end

  def test_a_queue_hands_items_from_a_plain_thread_to_a_sleeping_scheduler
    queue = Queue.new
    received = []
    consumer = Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { 100.times { received << queue.pop } }
    end
    100.times { |number| queue << number }
    consumer.join
    assert_equal (0...100).to_a, received
  end

  def test_two_schedulers_play_ping_pong
    there = Queue.new
    back = Queue.new
    rounds = 200
    threads = [
      Thread.new do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule { rounds.times { |n| there << n; back.pop } }
      end,
      Thread.new do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule { rounds.times { back << there.pop } }
      end
    ]
    threads.each(&:join)
    assert_empty there
    assert_empty back
  end

  def test_a_pop_times_out_and_a_later_wait_is_not_cut_short
    in_fiber do
      queue = Queue.new
      assert_nil queue.pop(timeout: 0.003)
      started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      Fiber.schedule { queue << 1 }
      sleep 0.01
      assert_operator Process.clock_gettime(Process::CLOCK_MONOTONIC) - started, :>=, 0.01
      assert_equal 1, queue.pop
    end
  end

  def test_a_timeout_around_a_pop_with_a_timeout_of_its_own_is_not_swallowed
    in_fiber do
      queue = Queue.new
      assert_raises(Timeout::Error) { Timeout.timeout(0.002, Timeout::Error) { queue.pop(timeout: 10) } }
      assert_raises(Timeout::Error) { Timeout.timeout(0.002) { queue.pop(timeout: 10) } }
      assert_nil Timeout.timeout(10, Timeout::Error) { queue.pop(timeout: 0.002) }
    end
  end

  def test_a_condition_variable_wakes_fibers_of_several_schedulers
    mutex = Mutex.new
    condition = ConditionVariable.new
    waiting = 0
    woken = 0
    go = false
    threads = Array.new(3) do
      Thread.new do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        5.times do
          Fiber.schedule do
            mutex.synchronize do
              waiting += 1
              condition.wait(mutex) until go
              woken += 1
            end
          end
        end
      end
    end
    Thread.pass until waiting == 15
    mutex.synchronize do
      go = true
      condition.broadcast
    end
    threads.each(&:join)
    assert_equal 15, woken
  end

  def test_a_condition_variable_that_times_out_returns
    in_fiber do
      mutex = Mutex.new
      mutex.synchronize { ConditionVariable.new.wait(mutex, 0.002) }
      refute_predicate mutex, :locked?
    end
  end

  def test_joining_a_thread_lets_other_fibers_run
    gate = Queue.new
    value = in_fiber do
      thread = Thread.new { gate.pop }
      Fiber.schedule { gate << :opened }
      thread.value
    end
    assert_equal :opened, value
  end

  def test_joining_with_a_limit_returns_nil_at_the_limit
    gate = Queue.new
    thread = Thread.new { gate.pop }
    assert_nil(in_fiber { thread.join(0.005) })
    gate << nil
    assert_same(thread, in_fiber { thread.join })
  end

  def test_a_monitor_works_between_fibers
    require "monitor"
    monitor = Monitor.new
    order = []
    scheduled do
      2.times do |name|
        Fiber.schedule do
          monitor.synchronize do
            order << name
            sleep 0.001
            monitor.synchronize { order << name }
          end
        end
      end
    end
    assert_equal [0, 0, 1, 1], order
  end

  def test_unblock_tolerates_any_fiber_any_number_of_times
    scheduled do |scheduler|
      dead = Fiber.new {}.tap(&:resume)
      waiting = Fiber.schedule { sleep 0.005 }
      2.times { scheduler.unblock(:nobody, dead) }
      3.times { scheduler.unblock(:nobody, waiting) }
      scheduler.unblock(:nobody, Object.new)
      scheduler.run
    end
  end

  def test_a_wake_up_for_an_earlier_wait_is_dropped
    scheduled do |scheduler|
      reader, writer = IO.pipe
      started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      fiber = Fiber.schedule do
        reader.wait_readable
        assert_operator Process.clock_gettime(Process::CLOCK_MONOTONIC) - started, :>=, 0.005
      end
      # It waits for the pipe, not for this.
      scheduler.unblock(:something_else, fiber)
      Fiber.schedule do
        sleep 0.005
        writer << "x"
      end
    end
  end

  def test_bad_arguments_raise
    in_fiber do |scheduler|
      assert_raises(ArgumentError) { scheduler.block }
      assert_raises(TypeError) { scheduler.block(:x, "soon") }
    end
  end
end

# frozen_string_literal: true

require_relative "../test_helper"

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

  # As what is left of a deadline that has passed.
  def test_a_limit_that_is_over_is_over_whatever_the_number
    limits = [-0.001, -1, -(2**70), -0.5r, -Float::INFINITY, 0]
    limits.each do |limit|
      in_fiber do |scheduler|
        full = Thread::SizedQueue.new(1)
        full << 1
        assert_nil Thread::Queue.new.pop(timeout: limit), limit
        assert_nil full.push(2, timeout: limit), limit
        assert_equal false, scheduler.block(:x, limit), limit
      end
    end
    in_fiber { assert_nil Thread.new { sleep }.join(-1) }
  end

  # A fiber whose time is up is still first in line when the lock is given up; another waits behind it.
  def test_a_wake_up_for_a_fiber_whose_time_is_up_is_not_lost
    given = {
      mutex: [-> { Mutex.new.tap(&:lock) }, ->(mutex) { mutex.synchronize { :got } }, ->(mutex) { mutex.unlock }],
      queue: [-> { Thread::Queue.new }, ->(queue) { queue.pop }, ->(queue) { queue << 1 }],
      sized_queue: [-> { Thread::SizedQueue.new(1).tap { |queue| queue << 1 } }, ->(queue) { queue << 2 }, ->(queue) { queue.pop }],
      monitor: [-> { Monitor.new.tap(&:enter) }, ->(monitor) { monitor.synchronize { :got } }, ->(monitor) { monitor.exit }]
    }
    given.each do |name, (make, wait, give)|
      # The giver runs before, or after, the one whose time is up.
      [true, false].each do |first|
        served = 0
        scheduled do
          object = nil
          owner = Fiber.schedule do
            object = make.call
            Fiber.scheduler.yield
            compute(0.02) if first
            give.call(object)
            compute(0.02) unless first
          end
          2.times do |number|
            Fiber.schedule do
              number.zero? ? Timeout.timeout(0.01) { wait.call(object) } : wait.call(object)
              served += 1
              # What it was given it gives on, where it is a lock or room.
              give.call(object) if %i[queue sized_queue].include?(name) && number.zero?
            rescue Timeout::Error
              # Then the other is served.
            end
          end
          owner
        end
        assert_operator served, :>, 0, [name, first]
      end
    end
  end

  # The time is up before another fiber gives what is waited for, and the one that waits has not run since.
  def test_a_wake_up_that_comes_when_the_time_is_up_is_not_lost
    waits = {
      mutex: ->(mutex) { mutex.synchronize { :got } }, monitor: ->(monitor) { monitor.synchronize { :got } }, queue: ->(queue) { queue.pop }
    }
    given = {
      mutex: [-> { Mutex.new.tap(&:lock) }, ->(mutex) { mutex.unlock if mutex.owned? }],
      monitor: [-> { Monitor.new.tap(&:enter) }, ->(monitor) { monitor.exit if monitor.mon_owned? }],
      queue: [-> { Thread::Queue.new }, ->(queue) { queue << 1 }]
    }
    limits = given.keys.to_h { |name| [name, ->(object) { Timeout.timeout(0.004) { waits[name].call(object) } }] }
    [*limits, [:queue, ->(queue) { queue.pop(timeout: 0.004) }]].each do |name, wait_in_time|
      make, give = given[name]
      served = []
      scheduled do
        object = nil
        Fiber.schedule do
          object = make.call
          sleep 0.001
          give.call(object)
        end
        Fiber.schedule do
          served << 1 if wait_in_time.call(object)
          # It takes what it was given, and the next one waits for that.
          give.call(object)
        end
        Fiber.schedule { served << 2 if waits[name].call(object) }
        # Both times pass meanwhile.
        Fiber.schedule { compute(0.01) }
      end
      assert_equal [1, 2], served, name
    end
  end

  def compute(seconds)
    limit = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
    nil while Process.clock_gettime(Process::CLOCK_MONOTONIC) < limit
  end

  # Fiber#raise does not wait until a fiber that was woken goes on: what it was given is the next one's.
  def test_a_wake_up_for_a_fiber_that_is_raised_in_is_passed_on
    given = {
      mutex: [-> { Mutex.new.tap(&:lock) }, ->(mutex) { mutex.synchronize { :got } }, ->(mutex) { mutex.unlock }],
      queue: [-> { Thread::Queue.new }, ->(queue) { queue.pop }, ->(queue) { queue << 1 }]
    }
    given.each do |name, (make, wait, give)|
      log = []
      scheduled do
        object = first = nil
        Fiber.schedule do
          object = make.call
          Fiber.scheduler.yield
          give.call(object)
          first.raise(ArgumentError)
        end
        first = Fiber.schedule { log << (wait.call(object) rescue $!.class) }
        Fiber.schedule { wait.call(object) && log << :served }
      end
      assert_equal [ArgumentError, :served], log, name
    end
  end

  # It never waited: an unblock that comes later is for nobody.
  def test_a_block_that_raises_at_once_is_over
    scheduled do |scheduler|
      reader, writer = IO.pipe
      ready = nil
      waiting = Fiber.schedule do
        scheduler.machine.schedule(Fiber.current, ArgumentError.new("pending"))
        assert_raises(ArgumentError) { scheduler.block(:mutex) }
        ready = reader.wait_readable && reader.read_nonblock(1)
      end
      Fiber.schedule do
        scheduler.unblock(:mutex, waiting)
        scheduler.yield
        writer << "x"
      end
      scheduler.run
      assert_equal "x", ready
    end
  end

  # As of a thread that unlocks between a fiber's look and its wait.
  def test_an_unblock_that_comes_before_the_block_is_not_lost
    in_fiber do |scheduler|
      scheduler.unblock(:lock, Fiber.current)
      assert_equal true, scheduler.block(:lock, 20)
      assert_equal false, scheduler.block(:lock, 0.001), "it is for one wait"
      # Thread#join does not look again whether its thread has ended.
      thread = Thread.new { sleep }
      scheduler.unblock(:lock, Fiber.current)
      assert_equal false, scheduler.block(thread, 0.001)
      thread.kill.join
    end
  end

  def test_bad_arguments_raise
    in_fiber do |scheduler|
      assert_raises(ArgumentError) { scheduler.block }
      assert_raises(TypeError) { scheduler.block(:x, "soon") }
    end
  end
end

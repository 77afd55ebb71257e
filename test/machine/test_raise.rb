# frozen_string_literal: true

require_relative "../test_helper"

# What one fiber raises in another, by Fiber#raise and Fiber#kill.
class TestRaise < SchedulerTest
  def test_a_fiber_killed_runs_its_ensure_blocks_and_no_rescue
    log = []
    scheduled do
      fiber = Fiber.schedule do
        sleep
      rescue Exception # rubocop:disable Lint/RescueException
        log << :rescued
      ensure
        log << :ensured
      end
      fiber.kill
      refute_predicate fiber, :alive?
    end
    assert_equal [:ensured], log
  end

  def test_an_exception_raised_in_a_fiber_by_another_ends_its_wait
    seen = nil
    scheduled do
      fiber = Fiber.schedule do
        sleep
      rescue ArgumentError => e
        seen = e.message
      end
      Fiber.schedule { fiber.raise(ArgumentError, "wake up") }
    end
    assert_equal "wake up", seen
  end

  # Both by the scheduler's fibers, and by the root.
  def by_a_fiber_and_by_the_root
    ended = 0
    body = lambda do |scheduler|
      yield scheduler
      ended += 1
    end
    scheduled { |scheduler| Fiber.schedule { body.call(scheduler) } }
    scheduled(&body)
    assert_equal 2, ended
  end

  def test_who_raises_in_a_fiber_goes_on_when_that_waits_again_or_ends
    by_a_fiber_and_by_the_root do |scheduler|
      order = []
      gate = Thread::Queue.new
      fiber = Fiber.schedule do
        begin
          sleep
        rescue ArgumentError => e
          order << e.message
        end
        gate.pop
      rescue KeyError
        order << :ends
      end
      fiber.raise(ArgumentError, "first")
      order << :back
      assert_includes scheduler.waiting, fiber
      fiber.raise(KeyError)
      order << :back_again
      refute_predicate fiber, :alive?
      assert_equal ["first", :back, :ends, :back_again], order
      assert_raises(FiberError) { fiber.raise("too late") }
    end
  end

  def test_who_raises_in_a_fiber_whose_wait_is_over
    by_a_fiber_and_by_the_root do
      order = []
      queue = Thread::Queue.new
      fiber = Fiber.schedule do
        order << queue.pop
      rescue RuntimeError => e
        order << e.message
      ensure
        order << queue.size
      end
      queue << :popped
      fiber.raise("enough")
      order << :back
      assert_equal ["enough", 1, :back], order
    end
  end

  # The operation is over, and its fiber has not gone on since: its bytes count, and the exception comes at the next wait. If
  # the kernel has not moved them yet, they are there for the next who reads.
  def test_who_raises_in_a_fiber_whose_operation_has_moved_bytes
    reads = {
      hook: ->(source, _) { source.readpartial(100) },
      machine: ->(source, machine) { (+"").tap { |buffer| machine.read(source.fileno, buffer, 100) } }
    }
    reads.each do |name, read|
      by_a_fiber_and_by_the_root do |scheduler|
        source, sink = UNIXSocket.pair
        seen = []
        fiber = Fiber.schedule do
          seen << read.call(source, scheduler.machine)
          sleep
        rescue ArgumentError => e
          seen << e.message
        end
        # A thread, since whoever joins it goes on before the reader.
        Thread.new { sink.write_nonblock("there") }.join
        fiber.raise(ArgumentError, "enough")
        sleep 0 while fiber.alive?
        left = source.read_nonblock(100, exception: false)
        assert_equal %w[there enough], left == "there" ? [left, *seen] : seen, name
      end
    end
  end

  def test_who_raises_in_a_fiber_that_waits_in_one_it_has_resumed
    by_a_fiber_and_by_the_root do |scheduler|
      order = []
      numbers = Enumerator.new do |yielder|
        sleep
      rescue RuntimeError => e
        order << e.message
        yielder << sleep(0)
      end
      fiber = Fiber.schedule { order << numbers.next }
      fiber.raise("inside")
      order << :back
      Fiber.current.blocking? ? scheduler.run : (sleep 0 while fiber.alive?)
      assert_equal ["inside", :back, 0], order
    end
  end

  def test_who_raises_in_the_fiber_that_has_resumed_it
    told = in_fiber do
      outer = Fiber.current
      inner = Fiber.new(blocking: false) do
        outer.raise("up")
      rescue RuntimeError => e
        sleep 0
        e.message
      end
      inner.resume
    end
    assert_equal "up", told
  end

  def test_a_program_raises_in_fibers_of_its_own
    by_a_fiber_and_by_the_root do
      fiber = Fiber.new(blocking: false) do
        Fiber.yield :first
      rescue RuntimeError => e
        sleep 0.001
        Fiber.yield e.message
      end
      assert_equal :first, fiber.resume
      assert_equal "own", fiber.raise("own")
      assert_equal fiber, fiber.kill
      refute_predicate fiber, :alive?
      assert_raises(FiberError) { Fiber.new { nil }.raise("unborn") }
      assert_equal("self", (Fiber.current.raise("self") rescue $!.message))
    end
  end

  def test_who_kills_a_fiber_goes_on
    by_a_fiber_and_by_the_root do
      order = []
      ends = Fiber.schedule do
        sleep
      ensure
        order << :ensured
      end
      assert_same ends, ends.kill
      order << :back
      waits = Fiber.schedule do
        sleep
      ensure
        sleep
      end
      assert_same waits, waits.kill
      order << :back_again
      assert_equal %i[ensured back back_again], order
      refute_predicate ends, :alive?
      # Ruby kills it anew when it is switched to.
      waits.raise("again") if waits.alive?
      refute_predicate waits, :alive?
    end
  end

  def test_who_raises_is_not_lost_to_a_failure_of_the_fiber
    order = []
    Thread.new do
      scheduler = UM::FiberScheduler.new
      Fiber.set_scheduler(scheduler)
      error = capture_io do
        Fiber.schedule do
          fiber = Fiber.schedule { sleep }
          fiber.raise("it fails")
          order << :back
        end
      end
      order << error.last[/it fails/]
      Fiber.set_scheduler(nil)
    end.join
    assert_equal [:back, "it fails"], order
  end
end

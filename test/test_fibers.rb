# frozen_string_literal: true

require_relative "test_helper"

# How fibers start, end and fail, and what closing the scheduler means.
class TestFibers < SchedulerTest
  def test_a_fiber_runs_until_it_waits_before_its_starter_goes_on
    order = []
    scheduled do
      Fiber.schedule do
        order << 1
        sleep 0
        order << 3
      end
      order << 2
    end
    assert_equal [1, 2, 3], order
  end

  def test_fibers_started_by_fibers_run_nested
    order = []
    scheduled do
      Fiber.schedule do
        order << :outer
        Fiber.schedule do
          order << :inner
          sleep 0.01
          order << :inner_end
        end
        order << :outer_again
        Fiber.schedule { order << :short }
        order << :outer_end
      end
    end
    assert_equal %i[outer inner outer_again short outer_end inner_end], order
  end

  def test_a_fiber_started_while_the_scheduler_closes_runs_to_its_end
    ended = []
    scheduled do
      Fiber.schedule do
        sleep 0.01
        Fiber.schedule do
          sleep 0.01
          Fiber.schedule do
            sleep 0.01
            ended << :third
          end
          ended << :second
        end
      end
    end
    assert_equal %i[second third], ended
  end

  def test_a_finished_fiber_is_not_alive
    fiber = nil
    scheduled { fiber = Fiber.schedule { sleep 0.001 } }
    refute_predicate fiber, :alive?
  end

  def test_fiber_storage_is_inherited_and_can_be_given
    seen = []
    scheduled do
      Fiber[:name] = "inherited"
      Fiber.schedule { seen << Fiber[:name] }
      Fiber.schedule(storage: { name: "given" }) { seen << Fiber[:name] }
    end
    assert_equal %w[inherited given], seen
  end

  def test_a_failed_fiber_is_reported_as_a_thread_is_and_the_others_go_on
    output, status = ruby(<<~RUBY)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { sleep 0.001; raise "a failure" }
      Fiber.schedule { sleep 0.02; puts "went on" }
    RUBY
    assert_match(/#<Fiber:.*> terminated with exception \(report_on_exception is true\):\n.*a failure \(RuntimeError\)/, output)
    assert_match(/went on/, output)
    assert_predicate status, :success?
  end

  def test_a_failed_fiber_is_not_reported_where_threads_are_not
    output, = ruby(<<~RUBY)
      Thread.current.report_on_exception = false
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { raise "a failure" }
    RUBY
    assert_empty output
  end

  def test_abort_on_exception_ends_the_thread
    error = assert_raises(RuntimeError) do
      scheduled do
        Fiber.schedule { sleep 10 }
        Fiber.schedule do
          sleep 0.001
          raise "fatal"
        end
      end
    end
    assert_equal "fatal", error.message
  end

  def test_exit_in_a_fiber_exits_and_runs_the_ensure_blocks_of_the_others
    output, status = ruby(<<~RUBY)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { begin; sleep; ensure; puts "unwound"; end }
      Fiber.schedule { sleep 0.001; exit 7 }
    RUBY
    assert_equal "unwound\n", output
    assert_equal 7, status.exitstatus
  end

  def test_closing_waits_for_the_fibers_and_closes_the_ring
    before = open_descriptors
    scheduler = nil
    scheduled do |installed|
      scheduler = installed
      Fiber.schedule { sleep 0.01 }
    end
    assert_predicate scheduler, :closed?
    assert_equal before, open_descriptors
  end

  def test_closing_twice_raises
    scheduler = nil
    scheduled { |installed| scheduler = installed }
    error = assert_raises(RuntimeError) { scheduler.close }
    assert_equal "Scheduler already closed!", error.message
  end

  def test_a_hook_of_a_closed_scheduler_raises
    scheduler = nil
    scheduled { |installed| scheduler = installed }
    assert_raises(RuntimeError) { scheduler.kernel_sleep(1) }
  end

  def test_a_scheduler_of_another_thread_is_refused
    scheduler = UM::FiberScheduler.new
    Thread.new { scheduler.kernel_sleep(0) }.join
    error = assert_raises(FiberError) { scheduler.kernel_sleep(0) }
    assert_match(/across threads/, error.message)
  end

  def test_run_drives_the_fibers_and_can_be_called_again
    scheduled do |scheduler|
      done = []
      2.times do |round|
        Fiber.schedule do
          sleep 0.001
          done << round
        end
        scheduler.run
      end
      assert_equal [0, 1], done
    end
  end

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

  def test_an_enumerator_may_wait_inside_a_fiber
    values = in_fiber do
      enumerator = Enumerator.new do |yielder|
        3.times do |number|
          sleep 0.001
          yielder << number
        end
      end
      [enumerator.next, enumerator.next, enumerator.next]
    end
    assert_equal [0, 1, 2], values
  end

  def test_a_subclass_overrides_a_hook_and_calls_super
    subclass = Class.new(UM::FiberScheduler) do
      def kernel_sleep(*arguments)
        (@slept ||= []) << arguments
        super
      end
      attr_reader :slept
    end
    scheduler = subclass.new
    scheduled(scheduler) { Fiber.schedule { sleep 0.001 } }
    assert_equal [[0.001]], scheduler.slept
  end

  def test_bad_arguments_raise_what_plain_ruby_raises
    assert_raises(ArgumentError) { UM::FiberScheduler.new(nil, 1) }
    assert_raises(TypeError) { UM::FiberScheduler.new("machine") }
    assert_raises(ArgumentError) { UM.new(size: 0) }
    assert_raises(TypeError) { UM.new(size: "many") }
    assert_raises(ArgumentError) { UM.new(colour: 1) }
  end

  def test_a_machine_may_be_given
    machine = UM.new(size: 8)
    scheduler = UM::FiberScheduler.new(machine)
    scheduled(scheduler) { Fiber.schedule { sleep 0.001 } }
    assert_same machine, scheduler.machine
  end

  def test_the_root_fiber_survives_many_fibers_of_other_kinds
    scheduled do
      20.times do
        Fiber.schedule do
          enumerator = Enumerator.new { |yielder| loop { sleep(0); yielder << 1 } }
          5.times { enumerator.next }
        end
      end
    end
  end
end

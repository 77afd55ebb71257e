# frozen_string_literal: true

require_relative "../test_helper"

# How fibers start, end and fail.
class TestFiber < SchedulerTest
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

  def test_a_finished_fiber_is_not_alive
    fiber = nil
    scheduled { fiber = Fiber.schedule { sleep 0.001 } }
    refute_predicate fiber, :alive?
  end

  # As in uringmachine 1.0, where both are of one kind.
  def test_the_machine_waits_for_a_scheduled_fiber_and_has_its_result
    in_fiber do |scheduler|
      machine = scheduler.machine
      fibers = [Fiber.schedule { sleep(0.001) && :slept }, Fiber.schedule { sleep(0.001) && nil }]
      assert_equal [nil, nil], fibers.map(&:done?)
      assert_equal [:slept, nil], machine.join(fibers)
      assert_equal [true, true], fibers.map(&:done?)
      quick = Fiber.schedule { :quick }
      assert_equal [true, nil], [quick.done?, machine.join(quick)]
      scheduler.abort_on_exception = false
      assert_equal "failed", machine.join(Fiber.schedule { sleep(0.001) && raise("failed") }).message
    end
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

# frozen_string_literal: true

require_relative "../test_helper"

# UM::FiberScheduler as an object: how it is made, whose it is, what a subclass may do.
class TestFiberScheduler < SchedulerTest
  def test_a_scheduler_of_another_thread_is_refused
    scheduler = UM::FiberScheduler.new
    Thread.new { scheduler.kernel_sleep(0) }.join
    error = assert_raises(FiberError) { scheduler.kernel_sleep(0) }
    assert_match(/across threads/, error.message)
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
    assert_match(/\bpool\b/, assert_raises(TypeError) { UM::FiberScheduler.new(nil, 1) }.message)
    assert_raises(ArgumentError) { UM::FiberScheduler.new(nil, nil, nil) }
    assert_raises(TypeError) { UM::FiberScheduler.new("machine") }
    assert_raises(ArgumentError) { UM.new(size: 0) }
    assert_raises(TypeError) { UM.new(size: "many") }
    assert_raises(ArgumentError) { UM.new(colour: 1) }
  end

  def test_a_pool_may_be_given_as_in_uringmachine_1
    scheduler = UM::FiberScheduler.new(UM.new, UM::BlockingOperationThreadPool.new(1))
    scheduled(scheduler) { Fiber.schedule { sleep 0.001 } }
    assert_predicate scheduler, :closed?
  end

  def test_a_machine_may_be_given
    machine = UM.new(size: 8)
    scheduler = UM::FiberScheduler.new(machine)
    scheduled(scheduler) { Fiber.schedule { sleep 0.001 } }
    assert_same machine, scheduler.machine
  end

  def test_a_scheduler_is_initialized_once
    machine = UM.new(size: 8)
    scheduler = UM::FiberScheduler.new(machine)
    assert_raises(UM::Error) { scheduler.send(:initialize, UM.new(size: 8)) }
    assert_same machine, scheduler.machine
  end
end

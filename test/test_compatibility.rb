# frozen_string_literal: true

require_relative "test_helper"

# What programs written for uringmachine 1.0 use of the scheduler beyond its hooks.
class TestCompatibility < SchedulerTest
  def test_the_scheduler_is_required_by_itself
    output, status = ruby("p require('uringmachine/fiber_scheduler'), UM::FiberScheduler.new.class")
    assert_equal ["true\nUringMachine::FiberScheduler\n", true], [output, status.success?]
    command = [RbConfig.ruby, "-W", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, "-e", "require 'uringmachine/fiber_scheduler'; p UM::FiberScheduler"]
    output = IO.popen(command, err: %i[child out], &:read)
    assert_equal "UringMachine::FiberScheduler\n", output.lines.grep_v(%r{/gems/|experimental}).join
  end

  def test_join_waits_for_fibers
    order = []
    scheduled do |scheduler|
      slow = Fiber.schedule { sleep(0.02) && (order << :slow) }
      Fiber.schedule { sleep }.tap { |other| Fiber.schedule { scheduler.join(slow) && (order << :joined) && other.kill } }
      assert_equal 1, scheduler.join(slow)
      order << :root
    end
    assert_equal :slow, order.first
    assert_equal %i[joined root], order.drop(1).sort
  end

  def test_join_without_fibers_waits_for_all
    ended = []
    scheduled do |scheduler|
      3.times { |number| Fiber.schedule { sleep(0.001 * number) && (ended << number) } }
      assert_equal 3, scheduler.join
      assert_equal [0, 1, 2], ended.sort
      assert_equal 0, scheduler.join
      # A fiber does not wait for itself.
      Fiber.schedule { assert_equal 0, scheduler.join }
    end
  end

  def test_join_of_fibers_that_have_ended_or_failed
    scheduled do |scheduler|
      scheduler.abort_on_exception = false
      done = Fiber.schedule { nil }
      failing = Fiber.schedule { sleep(0.001) && raise("fails") }
      killed = Fiber.schedule { sleep }
      Fiber.schedule { killed.kill }
      assert_equal 3, scheduler.join(done, failing, killed)
      refute_predicate failing, :alive?
      error = assert_raises(TypeError) { scheduler.join(1) }
      assert_match(/fibers/, error.message)
    end
  end

  def test_join_waits_for_fibers_of_the_machine_too
    scheduled do |scheduler|
      spun = scheduler.machine.spin { scheduler.machine.sleep(0.001) }
      assert_equal 1, scheduler.join(spun)
      assert_predicate spun, :done?
    end
  end

  def test_the_fiber_map_holds_the_fibers_that_have_not_ended
    scheduled do |scheduler|
      assert_equal 0, scheduler.fiber_map.size
      first = Fiber.schedule { sleep 0.001 }
      second = Fiber.schedule { sleep 0.002 }
      Fiber.schedule { nil }
      assert_equal [first, second], scheduler.fiber_map.keys.sort_by { |fiber| fiber == first ? 0 : 1 }
      assert scheduler.fiber_map.key?(first)
      scheduler.join
      assert_equal 0, scheduler.fiber_map.size
    end
  end
end

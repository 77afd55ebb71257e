# frozen_string_literal: true

require_relative "test_helper"

# fork leaves the parent's ring alone, and the child without a scheduler.
class TestFork < SchedulerTest
  def test_the_child_has_no_scheduler_and_the_parent_goes_on
    in_fiber do
      reader, writer = IO.pipe
      pid = fork do
        writer.write(Fiber.scheduler.inspect)
        sleep 0.001
        exit!(0)
      end
      writer.close
      assert_equal "nil", reader.read
      Process.wait(pid)
      sleep 0.001
    end
  end

  def test_a_child_may_install_a_scheduler_of_its_own_at_once
    in_fiber do
      reader, writer = IO.pipe
      pid = fork do
        Thread.new do
          Fiber.set_scheduler(UM::FiberScheduler.new)
          3.times { |number| Fiber.schedule { sleep(0.001 * number) && writer.syswrite(number.to_s) } }
        end.join
        exit!(0)
      end
      writer.close
      assert_equal "012", reader.read
      Process.wait(pid)
    end
  end

  def test_a_child_of_a_busy_parent_disturbs_nothing
    received = []
    scheduled do
      source, sink = UNIXSocket.pair
      Fiber.schedule { 20.times { received << source.readpartial(1) } }
      Fiber.schedule do
        20.times do |number|
          Process.wait(fork { exit!(0) }) if (number % 5).zero?
          sink << "x"
          sleep 0
        end
      end
    end
    assert_equal 20, received.size
  end

  def test_the_parents_scheduler_object_is_refused_in_the_child
    scheduler = UM::FiberScheduler.new
    reader, writer = IO.pipe
    pid = fork do
      scheduler.kernel_sleep(1)
    rescue UM::Error => e
      writer.write(e.message)
    ensure
      exit!(0)
    end
    writer.close
    assert_match(/parent/, reader.read)
    Process.wait(pid)
  end
end

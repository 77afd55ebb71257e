# frozen_string_literal: true

require_relative "../test_helper"
require "io/console"
require "pty"

# What closing the scheduler means, and what it is to run.
class TestClose < SchedulerTest
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

  def test_closing_waits_for_the_fibers_and_closes_the_ring
    before = settled_descriptors
    scheduler = nil
    scheduled do |installed|
      scheduler = installed
      Fiber.schedule { sleep 0.01 }
    end
    assert_predicate scheduler, :closed?
    assert_operator open_descriptors, :<=, before
  end

  # From a file to what is neither a pipe nor a socket bytes go through a pipe, which is kept for the next time.
  def test_a_closed_scheduler_has_kept_no_pipe
    terminal, other = PTY.open.each(&:raw!)
    file = Tempfile.create.tap { |made| (made << "bytes").rewind }
    before = settled_descriptors
    kept = nil
    scheduled do |scheduler|
      kept = scheduler
      Fiber.schedule { IO.copy_stream(file, other) }
    end
    assert_equal "bytes", terminal.readpartial(10)
    assert_predicate kept, :closed?
    assert_operator open_descriptors, :<=, before
  ensure
    [terminal, other, file].each(&:close)
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
end

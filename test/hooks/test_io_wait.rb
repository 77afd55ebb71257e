# frozen_string_literal: true

require_relative "../test_helper"

# Waiting through the hook io_wait.
class TestIOWait < SchedulerTest
  def test_io_wait_returns_events_or_nil_at_the_timeout
    source, sink = IO.pipe
    in_fiber do
      assert_nil source.wait_readable(0)
      assert_nil source.wait_readable(0.002)
      assert_same sink, sink.wait_writable(0)
      sink << "x"
      assert_same source, source.wait_readable(0)
      assert_same source, source.wait_readable
      assert_equal IO::READABLE, source.wait(IO::READABLE | IO::PRIORITY, 1)
    end
  end

  def test_several_fibers_wait_on_one_descriptor
    source, sink = UNIXSocket.pair
    woken = []
    scheduled do
      3.times { |number| Fiber.schedule { woken << number if source.wait_readable } }
      Fiber.schedule { woken << :writable if source.wait_writable }
      Fiber.schedule { sink << "x" }
    end
    assert_equal [0, 1, 2, :writable].sort_by(&:to_s), woken.sort_by(&:to_s)
  end

  # Nothing is lost with what is ready: a fiber that never waits again is not left with an exception that nobody can rescue.
  def test_what_is_raised_is_raised_though_the_wait_has_come_to_something
    waits = { io_wait: ->(io, _) { io.wait_readable }, poll: ->(io, scheduler) { scheduler.machine.poll(io.fileno, UM::POLLIN) } }
    waits.each do |name, wait|
      log = []
      in_fiber do |scheduler|
        source, sink = UNIXSocket.pair
        sink << "x"
        waiting = Fiber.schedule do
          log << wait.call(source, scheduler)
        rescue ArgumentError
          log << :raised
        end
        waiting.raise(ArgumentError)
      end
      assert_equal [:raised], log, name
    end
  end

  def test_waiting_for_a_file_returns_at_once
    in_fiber { File.open(__FILE__) { |file| assert_same file, file.wait_readable(1) } }
  end
end

# frozen_string_literal: true

require_relative "test_helper"

# No hot path of the scheduler allocates a Ruby object per operation. Counted, not timed.
class TestAllocations < SchedulerTest
  ROUNDS = 2_000
  # Objects that do not grow with the rounds: the fibers themselves, a table that is extended.
  SLACK = 200

  def test_the_hooks_allocate_nothing_per_operation
    source, sink = UNIXSocket.pair
    reader, writer = IO.pipe
    buffer = IO::Buffer.new(64)
    mutex = Mutex.new
    in_fiber do |scheduler|
      file = File.open(__FILE__)
      operations = {
        "sleep(0)" => -> { scheduler.kernel_sleep(0) },
        "sleep" => -> { scheduler.kernel_sleep(0.000001) },
        "block" => -> { scheduler.block(mutex, 0.000001) },
        "io_write" => -> { scheduler.io_write(sink, buffer, 0, 0) && scheduler.io_read(source, buffer, 0, 0) },
        "io_write to a pipe" => -> { scheduler.io_write(writer, buffer, 0, 0) && scheduler.io_read(reader, buffer, 0, 0) },
        "io_wait" => -> { scheduler.io_wait(sink, IO::WRITABLE, nil) },
        "io_pread" => -> { scheduler.io_pread(file, buffer, 0, 0, 0) }
      }
      operations.each { |name, operation| assert_operator allocations(&operation), :<, SLACK, name }
    end
  end

  def test_waiting_and_switching_allocate_nothing_per_operation
    source, sink = UNIXSocket.pair
    back, forth = UNIXSocket.pair
    there = IO::Buffer.new(64)
    here = IO::Buffer.new(64)
    counted = nil
    scheduled do |scheduler|
      Fiber.schedule do
        (ROUNDS + 20).times do
          scheduler.io_read(source, there, 0, 0)
          scheduler.io_write(back, there, 0, 0)
        end
      end
      Fiber.schedule do
        counted = allocations do
          scheduler.io_write(sink, here, 0, 0)
          scheduler.io_read(forth, here, 0, 0)
        end
      end
    end
    assert_operator counted, :<, SLACK
  end

  private

  def allocations
    20.times { yield }
    GC.disable
    before = GC.stat(:total_allocated_objects)
    ROUNDS.times { yield }
    GC.stat(:total_allocated_objects) - before
  ensure
    GC.enable
  end
end

# frozen_string_literal: true

require_relative "../test_helper"

# The memory of a transfer that waits: Ruby's own is worked on where it is; a slice's, which another buffer may free, is not.
class TestBuffers < SchedulerTest
  # A fiber that waits for a line costs its stack and Ruby's read buffer: 22 KB, where a copy of the buffer made 30 of it.
  def test_a_waiting_read_allocates_no_memory_of_its_own
    output, = ruby(<<~'RUBY', env: { "MALLOC_PERTURB_" => nil })
      require "socket"
      readers = Array.new(400) { UNIXSocket.pair }.each { |_, writer| writer.sync = true }
      Fiber.set_scheduler(UM::FiberScheduler.new)
      used = -> { [GC.start] && File.read("/proc/self/status")[/VmRSS:\s+(\d+)/, 1].to_i }
      before = used.call
      readers.each { |reader,| Fiber.schedule { reader.gets } }
      Fiber.scheduler.yield
      print((used.call - before) * 1024 / readers.size)
      $stdout.flush
      exit!
    RUBY

    assert_operator output.to_i, :<, 27_000
  end

  # What is received goes straight to the buffer: it is there before the fiber goes on.
  def test_a_locked_buffer_is_received_into
    in_fiber do |scheduler|
      reader, writer = UNIXSocket.pair
      buffer = IO::Buffer.new(16_384)
      received = 0
      Fiber.schedule { buffer.locked { received = scheduler.io_read(reader, buffer, 1, 0) } }
      writer << "hello"
      scheduler.machine.snooze until received.positive?
      assert_equal [5, "hello"], [received, buffer.get_string(0, 5)]
    end
  end

  # What nobody has locked is, while the kernel works on it: it can be neither freed nor made smaller.
  def test_a_buffer_of_a_hook_is_locked_while_it_waits
    in_fiber do
      reader, writer = UNIXSocket.pair
      buffer = IO::Buffer.new(4 << 20)
      [-> { buffer.read(reader, 1) }, -> { buffer.write(writer, buffer.size) }].each_with_index do |transfer, writes|
        fiber = Fiber.schedule { transfer.call }
        assert_predicate buffer, :locked?
        assert_raises(IO::Buffer::LockedError) { buffer.free }
        writes.zero? ? writer << "x" : reader.read(buffer.size)
        sleep 0 while fiber.alive?
        refute_predicate buffer, :locked?
      end
    end
  end

  # Its lock does not keep the memory, which is its parent's.
  def test_a_slice_whose_buffer_is_freed_while_it_is_read_into_is_a_clear_error
    # The memory of a small one is the next String's.
    [false, true].product([65_536, 1000]).each do |locked, size|
      in_fiber do |scheduler|
        reader, writer = UNIXSocket.pair
        parent = IO::Buffer.new(size)
        slice = parent.slice(100, size / 2)
        ended = nil
        read = -> { scheduler.io_read(reader, slice, 1, 0) }
        Fiber.schedule do
          locked ? slice.locked { read.call } : read.call
          ended = :no_error
        rescue StandardError => e
          ended = e
        end
        parent.free
        others = Array.new(20) { "not to be overwritten".ljust(size - 1, ".") }
        writer << "x" * (size / 4)
        scheduler.machine.snooze until ended
        assert_kind_of UM::Error, ended
        assert_equal ["not to be overwritten".ljust(size - 1, ".")], others.uniq
      end
    end
  end

  def test_a_slice_is_read_into_and_written_from
    in_fiber do |scheduler|
      reader, writer = UNIXSocket.pair
      parent = IO::Buffer.new(65_536)
      slice = parent.slice(100, 20_000)
      received = 0
      Fiber.schedule { received = scheduler.io_read(reader, slice, 1, 0) }
      writer << "hello"
      scheduler.machine.snooze until received.positive?
      assert_equal "hello", parent.get_string(100, 5)
      scheduler.io_write(reader, parent.slice(100, 5), 0, 0)
      assert_equal "hello", writer.readpartial(10)
    end
  end

  # One that a program makes of a String, or maps, has memory of its own.
  def test_buffers_of_every_sort_are_read_into
    in_fiber do |scheduler|
      Dir.mktmpdir do |folder|
        File.write(path = File.join(folder, "mapped"), "\0" * 8192)
        string = +"\0" * 8192
        sorts = {
          internal: [IO::Buffer.new(100)], mapped: [IO::Buffer.new(65_536)], file: [File.open(path, "r+") { |file| IO::Buffer.map(file) }]
        }
        sorts.each do |name, (buffer)|
          reader, writer = UNIXSocket.pair
          Fiber.schedule { writer << "hello" }
          assert_equal 5, scheduler.io_read(reader, buffer, 1, 0), name
          assert_equal "hello", buffer.get_string(0, 5), name
        end
        IO::Buffer.for(string) do |buffer|
          reader, writer = UNIXSocket.pair
          Fiber.schedule { writer << "hello" }
          assert_equal 5, scheduler.io_read(reader, buffer, 1, 0)
        end
        assert_equal "hello", string[0, 5]
      end
    end
  end
end

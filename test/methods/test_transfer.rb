# frozen_string_literal: true

require_relative "../test_helper"
require "objspace"

# read, write and their kin.
class TestMachineTransfer < MachineTest
  class TooLate < StandardError; end

  def setup
    super
    @reader, @writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
  end

  def read(length = 100)
    buffer = +""
    machine.read(@reader, buffer, length)
    buffer
  end

  def test_a_read_returns_what_there_is_and_cuts_the_string_to_it
    machine.write(@writer, "foobar")
    buffer = +"something longer than the rest"
    assert_equal 3, machine.read(@reader, buffer, 3)
    assert_equal "foo", buffer
    assert_equal 3, machine.read(@reader, buffer, 8192)
    assert_equal "bar", buffer
    machine.close(@writer)
    assert_equal 0, machine.read(@reader, buffer, 10)
    assert_equal "", buffer
  end

  def test_a_read_of_every_size_brings_every_byte
    [1, 100, 4095, 4096, 4097, 20_000, 60_000].each do |size|
      bytes = Random.bytes(size)
      machine.write(@writer, bytes)
      buffer = +""
      assert_equal size, machine.read(@reader, buffer, 65_536)
      assert_equal bytes, buffer.b, "#{size} bytes"
    end
  end

  def test_a_read_at_an_offset_of_the_buffer
    machine.write(@writer, "bar")
    buffer = +"foo"
    machine.read(@reader, buffer, 100, 3)
    assert_equal "foobar", buffer
    machine.write(@writer, "baz")
    machine.read(@reader, buffer, 100, -1)
    assert_equal "foobarbaz", buffer
    machine.write(@writer, "X" * 5000)
    machine.read(@reader, buffer, 5000, -4)
    assert_equal "foobar#{"X" * 5000}", buffer
  end

  def test_an_offset_outside_the_buffer_is_an_error_and_loses_nothing
    machine.write(@writer, "bar")
    [4, -5, 1 << 40].each { |offset| assert_names("buffer_offset", ArgumentError) { machine.read(@reader, +"foo", 1, offset) } }
    assert_equal "bar", read
  end

  def test_a_read_with_a_nil_length_is_defined_and_safe
    machine.write(@writer, "foobar")
    buffer = +"x"
    assert_equal 6, machine.read(@reader, buffer, nil)
    assert_equal "foobar", buffer
    machine.write(@writer, "foobar")
    memory = IO::Buffer.new(4)
    assert_equal 4, machine.read(@reader, memory, nil)
    assert_equal "foob", memory.get_string
    assert_equal 2, machine.read(@reader, memory, nil, 2)
    assert_equal "foar", memory.get_string
  end

  def test_an_io_buffer_that_is_too_small_is_resized
    machine.write(@writer, "foobar")
    memory = IO::Buffer.new(3)
    assert_equal 6, machine.read(@reader, memory, 6)
    assert_equal "foobar", memory.get_string(0, 6)
  end

  def test_positions_beyond_four_gigabytes
    Tempfile.create("um") do |file|
      position = (5 << 30) + 7
      assert_equal 3, machine.write(file.fileno, "far", nil, position)
      assert_equal position + 3, file.size
      buffer = +""
      assert_equal 3, machine.read(file.fileno, buffer, 10, 0, position)
      assert_equal "far", buffer
      assert_equal 6, machine.writev(file.fileno, "foo", "bar", position)
      machine.read(file.fileno, buffer, 10, 0, position)
      assert_equal "foobar", buffer
    end
  end

  def test_a_length_beyond_four_gigabytes_is_no_error
    machine.write(@writer, "foobar")
    assert_equal 3, machine.write(@writer, "baz", 1 << 33)
    memory = IO::Buffer.new(16)
    assert_equal 9, machine.read(@reader, memory, nil)
  end

  def test_a_write_of_part_and_of_nothing
    assert_equal 2, machine.write(@writer, "foo", 2)
    assert_equal 3, machine.write(@writer, "bar", -1)
    assert_equal 0, machine.write(@writer, "")
    assert_equal 0, machine.write(@writer, "bar", 0)
    assert_equal "fobar", read
  end

  def test_writev_writes_everything_however_long_it_takes
    pieces = [Random.bytes(300), Random.bytes(200_000), "", Random.bytes(70_000)] + Array.new(3000, &:to_s)
    received = +""
    reader = machine.spin do
      buffer = +""
      received << buffer while machine.read(@reader, buffer, 8192).positive?
    end
    assert_equal pieces.sum(&:bytesize), machine.writev(@writer, *pieces)
    machine.close(@writer)
    machine.join(reader)
    assert_equal pieces.join.b, received.b
  end

  def test_a_writev_that_fails_or_is_cut_off_gives_its_memory_back
    pieces = [+"a" * 100_000, +"b" * 100_000]
    assert_includes 1..100_000, machine.timeout(0.01, TooLate) { machine.writev(@writer, *pieces) }
    pieces.each { |piece| piece << "changed" }
    assert_raises(TooLate) { machine.timeout(0.01, TooLate) { machine.writev(@writer, *pieces) } }
    pieces.each { |piece| piece << "changed" }
    assert_raises(Errno::EBADF) { machine.writev(@reader, *pieces) }
    pieces.each { |piece| piece << "changed" }
    assert_raises(UM::Error) { machine.writev(@writer, pieces.first, :b) }
    pieces.first << "changed"
  end

  # What comes when the work before it is done, and it has not gone on: it closes, and raises then.
  def test_close_closes_what_it_was_about_to_when_its_fiber_was_raised_in
    reader, writer = IO.pipe
    writer.autoclose = false
    held = writer.write_nonblock("h" * 1_000_000)
    machine.write_async(writer.fileno, "given")
    fiber = machine.spin { machine.close(writer.fileno) }
    machine.snooze
    assert_equal held, reader.readpartial(held).bytesize
    machine.submit
    assert_equal "given", reader.read_nonblock(100)
    machine.schedule(fiber, RuntimeError.new("enough"))
    assert_equal "enough", machine.join(fiber).message
    assert_nil reader.read_nonblock(1, exception: false)
  ensure
    reader.close
  end

  def test_write_async_copies_its_bytes
    message = +"x" * 10_000
    machine.write_async(@writer, message)
    message.replace("changed")
    GC.start
    buffer = +""
    machine.read(@reader, buffer, 20_000)
    assert_equal "x" * 10_000, buffer
    machine.write_async(@reader, "to a bad descriptor")
    machine.snooze
  end

  # What is over of its memory may hold the bytes that have just come.
  def test_a_string_with_more_room_than_bytes_keeps_its_room
    [10, 10_000].each do |length|
      { read: [0, -1], recv: [] }.each do |method, offsets|
        [nil, *offsets].each do |offset|
          buffer = String.new("as it was", capacity: 1 << 20)
          kept = buffer.dup if offset == -1
          writer, reader = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno })
          machine.write(writer, "bytes")
          assert_equal 5, machine.public_send(method, reader, buffer, length, *offset)
          assert_equal offset == -1 ? "as it wasbytes" : "bytes", buffer
          assert_operator ObjectSpace.memsize_of(buffer), :>, 1 << 20 unless kept
        end
      end
    end
  end

  def test_a_string_that_was_copied_while_it_is_read_into
    [10, 10_000].each do |length|
      buffer = String.new("as it was" * 1000, capacity: 1 << 20)
      fiber = machine.spin { machine.read(@reader, buffer, length, -1) }
      machine.snooze
      copy = buffer.dup
      machine.write(@writer, "bytes")
      machine.join(fiber)
      assert_equal ["as it was" * 1000, "#{"as it was" * 1000}bytes"], [copy, buffer]
    end
  end

  def test_a_string_that_is_read_into_cannot_be_changed_meanwhile
    [10, 10_000].each do |size|
      buffer = +"as it was"
      fiber = machine.spin { machine.read(@reader, buffer, size) }
      machine.snooze
      assert_raises(RuntimeError) { buffer << "more" }
      assert_raises(RuntimeError) { buffer.freeze }
      assert_raises(UM::Error) { machine.read(@reader, buffer, 10) }
      machine.terminate(fiber)
      machine.join(fiber)
      assert_equal "as it was", buffer
      buffer << ", and changeable"
    end
  end

  def test_a_string_that_is_written_cannot_be_changed_meanwhile_by_however_many
    message = +"x" * 100_000
    fibers = Array.new(3) { machine.spin { machine.write(@writer, message) } }
    machine.snooze
    until fibers.all?(&:done?)
      assert_raises(RuntimeError) { message << "more" }
      read(65_536)
      machine.snooze
    end
    message << "more"
  end

  def test_bytes_survive_compaction_while_they_are_read_and_written
    readers = Array.new(200) { IO.pipe }
    buffers = Array.new(200) { |number| +"b" * (number % 2 * 700) }
    fibers = readers.each_with_index.map { |(reader, _), number| machine.spin { machine.read(reader.fileno, buffers[number], [100, 5000].at(number % 2)) } }
    machine.snooze
    GC.verify_compaction_references(toward: :empty, expand_heap: true)
    readers.each_with_index { |(_, writer), number| writer.syswrite("#{number}:#{"y" * 80}") }
    GC.compact
    assert_equal [82, 83, 84], machine.join(fibers).uniq.sort
    buffers.each_with_index { |buffer, number| assert_equal "#{number}:#{"y" * 80}", buffer }
    readers.flatten.each(&:close)
  end

  def test_a_read_that_is_cancelled_leaves_the_bytes_for_the_next
    [10, 10_000].each do |size|
      buffer = +"untouched"
      assert_raises(TooLate) { machine.timeout(0.005, TooLate) { machine.read(@reader, buffer, size) } }
      machine.write(@writer, "late")
      machine.snooze
      assert_equal "untouched", buffer
      assert_equal "late", read
    end
  end

  # A write to a file goes on to its end once the kernel has begun: the fiber waits for that, and has the bytes to itself
  # afterwards.
  def test_a_write_that_cannot_be_ended_at_once_keeps_its_memory
    bytes = "a" * (64 << 20)
    Tempfile.create("um") do |file|
      # It may be ended before the kernel has begun: then it has written nothing.
      written = Array.new(4) do
        bytes.setbyte(-1, "a".ord)
        count = machine.timeout(0.001, TooLate) { machine.write(file.fileno, bytes, nil, 0) } rescue nil
        bytes.setbyte(-1, "b".ord)
        eventually { machine.metrics[:ops_pending].zero? }
        assert_includes [nil, "a"], File.read(file.path, 1, bytes.bytesize - 1)
        count
      end
      assert_includes written, bytes.bytesize
    end
  end

  def test_a_read_that_has_succeeded_keeps_its_bytes_when_it_is_cancelled
    buffer = +""
    fiber = machine.spin do
      count = machine.read(@reader, buffer, 100)
      machine.yield
    rescue TooLate
      [count, buffer]
    end
    machine.snooze
    machine.write_async(@writer, "there")
    machine.submit
    machine.schedule(fiber, TooLate.new)
    assert_equal [5, "there"], machine.join(fiber)
  end

  def test_an_exception_from_outside_cancels_a_read_before_it_unwinds
    buffer = +"untouched"
    thread = Thread.new do
      Thread.current.report_on_exception = false
      machine = UM.new
      machine.read(@reader, buffer, 10_000)
    end
    Thread.pass until thread.status == "sleep"
    thread.raise(TooLate)
    assert_raises(TooLate) { thread.value }
    machine.write(@writer, "late")
    assert_equal "late", read
    assert_equal "untouched", buffer
    buffer << "changeable"
  end

  def test_close_and_close_async
    assert_equal @writer, machine.close(@writer)
    assert_equal 0, machine.read(@reader, +"", 1)
    assert_raises(Errno::EBADF) { machine.close(@writer) }
    assert_equal @reader, machine.close_async(@reader)
    machine.sleep(0)
    assert_raises(Errno::EBADF) { machine.read(@reader, +"", 1) }
  end

  # As write(2) leaves it: what fits is counted, and what is written later follows it.
  def test_the_position_after_a_write_that_ended_short
    output, = ruby(<<~RUBY)
      require "tempfile"
      trap(:XFSZ, "IGNORE")
      Process.setrlimit(:FSIZE, 20, 1000)
      m = UM.new
      ways = {
        write: ->(fd, bytes) { m.write(fd, bytes) }, writev: ->(fd, bytes) { m.writev(fd, bytes[0, 1], bytes[1..]) }, io: ->(fd, bytes) { m.io(fd, :fd).write(bytes) },
        write_async: ->(fd, bytes) { m.write_async(fd, bytes); m.sleep(0.001) until m.metrics[:ops_pending].zero?; m.read(fd, +"", 0) }
      }
      ways.each do |name, way|
        { "r+" => 5, "a+" => 8 }.each do |mode, start|
          Tempfile.create do |file|
            File.write(file.path, "as it is")
            io = File.open(file.path, mode)
            io.seek(5)
            way.call(io.fileno, "0123456789" * 10) rescue Errno::EFBIG
            way.call(io.fileno, "x") rescue puts $!.class
            Process.setrlimit(:FSIZE, 1000, 1000)
            way.call(io.fileno, "!")
            Process.setrlimit(:FSIZE, 20, 1000)
            wanted = "as it is"[0, start] + ("0123456789" * 10)[0, 20 - start] + "!"
            puts [name, mode, File.binread(file.path)].join(" ") unless File.binread(file.path) == wanted
          end
        end
      end
    RUBY
    assert_equal "Errno::EFBIG\n" * 8, output
  end

  def test_many_closes_are_one_submission
    fds = Array.new(100) { UM.pipe }.flatten
    fds.each { |fd| machine.close_async(fd) }
    assert_equal 200, machine.metrics[:ops_unsubmitted]
    assert_equal 200, machine.submit
    machine.sleep(0.0001) while machine.metrics[:ops_pending].positive?
    fds.each { |fd| assert_raises(Errno::EBADF) { machine.write(fd, "x") } }
  end

  def test_a_full_submission_queue_is_submitted
    machine = UM.new(size: 1)
    100.times { machine.write_async(@writer, "x") }
    machine.submit
    assert_equal "x" * 100, read
  end

  def test_bad_arguments
    calls = {
      read: ->(fd, buffer = +"", length = 1, *rest) { machine.read(fd, buffer, length, *rest) },
      write: ->(fd, buffer = "x", *rest) { machine.write(fd, buffer, *rest) },
      write_async: ->(fd, buffer = "x", *rest) { machine.write_async(fd, buffer, *rest) },
      writev: ->(fd, buffer = "x", *rest) { machine.writev(fd, buffer, *rest) }
    }
    calls.each do |name, call|
      assert_raises(Errno::EBADF, name) { call.call(9999) } unless name == :write_async
      assert_raises(Errno::EBADF, name) { call.call(-1) } unless name == :write_async
      assert_names("fd", TypeError) { call.call("1") }
      assert_names("fd", TypeError) { call.call(nil) }
      assert_names("fd", ArgumentError) { call.call(1 << 40) }
      assert_names("fd", ArgumentError) { call.call(1 << 80) }
      assert_names("buffer", UM::Error) { call.call(@writer, []) }
      assert_names("buffer", UM::Error) { call.call(@writer, nil) }
      assert_raises(ArgumentError) { machine.public_send(name) }
    end
    assert_raises(FrozenError) { machine.read(@reader, "frozen", 1) }
    assert_names("maxlen", TypeError) { machine.read(@reader, +"", "1") }
    assert_names("maxlen", ArgumentError) { machine.read(@reader, +"", -1) }
    assert_names("file_offset", ArgumentError) { machine.read(@reader, +"", 1, 0, -2) }
    assert_names("file_offset", TypeError) { machine.write(@writer, "x", 1, 1.5) }
    assert_names("len", ArgumentError) { machine.write(@writer, "x", -2) }
    assert_names("fd", TypeError) { machine.close(:stdin) }
    assert_names("fd", ArgumentError) { machine.close_async(1 << 33) }
  end

  # The usual `ensure machine.close(fd)`.
  def test_a_descriptor_is_closed_though_something_waits_to_be_raised
    closed = nil
    fiber = machine.spin do
      machine.schedule(Fiber.current, TooLate.new("first"))
      machine.write_async(@writer, "before")
      closed = machine.close(@writer)
      machine.sleep
    end
    assert_kind_of TooLate, machine.join(fiber)
    assert_equal @writer, closed
    assert_equal "before", read
    assert_equal "", read
  end

  def test_a_descriptor_is_closed_though_its_fiber_is_ended_meanwhile
    fds = opened(Array.new(3) { machine.open("/dev/null", UM::O_RDONLY) })
    fibers = fds.map { |fd| machine.spin { machine.close(fd) } }
    machine.snooze
    fibers[0].kill
    fibers[1].raise(UM::Terminate)
    machine.schedule(fibers[2], UM::Terminate.new)
    machine.await(fibers)
    fds.each { |fd| assert_raises(Errno::EBADF) { machine.close(fd) } }
  end
end

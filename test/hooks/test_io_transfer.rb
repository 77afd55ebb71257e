# frozen_string_literal: true

require_relative "../test_helper"

# Bytes through the hooks: io_read, io_write, io_pread and io_pwrite.
class TestIOTransfer < SchedulerTest
  def test_bytes_pass_through_pipes_sockets_and_files_unchanged
    payload = Random.new(1).bytes(300_000)
    [IO.pipe, UNIXSocket.pair, socket_pair].each do |source, sink|
      received = nil
      scheduled do
        Fiber.schedule { received = source.read.b }
        Fiber.schedule do
          sink.write(payload)
          sink.close
        end
      end
      assert_equal payload, received
      source.close
    end
    Tempfile.create("um") do |file|
      in_fiber do
        File.binwrite(file.path, payload)
        assert_equal payload, File.binread(file.path)
        File.open(file.path, "ab") { |appended| appended << "end" }
        assert_equal "#{payload}end".b, File.binread(file.path)
      end
    end
  end

  def test_gets_puts_and_each_line_work_between_fibers
    source, sink = IO.pipe
    lines = nil
    scheduled do
      Fiber.schedule { lines = source.each_line.map(&:chomp) }
      Fiber.schedule do
        3.times do |number|
          sink.puts "line #{number}"
          sleep 0
        end
        sink << "last"
        sink.close
      end
    end
    assert_equal ["line 0", "line 1", "line 2", "last"], lines
  end

  def test_sysread_and_syswrite_wait
    source, sink = IO.pipe
    received = nil
    scheduled do
      Fiber.schedule { received = source.sysread(10) }
      Fiber.schedule { sink.syswrite("hello") }
    end
    assert_equal "hello", received
  end

  def test_pread_and_pwrite_leave_the_position_alone
    Tempfile.create("um") do |file|
      in_fiber do
        file.write("0123456789")
        file.flush
        assert_equal "345", file.pread(3, 3)
        assert_raises(EOFError) { file.pread(1, 100) }
        assert_equal 10, file.pos
      end
    end
  end

  def test_errors_are_plain_rubys
    in_fiber do
      source, sink = IO.pipe
      source.close
      assert_raises(Errno::EPIPE) { sink.write("x") && sink.flush }
      assert_raises(IOError) { source.read }
      assert_raises(Errno::ENOENT) { File.open("/nowhere/at/all") }
      assert_raises(Errno::EISDIR) { File.read("/") }
    end
  end

  def test_io_buffers_are_read_and_written_with_length_and_offset
    source, sink = UNIXSocket.pair
    in_fiber do |scheduler|
      buffer = IO::Buffer.for(+"abcdefgh") { |locked| scheduler.io_write(sink, locked, *v3(4, 2)) }
      assert_equal 6, buffer
      target = IO::Buffer.new(16)
      assert_equal 6, scheduler.io_read(source, target, *v3(6, 1))
      assert_equal "cdefgh", target.get_string(1, 6)
      refute_predicate target, :locked?
      assert_raises(ArgumentError) { scheduler.io_read(source, target, *v3(0, 17)) }
      assert_raises(ArgumentError) { scheduler.io_read(source, target, *v3(16, 1)) }
      assert_raises(ArgumentError) { scheduler.io_read(source, target, *v3(-1, 0)) }
      assert_raises(TypeError) { scheduler.io_read(source, "string", 0, 0) }
    end
  end

  def test_a_buffer_that_is_freed_while_a_fiber_reads_into_it_or_a_slice_is_an_error
    [IO.method(:pipe), UNIXSocket.method(:pair)].product([:itself, ->(buffer) { buffer.slice(4096, 4096) }]).each do |pair, part|
      in_fiber do
        source, sink = pair.call
        buffer = IO::Buffer.new(65_536)
        seen = nil
        fiber = Fiber.schedule { seen = part.to_proc.call(buffer).read(source, 1) rescue $!.class }
        begin
          buffer.free
        rescue IO::Buffer::LockedError
          # The kernel has it.
        end
        sink.write("x")
        sleep 0.001 while fiber.alive?
        assert_includes [UM::Error, 1], seen
        assert_equal("x", buffer.get_string(0, 1)) if seen == 1
      end
    end
  end

  def test_a_slice_that_waits_gets_its_bytes_and_gives_them
    source, sink = UNIXSocket.pair
    in_fiber do
      buffer = IO::Buffer.new(64)
      fiber = Fiber.schedule { buffer.slice(16, 16).read(source, 1) }
      Fiber.schedule { IO::Buffer.for("0123456789").slice(2, 5).write(sink, 5) }
      sleep 0.001 while fiber.alive?
      assert_equal "\x00\x0023456\x00", buffer.get_string(14, 8)
    end
  end

  private

  # The arguments (length, offset) of the interface that Ruby 3.4 and 4.0 speak.
  def v3(length, offset) = [length, offset]

  def socket_pair
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    [client, server.accept].tap { server.close }
  end
end

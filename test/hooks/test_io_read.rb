# frozen_string_literal: true

require "delegate"
require_relative "../test_helper"

# Reading through the hook io_read.
class TestIORead < SchedulerTest
  # As on terminals, and on pipes before Linux 6.5.
  def test_read_nonblock_of_what_cannot_be_tried_without_waiting
    code = <<~RUBY
      require "pty"
      require "io/console"
      pairs = [IO.pipe, PTY.open.tap { |terminal, _| terminal.raw! }]
      pairs.each do |source, sink|
        Thread.new do
          Fiber.set_scheduler(UM::FiberScheduler.new)
          Fiber.schedule do
            2.times { p source.read_nonblock(1, exception: false) }
            sink.syswrite("xy")
            source.wait_readable
            2.times { p source.read_nonblock(1) }
            p source.read_nonblock(1, exception: false)
          end
        end.join
      end
    RUBY
    expected = %(:wait_readable\n:wait_readable\n"x"\n"y"\n:wait_readable\n) * 2
    ["", "nowait"].each { |mask| assert_equal expected, ruby(code, env: { "UM_MASK" => mask })[0] }
  end

  def test_read_nonblock_does_not_wait
    [IO.pipe, UNIXSocket.pair].each do |source, sink|
      in_fiber do
        2.times do
          assert_raises(IO::EAGAINWaitReadable) { source.read_nonblock(1) }
          assert_equal :wait_readable, source.read_nonblock(1, exception: false)
        end
        sink << "xy"
        assert_equal "x", source.read_nonblock(1)
        assert_equal "y", source.read_nonblock(1)
        assert_raises(IO::EAGAINWaitReadable) { source.read_nonblock(1) }
      end
    end
  end

  def test_read_nonblock_does_not_wait_under_a_subclass_that_calls_super
    subclass = Class.new(UM::FiberScheduler) { def io_read(...) = super } # rubocop:disable Lint/UselessMethodDefinition
    source, = IO.pipe
    scheduled(subclass.new) do
      Fiber.schedule { assert_raises(IO::EAGAINWaitReadable) { source.read_nonblock(1) } }
    end
  end

  # As a Tempfile, which is no IO.
  class Delegator < SimpleDelegator
    def initialize(io)
      @first = 1
      super
    end
  end

  def test_what_stands_for_an_io_is_waited_for_within_its_timeout
    [IO.pipe, UNIXSocket.pair].each do |source, sink|
      in_fiber do |scheduler|
        stands = Delegator.new(source)
        buffer = IO::Buffer.new(8)
        source.timeout = 0.003
        assert_raises(IO::TimeoutError) { scheduler.io_read(stands, buffer, 1, 0) }
        assert_equal false, scheduler.io_wait(stands, IO::READABLE)
        sink << "late"
        assert_equal IO::READABLE, scheduler.io_wait(stands, IO::READABLE)
        assert_equal 4, scheduler.io_read(stands, buffer, 1, 0)
      end
    end
  end

  def test_the_readers_timeout_raises_and_loses_nothing
    [IO.pipe, UNIXSocket.pair].each do |source, sink|
      in_fiber do
        source.timeout = 0.003
        assert_raises(IO::TimeoutError) { source.readpartial(10) }
        assert_raises(IO::TimeoutError) { source.gets }
        sink << "late"
        assert_equal "late", source.readpartial(10)
      end
    end
  end

  def test_a_cancelled_read_leaves_the_bytes_to_the_next
    [IO.pipe, UNIXSocket.pair, socket_pair].each do |source, sink|
      in_fiber do
        20.times do
          assert_raises(Timeout::Error) { Timeout.timeout(0.001) { source.readpartial(100) } }
          sink << "kept"
          assert_equal "kept", source.readpartial(100)
        end
      end
    end
  end

  def test_the_kernel_writes_to_no_buffer_of_a_cancelled_read
    source, sink = UNIXSocket.pair
    in_fiber do
      buffer = +("untouched" * 20)
      assert_raises(Timeout::Error) { Timeout.timeout(0.001) { source.readpartial(100, buffer) } }
      before = buffer.dup
      sink << ("x" * 100)
      sleep 0.002
      assert_equal before, buffer
      assert_equal "x" * 100, source.readpartial(100)
    end
  end

  def test_a_sparse_file_is_read_beyond_four_gigabytes
    Tempfile.create("um") do |file|
      position = 5 * (1 << 30)
      in_fiber do
        file.seek(position)
        file.write("far")
        file.flush
        assert_equal "far", file.pread(3, position)
      end
    end
  end

  def test_a_minimum_length_is_waited_for
    source, sink = UNIXSocket.pair
    count = nil
    scheduled do |scheduler|
      Fiber.schedule { count = scheduler.io_read(source, IO::Buffer.new(16), 6, 0) }
      Fiber.schedule do
        3.times do
          sink << "ab"
          sleep 0.001
        end
      end
    end
    assert_equal 6, count
  end

  def test_a_reused_descriptor_of_another_kind_is_read_all_the_same
    in_fiber do
      20.times do
        source, sink = UNIXSocket.pair
        sink << "socket"
        assert_equal "socket", source.readpartial(10)
        [source, sink].each(&:close)
        source, sink = IO.pipe
        sink << "pipe"
        assert_equal "pipe", source.readpartial(10)
        [source, sink].each(&:close)
        File.open(__FILE__) { |file| assert_equal "# frozen", file.readpartial(8) }
      end
    end
  end

  private

  def socket_pair
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    [client, server.accept].tap { server.close }
  end
end

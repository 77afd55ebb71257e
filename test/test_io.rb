# frozen_string_literal: true

require_relative "test_helper"

# Reading, writing and waiting through the hooks.
class TestIO < SchedulerTest
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

  def test_write_nonblock_does_not_wait
    _source, sink = UNIXSocket.pair
    in_fiber do
      assert_raises(IO::EAGAINWaitWritable) { loop { sink.write_nonblock("x" * 65_536) } }
    end
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

  def test_the_writers_timeout_raises
    _source, sink = UNIXSocket.pair
    in_fiber do
      sink.timeout = 0.003
      assert_raises(IO::TimeoutError) { loop { sink.write("x" * 65_536) } }
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

  def test_waiting_for_a_file_returns_at_once
    in_fiber { File.open(__FILE__) { |file| assert_same file, file.wait_readable(1) } }
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

  def test_a_short_socket_write_is_continued_until_everything_is_written
    source, sink = UNIXSocket.pair
    size = 3_000_000
    written = nil
    received = nil
    scheduled do
      Fiber.schedule { written = sink.write("y" * size).tap { sink.close } }
      Fiber.schedule { received = source.read.bytesize }
    end
    assert_equal [size, size], [written, received]
  end

  def test_flushing_at_close_loses_nothing_on_a_full_pipe
    source, sink = IO.pipe
    received = nil
    scheduled do
      Fiber.schedule do
        sink.sync = false
        40.times { sink.write("z" * 4000) }
        sink.close
      end
      Fiber.schedule { received = source.read.bytesize }
    end
    assert_equal 160_000, received
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

  def test_a_write_of_a_shortage_fails_alone
    in_fiber do
      File.open("/dev/full", "w") do |full|
        full.sync = true
        assert_raises(Errno::ENOSPC) { full.write("x") }
      end
      assert_equal("fine", IO.pipe.then { |source, sink| (sink << "fine") && source.readpartial(4) })
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

  def test_when_close_returns_the_port_can_be_bound_again_whoever_waited_for_it
    20.times do
      in_fiber do
        server = TCPServer.new("127.0.0.1", 0)
        port = server.addr[1]
        waiting = Fiber.schedule { server.accept rescue $!.class }
        server.close
        TCPServer.new("127.0.0.1", port).close
        sleep 0.001 while waiting.alive?
      end
    end
  end

  def test_a_close_that_lingers_stalls_its_own_fiber_only
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    peer = server.accept
    client.setsockopt(Socket::Option.linger(true, 30))
    begin
      loop { client.write_nonblock("x" * 65_536) }
    rescue IO::WaitWritable
      # More than the peer's window is on its way.
    end
    order = []
    scheduled do
      Fiber.schedule do
        client.close
        order << :closed
      end
      Fiber.schedule do
        5.times { sleep(0.001) && (order << :tick) }
        nil while peer.read(65_536)
      end
    end
    assert_equal [*[:tick] * 5, :closed], order
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

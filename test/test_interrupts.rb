# frozen_string_literal: true

require_relative "test_helper"

# Signals, Thread#kill and Thread#raise unwind every fiber; IO#close wakes who waits.
class TestInterrupts < SchedulerTest
  def test_a_signal_unwinds_every_fiber
    reader, writer = IO.pipe
    pid = fork do
      reader.close
      $stderr.reopen(File::NULL)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      %w[sleep read queue].each do |kind|
        Fiber.schedule do
          case kind
          when "sleep" then sleep
          when "read" then IO.pipe.first.read
          when "queue" then Queue.new.pop
          end
        ensure
          writer.syswrite("#{kind}\n")
        end
      end
      Fiber.schedule { writer.syswrite("ready\n") && sleep }
    end
    writer.close
    assert_equal "ready\n", reader.gets
    Process.kill(:INT, pid)
    assert_equal %W[queue\n read\n sleep\n], reader.readlines.sort
    assert_equal Signal.list["INT"], Process.wait2(pid).last.termsig
  end

  def test_a_trap_handler_runs_while_the_scheduler_sleeps
    handled = Queue.new
    previous = trap(:USR1) { handled << true }
    output, status = ruby(<<~RUBY)
      Signal.trap(:USR1) { $stdout.syswrite("handled") }
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { sleep 0.005; Process.kill(:USR1, Process.pid); sleep 0.01 }
    RUBY
    assert_equal "handled", output
    assert_predicate status, :success?
  ensure
    trap(:USR1, previous || "DEFAULT")
  end

  def test_killing_the_thread_unwinds_its_fibers
    log = Queue.new
    ready = Queue.new
    thread = Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      2.times do |number|
        Fiber.schedule do
          ready << true
          sleep
        ensure
          log << number
        end
      end
    end
    2.times { ready.pop }
    thread.kill.join
    assert_equal [0, 1], [log.pop, log.pop].sort
  end

  def test_raising_in_the_thread_unwinds_its_fibers_and_the_thread_raises
    log = Queue.new
    ready = Queue.new
    thread = Thread.new do
      Thread.current.report_on_exception = false
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        ready << true
        sleep
      ensure
        sleep 0.001 # An ensure block may wait.
        log << :unwound
      end
    end
    ready.pop
    thread.raise(ArgumentError, "stop")
    error = assert_raises(ArgumentError) { thread.join }
    assert_equal "stop", error.message
    assert_equal :unwound, log.pop
  end

  def test_closing_an_io_wakes_the_fiber_that_reads_it
    [IO.pipe, UNIXSocket.pair].each do |source, _sink|
      error = nil
      scheduled do
        Fiber.schedule do
          source.readpartial(1)
        rescue IOError => e
          error = e
        end
        Fiber.schedule { source.close }
      end
      assert_match(/stream closed in another thread/, error.message)
      assert_predicate source, :closed?
    end
  end

  def test_closing_an_io_from_a_plain_thread_wakes_the_fiber_that_reads_it
    source, = IO.pipe
    ready = Queue.new
    error = nil
    thread = Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        ready << true
        source.read
      rescue IOError => e
        error = e
      end
    end
    ready.pop
    Thread.pass until thread.status == "sleep"
    source.close
    thread.join
    assert_match(/stream closed/, error.message)
  end

  def test_closing_an_io_wakes_every_fiber_that_waits_for_it_and_no_other
    one, other = UNIXSocket.pair
    idle, = IO.pipe
    nil until one.write_nonblock("x" * 65_536, exception: false) == :wait_writable
    ended = Queue.new
    in_fiber do
      [-> { one.read(1) }, -> { one.wait_readable }, -> { one.write("x") }].each do |wait|
        Fiber.schedule { ended << (wait.call rescue $!.class) }
      end
      waiting = Fiber.schedule { idle.read(1) rescue $!.class }
      one.close
      sleep 0.001 until ended.size == 3
      assert_predicate waiting, :alive?
      waiting.raise(StopIteration)
    end
    assert_equal [IOError] * 3, Array.new(3) { ended.pop }
    other.close
  end

  def test_closing_wakes_whatever_waits
    listener = TCPServer.new("127.0.0.1", 0)
    datagrams = UDPSocket.new.tap { |socket| socket.bind("127.0.0.1", 0) }
    line, _line_peer = UNIXSocket.pair
    part, _part_peer = UNIXSocket.pair
    waits = { listener => -> { listener.accept }, datagrams => -> { datagrams.recvfrom(10) }, line => -> { line.gets }, part => -> { part.recv(1) } }
    waits.each do |io, wait|
      error = nil
      in_fiber do
        fiber = Fiber.schedule do
          wait.call
        rescue IOError => e
          error = e
        end
        assert_predicate fiber, :alive?
        io.close
        sleep(0) while fiber.alive?
      end
      assert_equal "stream closed in another thread", error&.message, io.class
    end
  end

  # Nothing of the ring's holds the file open.
  def test_when_close_returns_the_descriptor_is_closed
    reader, writer = IO.pipe
    server = TCPServer.new("127.0.0.1", 0)
    port = server.addr[1]
    in_fiber do
      Fiber.schedule { reader.read rescue nil }
      Fiber.schedule { server.accept rescue nil }
      reader.close
      assert_raises(Errno::EPIPE) { writer.syswrite("x") }
      server.close
      TCPServer.new("127.0.0.1", port).close
    end
  end

  # procfs stands for a file system that may take its time: the gem knows only those that do not.
  def test_the_close_of_a_file_that_may_be_slow_lets_other_fibers_run
    order = []
    in_fiber do
      file = File.open("/proc/self/comm", "r+")
      name = file.gets
      file.syswrite(name)
      Fiber.schedule { sleep(0) && (order << :other) }
      file.close
      order << :closed
      assert_predicate file, :closed?
    end
    assert_equal %i[other closed], order
  end

  def test_what_a_finalizer_closes_lets_no_other_fiber_run
    in_fiber do
      ran = 0
      running = true
      Fiber.schedule { sleep(0) && ran += 1 while running }
      sleep(0)
      before = settled_descriptors
      200.times { UNIXSocket.pair.each { |socket| socket.setsockopt(Socket::Option.linger(true, 1)) } }
      seen = ran
      4.times { GC.start }
      assert_equal seen, ran
      assert_operator open_descriptors, :<, before + 200
    ensure
      running = false
    end
  end

  def test_a_signals_handler_closes_what_a_fiber_reads
    reader, = IO.pipe
    before = trap(:USR1) { reader.close }
    error = nil
    in_fiber do
      fiber = Fiber.schedule do
        reader.read
      rescue IOError => e
        error = e
      end
      Process.kill(:USR1, Process.pid)
      sleep(0.0001) while fiber.alive?
    end
    assert_match(/stream closed/, error.message)
  ensure
    trap(:USR1, before || "DEFAULT")
  end
end

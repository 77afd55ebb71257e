# frozen_string_literal: true

require_relative "test_helper"
require "io/nonblock"
require "openssl"
require "zlib"

# What a close ends, and what the number of a closed descriptor leads to.
class TestClosing < SchedulerTest
  PAIRS = { pipe: -> { IO.pipe }, socket: -> { UNIXSocket.pair }, messages: -> { UNIXSocket.pair(:DGRAM) } }.freeze
  OPERATIONS = {
    readpartial: ->(io) { io.readpartial(100) }, read: ->(io) { io.read(100) }, gets: ->(io) { io.gets }, sysread: ->(io) { io.sysread(100) },
    wait: ->(io) { io.wait_readable && io.readpartial(100) }, select: ->(io) { IO.select([io]) && io.readpartial(100) }
  }.freeze

  def setup
    super
    keep_numbers
  end

  # A thread writes to a FIFO in blocking mode, or a worker of the kernel's, in parts: the first one fills it.
  { hook: ->(_, io, bytes) { io.write(bytes) }, writev: ->(machine, io, bytes) { machine.writev(io.fileno, bytes) } }.each do |name, write|
    define_method(:"test_a_close_ends_a_write_to_a_fifo_that_has_begun_by_#{name}") do
      Dir.mktmpdir do |folder|
        File.mkfifo(path = File.join(folder, "fifo"))
        reader = File.open(path, File::RDONLY | File::NONBLOCK)
        writer = File.open(path, File::WRONLY)
        writer.sync = true
        writer.nonblock = false
        scheduled do |scheduler|
          Fiber.schedule do
            write.call(scheduler.machine, writer, "x" * 300_000)
          rescue IOError, SystemCallError
            # It was closed.
          end
          Fiber.schedule do
            sleep 0.001 until reader.wait_readable(0)
            writer.close
          end
        end
        assert_predicate writer, :closed?
        reader.close
      end
    end
  end

  # What a machine has not submitted yet when the descriptor is closed would mean the file that has the number next, and keep that
  # open, or take its bytes. The peer sees the end when nobody has the socket any more.
  def test_a_close_leaves_no_operation_behind_in_any_machine
    machines = Array.new(4) { UM.new }
    100.times do |round|
      machine = machines[round % machines.size]
      one, other = UNIXSocket.pair
      machine.spin do
        round.odd? ? machine.read_each(one.fileno) {} : machine.recv(one.fileno, +"", 10, 0)
      rescue SystemCallError, IOError
        # It was closed.
      end
      machine.snooze
      one.close
      assert_raises(EOFError, "round #{round}") { other.read_nonblock(1) }
      other.close
    end
  end

  # Another pair, whose first end has the number that was freed.
  def take_number(pair, fd)
    @kept = [*@kept, ends = pair.call]
    assert_equal fd, ends.first.fileno, "the number was given to nothing"
    ends
  end

  def teardown
    @kept = nil
    super
  end

  # Closes what a fiber waits for, and gives the number to another file at once, with something to read.
  def reuse_number(pair, operation, &close)
    result = left = nil
    scheduled do
      Fiber.schedule do
        reader, @writer = pair.call
        fd = reader.fileno
        Fiber.schedule do
          result = begin
            operation.call(reader)
          rescue IOError => e
            e.class
          end
        end
        close.call(reader)
        taker, giver = take_number(pair, fd)
        giver.syswrite("of another")
        5.times { Fiber.scheduler.yield }
        left = taker.read_nonblock(100)
      end
    end
    [result, left]
  end

  PAIRS.each do |kind, pair|
    OPERATIONS.each do |name, operation|
      next if kind == :messages && name != :readpartial

      define_method(:"test_the_number_of_a_#{kind}_closed_in_#{name}_leads_to_nobody_elses_bytes") do
        assert_equal [IOError, "of another"], reuse_number(pair, operation, &:close)
      end
    end

    define_method(:"test_the_number_of_a_#{kind}_closed_through_another_object_leads_to_nobody_elses_bytes") do
      assert_equal [IOError, "of another"], reuse_number(pair, OPERATIONS[:readpartial]) { |io| IO.for_fd(io.fileno).close && io.autoclose = false }
    end
  end

  def test_the_root_fiber_closes_what_fibers_wait_for
    results = []
    closed = nil
    scheduled do
      pairs = [IO.pipe, UNIXSocket.pair]
      pairs.each do |reader,|
        # Again, since it may come to wait for it once more.
        Fiber.schedule { 2.times { reader.readpartial(1) rescue results << $!.class } }
        Fiber.schedule { reader.wait_readable rescue results << $!.class }
      end
      pairs.each { |reader,| reader.close }
      closed = pairs.map { |reader,| reader.closed? }
    end

    assert_equal [IOError] * 6, results
    assert_equal [true, true], closed
  end

  # What is closed, and may have to be closed off the thread.
  CLOSED = {
    pipe: -> { IO.pipe[1] }, file: -> { File.open(File::NULL, "w") }, socket: -> { UNIXSocket.pair[0] }, command: -> { IO.popen("cat", "r+") },
    lingering: lambda do
      server = TCPServer.new("127.0.0.1", 0)
      client = TCPSocket.new("127.0.0.1", server.local_address.ip_port)
      client.setsockopt(Socket::Option.linger(true, 1))
      client.write_nonblock("x" * 65_536) while true
    rescue IO::WaitWritable
      # More than the peer's window is on its way.
      client
    end
  }.freeze

  CLOSED.each do |name, make|
    define_method :"test_the_close_of_a_#{name}_is_not_lost_to_what_is_to_be_raised" do
      io = make.call
      fd = io.fileno
      file = File.readlink("/proc/self/fd/#{fd}")
      in_fiber do
        assert_raises(Timeout::Error) do
          Timeout.timeout(0.001) do
            Fiber.schedule do
              passed = Process.clock_gettime(Process::CLOCK_MONOTONIC) + 0.002
              nil until Process.clock_gettime(Process::CLOCK_MONOTONIC) > passed
              Fiber.scheduler.machine.submit
            end
            io.close
            sleep
          end
        end
        assert_predicate io, :closed?
        refute_equal file, (File.readlink("/proc/self/fd/#{fd}") rescue nil)
      end
      # A command's.
      Process.waitall
    end
  end

  # A machine closes it, and the number is another's when the fiber, which has written a part, goes on.
  def test_what_is_left_of_a_write_goes_to_nobody_else
    bytes = "x" * 5_000_000
    writes = { write: ->(io) { io.write(bytes) }, flush: ->(io) { (io.sync = false) || io << bytes << bytes }, syswrite: ->(io) { nil while io.syswrite(bytes) } }
    # It waits again when it is closed, or has just written another part.
    writes.to_a.product([true, false]).each do |(name, write), waits|
      one, other = UNIXSocket.pair
      one.autoclose = false
      error = nil
      in_fiber do
        machine = Fiber.scheduler.machine
        Fiber.schedule do
          write.call(one)
        rescue SystemCallError => e
          error = e.class
        end
        # All of it: half of a full socket is no room.
        nil until other.read_nonblock(1 << 20, exception: false) == :wait_readable
        waits ? sleep(0.001) : machine.submit
        machine.close_async(one.fileno)
        machine.submit
        # The kernel may close it a little later; no fiber goes on meanwhile.
        pairs = []
        pairs << UNIXSocket.pair until pairs.flatten.any? { |socket| socket.fileno == one.fileno } || pairs.size > 1000
        foreign = pairs.find { |pair| pair.any? { |socket| socket.fileno == one.fileno } }
        assert foreign, "its number is not reused"
        sleep(0.001) until error
        peer = foreign.find { |socket| socket.fileno != one.fileno }
        assert_equal [Errno::ECANCELED, :wait_readable], [error, peer.read_nonblock(1, exception: false)], [name, waits]
        pairs.flatten.each(&:close)
      end
    end
  end

  def test_a_thread_closes_what_a_fiber_waits_for
    result = nil
    reader, = IO.pipe
    waiting = Thread::Queue.new
    closer = Thread.new { waiting.pop && reader.close }
    scheduled do
      Fiber.schedule { result = (reader.readpartial(1) rescue $!.class) }
      Fiber.schedule { waiting << true }
    end
    closer.join

    assert_equal IOError, result
  end

  # In one of several steps, a poll before the read, the close counts between them.
  def test_what_has_been_read_counts_and_the_close_is_raised_nowhere_else
    PAIRS.each do |kind, pair|
      log = []
      scheduled do
        Fiber.schedule do
          reader, writer = pair.call
          Fiber.schedule do
            log << (reader.sysread(10) rescue $!.class)
            Fiber.scheduler.yield
            other, = IO.pipe
            log << (other.wait_readable(0.001) rescue $!.class)
          end
          writer.syswrite("hi")
          reader.close
        end
      end

      assert_includes [["hi", nil], [IOError, nil]], log, kind
    end
  end

  def test_a_close_ends_a_write_that_waits
    PAIRS.except(:messages).each do |kind, pair|
      result = nil
      in_fiber do
        reader, writer = pair.call
        writable = kind == :pipe ? writer : reader
        writable.sync = true
        Fiber.schedule { result = (writable.write("x" * 1_000_000) rescue $!.class) }
        writable.close
      end
      assert_equal IOError, result, kind
    end
  end

  def test_a_reopen_ends_what_waits_for_the_old_file
    old = new = nil
    in_fiber do
      (reader,), (other, writer) = IO.pipe, IO.pipe
      Fiber.schedule { old = (reader.readpartial(10) rescue $!.class) }
      reader.reopen(other)
      writer << "new"
      new = reader.readpartial(10)
    end

    assert_equal [IOError, "new"], [old, new]
  end

  # A file, then a FIFO that nobody reads yet, by the same object and through another one.
  def test_an_io_that_is_reopened_is_what_it_is_now
    reopens = {
      itself: ->(file, path) { file.reopen(path, "w") },
      another: lambda do |file, path|
        target = File.open(path, "w")
        IO.for_fd(file.fileno, "w", autoclose: false).reopen(target)
        target.close
      end
    }
    reopens.each do |name, reopen|
      Dir.mktmpdir do |folder|
        path = File.join(folder, "fifo")
        File.mkfifo(path)
        reader = File.open(path, File::RDWR | File::NONBLOCK)
        received = 0
        scheduled do
          Fiber.schedule do
            file = File.open(File.join(folder, "log"), "w")
            file.sync = true
            file.write("start\n")
            reopen.call(file, path)
            file.write("y" * 300_000)
            file.close
          end
          Fiber.schedule { received += reader.readpartial(65_536).size while received < 300_000 }
        end
        assert_equal 300_000, received, name
      end
    end
  end

  # Has a fiber run for longer than one may before it lets others go.
  def hold_the_thread
    # So often that the clock is looked at, from when on it counts.
    20.times { Thread.pass }
    enough = Process.clock_gettime(Process::CLOCK_MONOTONIC) + 0.01
    nil while Process.clock_gettime(Process::CLOCK_MONOTONIC) < enough
    true
  end

  # Whoever has held the thread long lets others go first, who may close what it is about to use.
  def test_what_lets_others_go_first_does_not_use_what_they_have_closed
    {
      write: ->(_, writer) { writer.write(*Array.new(5) { "x" * 40_001 }) },
      readpartial: ->(reader, _) { 2.times { reader.readpartial(65_536) } },
      wait_readable: ->(reader, _) { reader.readpartial(65_536) && reader.wait_readable }
    }.each do |name, use|
      # Several parts are one message.
      (name == :write ? PAIRS.except(:messages) : PAIRS).each_value do |pair|
        ended = nil
        scheduled do
          reader, writer = pair.call
          writer.sync = true
          writer.write_nonblock("x" * 65_536) unless name == :write
          fiber = Fiber.schedule { hold_the_thread && use.call(reader, writer) rescue ended = $! }
          Fiber.schedule do
            (name == :write ? writer : reader).close
            sleep(0) while fiber.alive?
          end
        end
        assert_instance_of IOError, ended, name
      end
    end
  end

  def test_closing_one_end_of_a_child_ends_what_waits_for_that_end_only
    results = []
    in_fiber do
      child = IO.popen("cat", "r+")
      child.sync = true
      Fiber.schedule { results << (child.write("x" * 1_000_000) rescue $!.class) }
      child.close_write
      child.readpartial(1)
      Fiber.schedule { child.read(2_000_000) && results << :read && child.close }
      Fiber.scheduler.yield
    end

    assert_equal [IOError, :read], results.sort_by(&:to_s)
  end

  def test_what_a_tls_connection_had_left_is_not_the_next_ones
    result = in_fiber do
      client_end, server_end = UNIXSocket.pair
      fd = client_end.fileno
      server = OpenSSL::SSL::SSLSocket.new(server_end, tls_context)
      client = OpenSSL::SSL::SSLSocket.new(client_end, OpenSSL::SSL::SSLContext.new)
      UM::SSL.accelerate(client)
      Fiber.schedule { server.accept && 5.times { |number| server.syswrite("message #{number}") } }
      client.connect
      client.wait_readable
      client.sysread(3)
      client_end.close
      taken, = take_number(-> { UNIXSocket.pair }, fd)
      [taken.wait_readable(0.001), IO.select([taken], nil, nil, 0)]
    end

    assert_equal [nil, nil], result
  end

  def test_what_is_closed_while_a_select_waits_for_it_is_let_go
    result = nil
    in_fiber do
      reader, writer = UNIXSocket.pair
      other, = IO.pipe
      Fiber.schedule { result = (IO.select([reader, other]) rescue $!.class) }
      reader.close
      # The peer sees the end although the select was going on.
      assert_nil writer.read_nonblock(1, exception: false)
    end

    assert_equal IOError, result
  end

  def tls_context
    key = OpenSSL::PKey::RSA.new(2048)
    certificate = OpenSSL::X509::Certificate.new
    certificate.subject = certificate.issuer = OpenSSL::X509::Name.parse("/CN=localhost")
    certificate.public_key = key.public_key
    certificate.not_before = Time.now - 60
    certificate.not_after = Time.now + 3600
    certificate.serial = 1
    certificate.version = 2
    certificate.sign(key, "SHA256")
    OpenSSL::SSL::SSLContext.new.tap { |context| context.add_certificate(certificate, key) }
  end

  def test_a_frozen_io_is_closed
    reader, @writer = IO.pipe.each(&:freeze)
    error = nil
    in_fiber do
      waiting = Fiber.schedule do
        UM::FiberScheduler.current.machine.poll(reader.fileno, UM::POLLIN)
      rescue IOError, SystemCallError => e
        error = e
      end
      assert_nil reader.close
      sleep(0) while waiting.alive?
    end

    assert_predicate reader, :closed?
    refute_nil error
  end
end

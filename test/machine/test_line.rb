# frozen_string_literal: true

require_relative "../test_helper"

# Who writes to a descriptor: one at a time, in the order they came, and what nobody waits for among them.
class TestMachineLine < MachineTest
  class TooLate < StandardError; end

  # A small buffer on the way, so that much is written in many parts.
  def pair
    one, other = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.setsockopt(:SOCKET, :SNDBUF, 1); socket.fileno })
    [one, other]
  end

  def pipe = opened(UM.pipe)

  # Every kind of descriptor that takes bytes: the end to write to, and the one to read from.
  def each_pair
    { socket: pair, pipe: pipe.reverse, tcp: tcp_pair }.each { |kind, (writer, reader)| yield(kind, writer, reader) }
  end

  def tcp_pair
    server = machine.tcp_listen("127.0.0.1", 0)
    client = machine.tcp_connect("127.0.0.1", machine.sockname(server).last)
    peer = machine.accept(server)
    machine.close(server)
    opened(client, peer)
  end

  # Everything that comes until the end.
  def all_of(fd)
    received = +"".b
    machine.timeout(20, TooLate) { machine.read_each(fd) { |piece| received << piece } }
    received
  end

  def closed?(fd)
    IO.for_fd(fd, autoclose: false)
    false
  rescue Errno::EBADF
    true
  end

  def test_a_write_that_nobody_waits_for_is_made_whole_before_the_close
    each_pair do |kind, writer, reader|
      bytes = Random.bytes(2 << 20)
      machine.write_async(writer, bytes)
      machine.close_async(writer)
      assert_equal bytes, all_of(reader), kind
      assert closed?(writer)
    end
  end

  def test_writes_that_nobody_waits_for_come_in_the_order_they_were_given
    each_pair do |kind, writer, reader|
      pieces = Array.new(300) { |number| "#{number}:#{"x" * (number * 13)};" }
      pieces.each { |piece| machine.write_async(writer, piece) }
      machine.shutdown_async(writer, UM::SHUT_WR) unless kind == :pipe
      machine.close_async(writer)
      assert_equal pieces.join, all_of(reader), kind
    end
  end

  def test_a_shutdown_does_not_cut_off_what_was_given_before
    [pair, tcp_pair].each do |writer, reader|
      bytes = Random.bytes(1 << 20)
      machine.write_async(writer, bytes)
      assert_equal writer, machine.shutdown_async(writer, UM::SHUT_WR)
      assert_equal bytes, all_of(reader)
      assert_raises(Errno::EPIPE) { machine.send(writer, "x") }
    end
    writer, reader = pair
    machine.write_async(writer, "y" * 500_000)
    received = machine.spin { all_of(reader) }
    assert_equal 0, machine.shutdown(writer, UM::SHUT_WR)
    assert_equal 500_000, machine.join(received).bytesize
  end

  def test_a_close_waits_for_what_was_given_before
    each_pair do |kind, writer, reader|
      bytes = Random.bytes(500_000)
      machine.write_async(writer, bytes)
      received = machine.spin { all_of(reader) }
      assert_equal writer, machine.close(writer)
      assert closed?(writer)
      assert_equal bytes, machine.join(received), kind
    end
  end

  def test_a_close_that_does_not_wait_any_longer_is_made_all_the_same
    writer, reader = pair
    bytes = Random.bytes(500_000)
    machine.write_async(writer, bytes)
    assert_raises(TooLate) { machine.timeout(0.005, TooLate) { machine.close(writer) } }
    refute closed?(writer)
    assert_equal bytes, all_of(reader)
    assert closed?(writer)
  end

  def test_what_is_written_later_comes_later
    each_pair do |kind, writer, reader|
      writes = {
        write: -> { machine.write(writer, "w") }, writev: -> { machine.writev(writer, "v", "v") }, io: -> { machine.io(writer, :fd).write("io") }
      }
      writes.merge!(send: -> { machine.send(writer, "s") }, sendv: -> { machine.sendv(writer, "n", "n") }, io_socket: -> { machine.io(writer, :socket).write("so") }) unless kind == :pipe
      received = machine.spin { all_of(reader) }
      wanted = +""
      writes.each do |name, write|
        machine.write_async(writer, "a" * 300_000)
        write.call
        machine.write_async(writer, "b")
        wanted << "a#{{ write: "w", writev: "vv", io: "io", send: "s", sendv: "nn", io_socket: "so" }[name]}b"
      end
      machine.close(writer)
      assert_equal wanted, machine.join(received).gsub(/a+/, "a"), kind
    end
  end

  def test_positions_of_a_file
    Tempfile.create do |file|
      fd = file.fileno
      machine.write_async(fd, "first ")
      machine.write_async(fd, "second ")
      machine.write_async(fd, "there", nil, 100)
      machine.write_async(fd, "third")
      machine.write(fd, "here", nil, 50)
      assert_equal "first second third", File.binread(file.path, 18)
      assert_equal ["here", "there"], [File.binread(file.path, 4, 50), File.binread(file.path, 5, 100)]
    end
  end

  def test_what_was_given_before_is_in_the_file_that_is_synced_or_cut
    %i[fsync fdatasync].each do |sync|
      Tempfile.create do |file|
        5.times { machine.write_async(file.fileno, "x" * 100_000) }
        assert_equal 0, machine.public_send(sync, file.fileno)
        assert_equal 500_000, File.size(file.path), sync
      end
    end
    Tempfile.create do |file|
      5.times { machine.write_async(file.fileno, "x" * 100_000) }
      assert_equal 0, machine.ftruncate(file.fileno, 10)
      assert_equal "x" * 10, File.read(file.path)
    end
  end

  def test_an_error_is_the_next_operations
    operations = {
      write: ->(fd) { machine.write(fd, "x") }, writev: ->(fd) { machine.writev(fd, "x") }, send: ->(fd) { machine.send(fd, "x") }, sendv: ->(fd) { machine.sendv(fd, "x") },
      read: ->(fd) { machine.read(fd, +"", 1) }, recv: ->(fd) { machine.recv(fd, +"", 1) }, recvfrom: ->(fd) { machine.recvfrom(fd, +"", 1) },
      io_write: ->(fd) { machine.io(fd, :socket).write("x") }, io_read: ->(fd) { machine.io(fd, :socket).read(1) }, close: ->(fd) { machine.close(fd) }, shutdown: ->(fd) { machine.shutdown(fd, UM::SHUT_WR) }
    }
    Tempfile.create do |file|
      operations.each do |name, operation|
        # It is not open for writing.
        fd = opened(IO.sysopen(file.path, File::RDONLY))
        machine.write_async(fd, "lost")
        machine.write_async(fd, "lost too")
        eventually { machine.metrics[:ops_pending].zero? }
        assert_raises(Errno::EBADF, name) { operation.call(fd) }
        # Told once.
        assert_equal name == :close, closed?(fd), name
        assert_equal 0, machine.read(fd, +"", 1) unless name == :close
      end
    end
  end

  def test_nothing_is_written_after_a_gap
    output, = ruby(<<~RUBY)
      require "tempfile"
      Tempfile.create do |file|
        Process.setrlimit(:FSIZE, 10)
        trap(:XFSZ, "IGNORE")
        m = UM.new
        m.write_async(file.fileno, "0123456789abc")
        m.write_async(file.fileno, "x" * 70_000)
        m.submit
        m.sleep(0.001) until m.metrics[:ops_pending].zero?
        begin
          m.close(file.fileno)
        rescue Errno::EFBIG => e
          p e.class, File.binread(file.path)
        end
        file = IO.for_fd(IO.sysopen("/dev/null"))
      end
    RUBY
    assert_includes output, %(Errno::EFBIG\n"0123456789"\n)
  end

  def test_a_number_that_is_another_files_has_no_part_in_what_was
    keep_numbers
    { machine: ->(fd) { machine.close_async(fd) && machine.submit }, elsewhere: ->(fd) { IO.for_fd(fd).close } }.each do |how, close|
      Tempfile.create do |file|
        fd = IO.sysopen(file.path, File::RDONLY)
        machine.write_async(fd, "lost")
        eventually { machine.metrics[:ops_pending].zero? }
        close.call(fd)
        reader, writer = UM.pipe
        assert_equal fd, reader, how
        assert_equal 1, machine.write(opened(writer), "x")
        assert_equal 1, machine.read(opened(reader), +"", 1)
      end
    end
  end

  def test_fibers_that_wait_behind_a_close
    writer, = pair
    machine.write_async(writer, "x" * 500_000)
    machine.close_async(writer)
    fibers = Array.new(3) { machine.spin { machine.write(writer, "late") rescue $!.class } }
    machine.snooze
    again = machine.spin { machine.close(writer) rescue $!.class }
    machine.snooze
    machine.spin { all_of(@opened[-1]) }
    assert_equal [Errno::EBADF] * 4, machine.join(*fibers, again)
  end

  def test_a_close_ends_who_writes_and_who_waits_to
    each_pair do |kind, writer,|
      write = { socket: ->(bytes) { machine.sendv(writer, bytes) }, tcp: ->(bytes) { machine.send(writer, bytes, nil, UM::MSG_WAITALL) } }[kind] || ->(bytes) { machine.writev(writer, bytes) }
      fibers = Array.new(3) { machine.spin { (write.call("x" * 8_000_000) < 8_000_000 ? :part : :all) rescue $!.class } }
      3.times { machine.submit && machine.snooze }
      machine.timeout(20, TooLate) { machine.close(writer) }
      assert_includes [[Errno::ECANCELED, Errno::EBADF, Errno::EBADF], [:part, Errno::EBADF, Errno::EBADF]], machine.join(*fibers), kind
      assert closed?(writer)
    end
  end

  def test_what_fibers_write_at_once_is_not_mixed
    ways = {
      writev: ->(fd, bytes) { machine.writev(fd, bytes[0, 1000], bytes[1000..]) }, sendv: ->(fd, bytes) { machine.sendv(fd, bytes[0, 1000], bytes[1000..]) },
      send: ->(fd, bytes) { machine.send(fd, bytes, nil, UM::MSG_WAITALL) }, send_zc: ->(fd, bytes) { machine.send_zc(fd, bytes.freeze, UM::MSG_WAITALL) }, io: ->(fd, bytes) { machine.io(fd, :fd).write(bytes) },
      io_socket: ->(fd, bytes) { machine.io(fd, :socket).write(bytes) }, write_async: ->(fd, bytes) { machine.write_async(fd, bytes) }, resp: ->(fd, bytes) { machine.io(fd, :socket).resp_write(bytes) }
    }
    each_pair do |kind, writer, reader|
      usable = kind == :pipe ? ways.slice(:writev, :io, :write_async) : ways
      received = machine.spin { all_of(reader) }
      fibers = usable.flat_map { |_, way| Array.new(2) { |number| machine.spin { way.call(writer, "#{("A".ord + number).chr}" * 300_000) } } }
      machine.join(*fibers)
      machine.close(writer)
      letters = machine.join(received).gsub(/\$\d+\r\n|\r\n/, "").scan(/A+|B+/)
      assert_equal usable.size * 2 * 300_000, letters.sum(&:bytesize), kind
      assert_empty letters.map { |run| run.bytesize % 300_000 }.uniq - [0], kind
    end
  end

  def test_a_turn_that_is_given_up_is_the_next_ones
    writer, reader = pair
    first = machine.spin { machine.timeout(0.005, TooLate) { machine.sendv(writer, "a" * 8_000_000) } rescue :late }
    machine.snooze
    given_up = machine.spin { machine.timeout(0.001, TooLate) { machine.sendv(writer, "b" * 8_000_000) } rescue :late }
    killed = machine.spin { machine.sendv(writer, "c" * 8_000_000) }
    last = machine.spin { machine.sendv(writer, "d" * 500_000) }
    machine.snooze
    killed.kill
    assert_equal :late, machine.join(given_up)
    assert_kind_of Integer, machine.join(first)
    received = machine.spin { all_of(reader) }
    assert_equal 500_000, machine.join(last)
    machine.close(writer)
    received = machine.join(received)
    assert_equal ["ad", 500_000], [received.squeeze, received.count("d")]
  end

  def test_a_handler_that_writes_in_the_middle_of_a_write
    writer, reader = pair
    wrote = nil
    old = trap(:USR2) { wrote = machine.write(writer, "handler") }
    main = Thread.current
    thread = Thread.new do
      Thread.pass until main.stop?
      Process.kill(:USR2, Process.pid)
      # The handler writes without waiting for what it has interrupted.
      IO.for_fd(reader, autoclose: false).readpartial(1)
      received = +"x"
      received << IO.for_fd(reader, autoclose: false).readpartial(65_536) while received.bytesize < 500_007
      received
    end
    assert_equal 500_000, machine.sendv(writer, "x" * 500_000)
    assert_equal [7, 500_000], [wrote, thread.value.count("x")]
  ensure
    trap(:USR2, old)
  end

  def test_the_end_of_a_thread_with_work_that_goes_on
    reader, writer = pipe
    Thread.new do
      scheduler = UM::FiberScheduler.new
      Fiber.set_scheduler(scheduler)
      Fiber.schedule do
        10.times { |number| scheduler.machine.write_async(writer, "#{number}" * 1000) }
        scheduler.machine.close_async(writer)
      end
    end.join
    assert_equal Array.new(10) { |number| "#{number}" * 1000 }.join, all_of(reader)
    assert closed?(writer)
  end

  def test_the_end_of_a_thread_with_work_that_does_not_go_on
    reader, writer = pipe
    Thread.new do
      scheduler = UM::FiberScheduler.new
      Fiber.set_scheduler(scheduler)
      Fiber.schedule do
        scheduler.machine.write_async(writer, "x" * 1_000_000)
        scheduler.machine.close_async(writer)
      end
    end.join
    assert closed?(writer)
    assert_operator all_of(reader).bytesize, :<, 1_000_000
  end

  # The IO's close comes before the number is another file's; what was given before is written all the same.
  def test_the_close_of_an_io_under_the_scheduler
    keep_numbers
    one, other = UNIXSocket.pair
    bytes = Random.bytes(1 << 20)
    received = nil
    Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        machine = Fiber.scheduler.machine
        fd = one.fileno
        machine.write_async(fd, bytes)
        one.close
        pairs = []
        pairs << UNIXSocket.pair until pairs.flatten.any? { |socket| socket.fileno == fd }
        third, fourth = pairs.last
        third, fourth = fourth, third if third.fileno == fd
        received = other.read
        assert_equal :wait_readable, third.read_nonblock(1, exception: false)
        pairs.flatten.each(&:close)
      end
    end.join
    assert_equal bytes, received
  end

  def test_the_close_of_an_io_that_a_stream_has_read_from
    one, other = UNIXSocket.pair
    ended = nil
    Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        one.write("one\ntwo\n")
        assert_equal "one", Fiber.scheduler.machine.io(other.fileno, :socket).read_line
        other.close
        ended = (one.read(1) rescue $!.class)
      end
    end.join
    assert_includes [nil, Errno::ECONNRESET], ended
  end

  def test_a_child_of_fork_has_none_of_the_work
    reader, writer = pipe
    machine.write_async(writer, "x" * 300_000)
    machine.close_async(writer)
    machine.submit
    pid = fork do
      own = UM.new
      own.writev(writer, "child")
      exit!(0)
    end
    assert_equal "x" * 300_000, all_of(reader).delete("child")
    Process.wait(pid)
    assert_predicate $?, :success?
  end

  WRITES = [
    ->(machine, fd, bytes) { machine.writev(fd, bytes[0, 5], bytes[5..]) }, ->(machine, fd, bytes) { machine.sendv(fd, bytes) }, ->(machine, fd, bytes) { machine.send(fd, bytes, nil, UM::MSG_WAITALL) },
    ->(machine, fd, bytes) { machine.io(fd, :socket).write(bytes) }, ->(machine, fd, bytes) { machine.write_async(fd, bytes) }, ->(machine, fd, bytes) { machine.send_zc(fd, bytes.freeze, UM::MSG_WAITALL) }
  ].freeze

  # Each adds what it has read; true at the end.
  READS = [
    ->(machine, fd, got, most) { machine.recv(fd, bytes = "".b, most).zero? || !(got << bytes) }, ->(machine, fd, got, most) { machine.read(fd, bytes = "".b, most).zero? || !(got << bytes) },
    ->(machine, fd, got, most) { machine.recvfrom(fd, bytes = "".b, most).first.zero? || !(got << bytes) }, ->(machine, fd, got, _) { machine.recv_each(fd) { |piece| (got << piece) and break :left }.nil? },
    ->(machine, fd, got, _) { machine.recv_each(fd) { |piece| got << piece }.nil? }, ->(machine, fd, got, _) { machine.read_each(fd) { |piece| (got << piece) && raise(TooLate) }.nil? },
    ->(machine, fd, got, most) { machine.io(fd, :socket) { |io| io.read(-most) }.then { |bytes| bytes.nil? || !(got << bytes) } }, ->(machine, fd, got, _) { machine.io(fd, :fd).read(0).then { |bytes| bytes.nil? || !(got << bytes) } },
    ->(machine, fd, _, _) { machine.poll(fd, UM::POLLIN).zero? }
  ].freeze

  # Whole messages of many writers, by whatever way they are written and read, with time limits and loops that are left.
  def test_every_byte_comes_once_and_in_order
    random = Random.new(7)
    60.times do |round|
      one, other = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.setsockopt(:SOCKET, :SNDBUF, [1, 200_000].sample(random:)); socket.fileno })
      sent = []
      writers = Array.new(random.rand(1..4)) do |number|
        machine.spin do
          random.rand(1..6).times do
            sent << (message = "<#{number}:#{(65 + number).chr * random.rand(60_000)}>")
            WRITES.sample(random:).call(machine, one, message.dup)
            machine.snooze if random.rand(3).zero?
          end
        end
      end
      got = "".b
      reader = machine.spin do
        ended = false
        until ended
          begin
            machine.timeout([0.0005, 0.01].sample(random:), TooLate) { ended = READS.sample(random:).call(machine, other, got, random.rand(1..30_000)) }
          rescue TooLate
            # Nothing is lost by that.
          end
        end
      end
      machine.join(*writers)
      machine.shutdown_async(one, UM::SHUT_WR)
      machine.timeout(PATIENCE / 2, RuntimeError, "round #{round} hangs") { machine.join(reader) }
      assert_equal sent.sort, got.scan(/<.*?>/n).sort, round
      assert_equal sent.sum(&:bytesize), got.bytesize
      machine.close(one)
      machine.close(other)
    end
  end

  def test_many_descriptors_and_a_bad_one
    fds = Array.new(200) { UM.pipe }
    fds.each { |_, writer| machine.write_async(writer, "x" * 100_000) }
    fds.each { |_, writer| machine.close_async(writer) }
    assert_equal [100_000] * 200, (fds.map { |reader,| opened(reader) && all_of(reader).bytesize })
    [-1, 1 << 30].each do |fd|
      machine.write_async(fd, "x")
      machine.close_async(fd)
      machine.shutdown_async(fd, UM::SHUT_WR)
      machine.submit
      assert_raises(Errno::EBADF) { machine.close(fd) }
      assert_raises(Errno::EBADF) { machine.write(fd, "x") }
    end
  end
end

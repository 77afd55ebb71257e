# frozen_string_literal: true

require_relative "../test_helper"

# accept_each, accept_into_queue, read_each, recv_each.
class TestMachineStreams < MachineTest
  class TooLate < StandardError; end

  def setup
    super
    @server = opened(machine.tcp_listen("127.0.0.1", 0))
    @port = machine.sockname(@server).last
  end

  def connect = opened(machine.tcp_connect("127.0.0.1", @port))

  def pipe = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })

  def pair(type = UM::SOCK_STREAM) = opened(UNIXSocket.pair(type).map { |socket| socket.autoclose = false; socket.fileno })

  def test_accept_each_until_the_block_breaks
    connections = []
    machine.spin { 3.times { connect } }
    result = machine.accept_each(@server) do |fd|
      connections << opened(fd)
      break :enough if connections.size == 3
    end
    assert_equal :enough, result
    assert_equal 3, connections.uniq.size
  end

  def test_accept_each_ends_when_the_socket_is_shut_down
    accepted = 0
    fiber = machine.spin { machine.accept_each(@server) { |fd| opened(fd) && accepted += 1 } }
    connect
    eventually { accepted == 1 }
    machine.shutdown(@server, UM::SHUT_RD)
    assert_nil machine.join(fiber)
  end

  def test_connections_that_the_block_was_not_given_are_whoevers_who_accepts_next
    { break: -> { machine.accept_each(@server) { |fd| break @accepted << opened(fd) } },
      raise: -> { machine.accept_each(@server) { |fd| (@accepted << opened(fd)) && raise(TooLate) } rescue TooLate } }.each do |how, leave|
      @accepted = []
      clients = Array.new(5) { connect }
      leave.call
      @accepted << opened(machine.accept(@server))
      queue = UM::Queue.new
      fiber = machine.spin { machine.accept_into_queue(@server, queue) }
      @accepted << opened(machine.shift(queue))
      fiber.kill
      @accepted << opened(machine.shift(queue)) while queue.count.positive?
      machine.accept_each(@server) { |fd| (@accepted << opened(fd)).size == 5 and break } if @accepted.size < 5
      clients.each_with_index { |client, number| machine.send(client, "hello #{number}") }
      heard = @accepted.map { |fd| (+"").tap { |buffer| machine.recv(fd, buffer, 20) } }
      assert_equal Array.new(5) { |number| "hello #{number}" }, heard, how
    end
  end

  def test_connections_that_were_kept_end_with_their_machine
    clients = Array.new(3) { connect }
    Thread.new do
      own = UM.new
      own.accept_each(@server) { |fd| break own.close(fd) }
    end.join
    clients.each do |client|
      ended = false
      reading = machine.spin { ended = machine.recv(client, +"", 1) rescue $!.class }
      # The collector has the machine.
      until ended
        GC.start
        machine.sleep(0.001)
      end
      assert_includes [0, Errno::ECONNRESET], ended
      machine.join(reading)
    end
  end

  def test_connections_that_nobody_accepts_end_with_the_socket
    { close: -> { machine.close(@server) }, close_async: -> { machine.close_async(@server) } }.each do |how, close|
      @server = opened(machine.tcp_listen("127.0.0.1", 0))
      @port = machine.sockname(@server).last
      clients = Array.new(3) { connect }
      machine.accept_each(@server) { |fd| break opened(fd) }
      close.call
      clients.drop(1).each do |client|
        ended = machine.timeout(20, TooLate) { machine.recv(client, +"", 1) rescue $!.class }
        assert_includes [0, Errno::ECONNRESET], ended, how
      end
    end
  end

  def test_an_exception_in_the_block_or_from_outside_ends_accept_each
    connect
    assert_raises(ArgumentError) { machine.accept_each(@server) { |fd| opened(fd) && raise(ArgumentError) } }
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { machine.accept_each(@server) {} } }
    connect
    machine.accept_each(@server) { |fd| break opened(fd) }
  end

  def test_accept_each_of_what_does_not_listen
    assert_raises(Errno::ENOTSOCK) { machine.accept_each(pipe.first) {} }
    assert_raises(Errno::EINVAL) { machine.accept_each(pair.first) {} }
    assert_raises(ArgumentError) { machine.accept_each(@server) }
  end

  def test_a_shortage_of_descriptors_is_an_error_of_that_one_call
    output, = ruby(<<~RUBY)
      require "socket"
      m = UM.new
      server = m.tcp_listen("127.0.0.1", 0)
      port = m.sockname(server).last
      client = fork { Array.new(20) { TCPSocket.new("127.0.0.1", port) }; sleep }
      Process.setrlimit(:NOFILE, Dir.children("/proc/self/fd").size + 5)
      fds = []
      begin
        m.accept_each(server) { |fd| fds << fd }
      rescue Errno::EMFILE
        puts "short"
      end
      fds.each { |fd| m.close(fd) }
      m.accept(server)
      puts "going on"
      Process.kill(:KILL, client)
    RUBY
    assert_equal "short\ngoing on\n", output
  end

  def test_accept_into_queue
    queue = UM::Queue.new
    fiber = machine.spin { machine.accept_into_queue(@server, queue) }
    3.times { connect }
    3.times { opened(machine.shift(queue)) }
    machine.shutdown(@server, UM::SHUT_RD)
    assert_nil machine.join(fiber)
    assert_names("queue", TypeError) { machine.accept_into_queue(@server, nil) }
    assert_names("queue", TypeError) { machine.accept_into_queue(@server, []) }
    assert_raises(Errno::ENOTSOCK) { machine.accept_into_queue(pipe.first, queue) }
  end

  def test_recv_each_brings_every_byte_and_ends
    one, other = pair
    bytes = Random.bytes(3_000_000)
    machine.spin { machine.sendv(one, bytes) && machine.shutdown(one, UM::SHUT_WR) }
    received = +"".b
    assert_nil machine.recv_each(other, 0) { |piece| received << piece }
    assert_equal bytes, received
  end

  def test_recv_each_gives_each_datagram
    one, other = pair(:DGRAM)
    messages = Array.new(300) { |number| "#{number}:#{"x" * (number * 7)}" }
    machine.spin { messages.each { |message| machine.send(one, message) } }
    received = []
    machine.recv_each(other, 0) { |piece| (received << piece).size == messages.size and break }
    assert_equal messages, received
  end

  def test_read_each_of_a_pipe_a_file_and_a_terminal_device
    reader, writer = pipe
    bytes = Random.bytes(1_000_000)
    machine.spin { machine.writev(writer, bytes) && machine.close(writer) }
    received = +"".b
    assert_nil machine.read_each(reader) { |piece| received << piece }
    assert_equal bytes, received
    file = opened(IO.sysopen(__FILE__))
    received = +""
    machine.read_each(file) { |piece| received << piece }
    assert_equal File.binread(__FILE__), received
    random = opened(IO.sysopen("/dev/urandom"))
    count = 0
    machine.read_each(random) { |piece| (count += piece.bytesize) > 1_000_000 and break }
  end

  def test_a_slow_consumer_stops_the_producer_and_gets_every_byte
    one, other = pair
    bytes = Random.bytes(5_000_000)
    sent = 0
    sender = machine.spin do
      bytes.scan(/.{1,50000}/mn) { |piece| sent += machine.sendv(one, piece) }
      machine.shutdown(one, UM::SHUT_WR)
    end
    received = +"".b
    ahead = 0
    machine.recv_each(other, 0) do |piece|
      received << piece
      ahead = [ahead, sent - received.bytesize].max
      machine.snooze if received.bytesize < 500_000
    end
    machine.join(sender)
    assert_equal bytes, received
    # What the stream and the socket's own buffers may hold.
    assert_operator ahead, :<, 2_000_000
  end

  def test_a_stream_of_bytes_can_be_left_and_cancelled
    one, other = pair
    machine.send(one, "first")
    assert_equal("first", machine.recv_each(other, 0) { |piece| break piece })
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { machine.recv_each(other, 0) { flunk } } }
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { machine.read_each(pipe.first) { flunk } } }
    machine.send(one, "second")
    assert_equal("second", machine.recv_each(other, 0) { |piece| break piece })
  end

  LEFT = {
    recv_each: ->(test, fd, got) { test.machine.recv_each(fd) { |piece| break got << piece } },
    read_each: ->(test, fd, got) { test.machine.read_each(fd) { |piece| break got << piece } },
    recv_each_raised: ->(test, fd, got) { (test.machine.recv_each(fd) { |piece| (got << piece) && raise(TooLate) }) rescue TooLate },
    recv_each_timed: ->(test, fd, got) { test.machine.timeout(0.002, TooLate) { test.machine.recv_each(fd) { |piece| (got << piece) && test.machine.sleep } } rescue TooLate },
    io_line: ->(test, fd, got) { got << test.machine.io(fd, :socket).read(1) },
    io_block: ->(test, fd, got) { test.machine.io(fd, :socket) { |io| got << io.read(1) } },
    io_each: ->(test, fd, got) { test.machine.io(fd, :fd).read_each { |buffer| break got << buffer.get_string } },
    io_collected: ->(test, fd, got) { 3.times { got << test.machine.io(fd, :socket).read(1) } && GC.start }
  }.freeze
  NEXT = {
    read: ->(test, fd, _) { (+"").tap { |buffer| test.machine.read(fd, buffer, 5000) } },
    read_small: ->(test, fd, _) { (+"").tap { |buffer| test.machine.read(fd, buffer, 7) } },
    read_buffer: ->(test, fd, _) { IO::Buffer.new(5000).then { |buffer| buffer.get_string(0, test.machine.read(fd, buffer, nil)) } },
    recv: ->(test, fd, _) { (+"").tap { |buffer| test.machine.recv(fd, buffer, 5000) } },
    recv_peeked: ->(test, fd, _) { test.machine.recv(fd, peeked = +"", 10, UM::MSG_PEEK); (+"").tap { |buffer| test.machine.recv(fd, buffer, 5000); test.assert_operator(buffer.b, :start_with?, peeked.b) } },
    recv_all: ->(test, fd, left) { (+"").tap { |buffer| test.machine.recv(fd, buffer, [left, 20_000].min, UM::MSG_WAITALL) } },
    recvfrom: ->(test, fd, _) { (+"").tap { |buffer| test.machine.recvfrom(fd, buffer, 5000) } },
    recv_each: ->(test, fd, _) { test.machine.recv_each(fd) { |piece| break piece } },
    read_each: ->(test, fd, _) { test.machine.read_each(fd) { |piece| break piece } },
    io: ->(test, fd, _) { test.machine.io(fd, :socket).read(-5000) },
    io_fd: ->(test, fd, _) { test.machine.io(fd, :fd).read(-5000) }
  }.freeze

  def test_what_has_come_when_a_loop_is_left_is_there_for_the_next_read
    all = Random.new(3).bytes(100_000)
    LEFT.each do |left, leave|
      NEXT.each do |name, read|
        one, other = pair
        sender = machine.spin { machine.sendv(one, all) && machine.shutdown(one, UM::SHUT_WR) }
        got = []
        leave.call(self, other, got)
        size = got.sum(&:bytesize)
        machine.timeout(20, TooLate) do
          while size < all.bytesize
            piece = read.call(self, other, all.bytesize - size).b
            refute_empty piece, "#{left} #{name}"
            size += (got << piece).last.bytesize
          end
        end
        assert_equal all, got.map(&:b).join, "#{left} #{name}"
        machine.join(sender)
        assert_equal 0, machine.recv(other, +"", 10), "#{left} #{name}"
      end
    end
  end

  def test_every_loop_in_turn_gets_what_comes_next
    one, other = pair
    sender = machine.spin { 2000.times { |number| machine.send(one, "#{number}\n", nil, UM::MSG_WAITALL) } && machine.shutdown(one, UM::SHUT_WR) }
    got = +""
    random = Random.new(1)
    loops = [*LEFT.values_at(:recv_each, :read_each, :recv_each_raised, :io_line, :io_block, :io_each), ->(test, fd, got) { got << NEXT[:read_small].call(test, fd, 0) }]
    until got.end_with?("1999\n")
      pieces = []
      loops.sample(random:).call(self, other, pieces)
      got << pieces.join
    end
    machine.join(sender)
    assert_equal Array.new(2000) { |number| "#{number}\n" }.join, got
  end

  # The error of a connection is told once, after its bytes, to whoever reads next.
  def test_the_error_that_comes_after_what_a_loop_has_left
    NEXT.each do |name, read|
      client = TCPSocket.new("127.0.0.1", @port)
      peer = opened(machine.accept(@server))
      client.write("a")
      machine.recv_each(peer) do
        client.write("bytes")
        client.setsockopt(:SOCKET, :LINGER, [1, 0].pack("ii"))
        machine.snooze
        client.close
        3.times { machine.submit && machine.snooze }
        break
      end
      got = +""
      error = assert_raises(Errno::ECONNRESET, name) { loop { got << read.call(self, peer, 5) } }
      assert_instance_of Errno::ECONNRESET, error
      assert_includes ["bytes", ""], got, name
    end
  end

  def test_what_is_kept_can_be_waited_for_and_moved
    one, other = pair
    reader, writer = pipe
    machine.send(one, "abcdef")
    machine.recv_each(other) { break }
    machine.send(one, "ghijkl")
    io = machine.io(other, :socket)
    assert_equal "gh", io.read(2)
    machine.timeout(20, TooLate) do
      assert_equal UM::POLLIN, machine.poll(other, UM::POLLIN)
      assert_equal [[other], [one], []], machine.select([other, reader], [one], [])
      assert_equal 3, machine.tee(other, writer, 3)
      assert_equal 2, machine.splice(other, writer, 2)
      assert_equal 2, machine.splice(other, writer, 100)
      machine.read(reader, buffer = +"", 100)
      assert_equal "ijkijkl", buffer
    end
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { machine.poll(other, UM::POLLIN) } }
    machine.send(one, "x")
    machine.shutdown(one, UM::SHUT_WR)
    machine.recv_each(other) { break }
    3.times { machine.submit && machine.snooze }
    assert_equal 0, machine.splice(other, writer, 10)
  end

  # Its bytes are not those of the file that has the number next.
  def test_what_is_kept_is_the_files_and_not_the_numbers
    keep_numbers
    ways = {
      machine: ->(fd) { machine.close(fd) }, async: ->(fd) { machine.close_async(fd) && machine.submit }, elsewhere: ->(fd) { IO.for_fd(fd).close },
      # close(2), of which neither the machine nor Ruby hears.
      unheard: ->(fd) { syscall(RbConfig::CONFIG["host_cpu"] == "aarch64" ? 57 : 3, fd) }
    }
    ways.each do |how, close|
      NEXT.each do |name, read|
        one, other = UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno }
        machine.send(one, "old bytes " * 1000)
        io = machine.io(other, :socket)
        io.read(1)
        machine.recv_each(other) { break }
        # The loop has taken all there was: more is kept.
        machine.send(one, "old bytes " * 1000)
        io.read(1)
        close.call(other)
        third, fourth = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno })
        third, fourth = fourth, third if third == other
        assert_equal other, fourth
        machine.send(third, "x" * 20_000)
        assert_match(/\Ax+\z/, read.call(self, fourth, 20_000), "#{how} #{name}")
        machine.close(one)
      end
    end
  end

  def test_a_close_ends_whatever_reads
    ways = {
      recv: ->(fd) { machine.recv(fd, +"", 10) }, recv_large: ->(fd) { machine.recv(fd, +"", 10_000) }, read: ->(fd) { machine.read(fd, +"", 10) }, recvfrom: ->(fd) { machine.recvfrom(fd, +"", 10) },
      recv_each: ->(fd) { machine.recv_each(fd) {} }, read_each: ->(fd) { machine.read_each(fd) {} }, io: ->(fd) { machine.io(fd).read(1) }, io_socket: ->(fd) { machine.io(fd, :socket).read_line },
      poll: ->(fd) { machine.poll(fd, UM::POLLIN) }, recv_fd: ->(fd) { machine.recv_fd(fd) }
    }
    %i[close close_async].each do |close|
      ways.each do |name, way|
        one, other = pair
        reader = machine.spin { way.call(other) rescue $!.class }
        3.times { machine.submit && machine.snooze }
        machine.public_send(close, other)
        assert_equal Errno::ECANCELED, machine.timeout(20, TooLate) { machine.join(reader) }, "#{close} #{name}"
        # The peer sees it at once, and the number's next file is left alone.
        assert_equal 0, machine.timeout(20, TooLate) { machine.recv(one, +"", 10) }, "#{close} #{name}"
      end
      [->(fd) { machine.accept(fd) }, ->(fd) { machine.accept_each(fd) {} }, ->(fd) { machine.accept_into_queue(fd, UM::Queue.new) }].each do |way|
        server = machine.tcp_listen("127.0.0.1", 0)
        acceptor = machine.spin { way.call(server) rescue $!.class }
        3.times { machine.submit && machine.snooze }
        machine.public_send(close, server)
        assert_equal Errno::ECANCELED, machine.timeout(20, TooLate) { machine.join(acceptor) }, close
      end
    end
  end

  def test_a_close_ends_the_connection_though_a_stream_has_read_from_it
    ways = { line: ->(fd) { machine.io(fd, :socket).tap(&:read_line) }, each: ->(fd) { machine.recv_each(fd) { break } }, kept: ->(fd) { machine.io(fd).tap { |io| io.read(1) } } }
    %i[close close_async].each do |close|
      ways.each do |name, way|
        one, other = pair
        machine.send(one, "one\ntwo\n")
        kept = way.call(other)
        machine.public_send(close, other)
        ended = machine.timeout(20, TooLate) { machine.recv(one, +"", 10) rescue $!.class }
        # A UNIX socket says so if its peer has left bytes unread.
        assert_includes [0, Errno::ECONNRESET], ended, "#{close} #{name}"
        assert_raises(Errno::EBADF) { kept.read(100) } if kept.is_a?(UM::IO)
      end
    end
  end

  def test_two_loops_on_one_descriptor
    one, other = pair
    got = []
    fibers = Array.new(2) { machine.spin { machine.recv_each(other) { |piece| got << piece } } }
    machine.snooze
    machine.sendv(one, "x" * 300_000)
    machine.shutdown(one, UM::SHUT_WR)
    assert_equal [nil, nil], machine.timeout(20, TooLate) { machine.join(*fibers) }
    assert_equal 300_000, got.sum(&:bytesize)
    accepted = []
    fibers = Array.new(3) { machine.spin { machine.accept_each(@server) { |fd| accepted << opened(fd) } } }
    machine.snooze
    5.times { connect }
    eventually { accepted.size == 5 }
    machine.shutdown(@server, UM::SHUT_RD)
    assert_equal [nil] * 3, machine.join(*fibers)
  end

  def test_a_hundred_streams_at_once_share_the_buffers
    pairs = Array.new(100) { pair }
    readers = pairs.map do |_, other|
      machine.spin do
        received = +""
        machine.recv_each(other, 0) { |piece| received << piece }
        received
      end
    end
    machine.snooze
    20.times { |round| pairs.each_with_index { |(one, _), number| machine.send(one, "#{number}.#{round}|" * 100) } }
    pairs.map(&:first).each { |one| machine.shutdown(one, UM::SHUT_WR) }
    machine.join(readers).each_with_index do |received, number|
      assert_equal Array.new(20) { |round| "#{number}.#{round}|" * 100 }.join, received
    end
  end

  def test_older_kernels_paths_bring_the_same
    %w[incremental_buffers read_multishot defer_taskrun,no_sqarray registered_ring].each do |mask|
      output, = ruby(<<~RUBY, env: { "UM_MASK" => mask })
        m = UM.new
        reader, writer = IO.pipe
        m.spin { 200.times { |number| m.write(writer.fileno, number.to_s * 50); m.snooze }; m.close(writer.fileno); writer.autoclose = false }
        received = +""
        m.read_each(reader.fileno) { |piece| received << piece }
        p received == Array.new(200) { |number| number.to_s * 50 }.join
        require "socket"
        one, other = UNIXSocket.pair
        m.spin { 200.times { |number| m.send(one.fileno, number.to_s * 50); m.snooze }; m.shutdown(one.fileno, 1) }
        received = +""
        m.io(other.fileno, :socket) { |io| while (piece = io.read(0)); received << piece; end }
        p received == Array.new(200) { |number| number.to_s * 50 }.join
      RUBY
      assert_equal "true\ntrue\n", output, mask
    end
  end

  def test_without_a_block
    assert_raises(ArgumentError) { machine.read_each(@server) }
    assert_raises(ArgumentError) { machine.recv_each(@server, 0) }
    assert_names("flags", TypeError) { machine.recv_each(@server, "0") {} }
  end

  # An Enumerator's fiber is suspended in the middle of the block.
  def test_streams_as_enumerators
    reader, writer = pipe
    read = Enumerator.new { |bytes| machine.read_each(reader) { |piece| bytes << piece } }
    client, peer = pair
    received = Enumerator.new { |bytes| machine.recv_each(peer, 0) { |piece| bytes << piece } }
    accepted = Enumerator.new { |connections| machine.accept_each(@server) { |fd| connections << opened(fd) } }
    ticks = Enumerator.new { |times| machine.periodically(0.001) { times << :tick } }
    3.times do |round|
      machine.spin do
        machine.sleep(0.001)
        machine.write(writer, "read #{round}")
        machine.send(client, "sent #{round}")
        connect
      end
      assert_equal "read #{round}", read.next
      # Other fibers that the machine did not start wait too.
      machine.sleep(0.001)
      assert_equal "sent #{round}", received.next
      machine.snooze
      assert_kind_of Integer, accepted.next
      assert_equal :tick, ticks.next
      machine.sleep(0.001)
    end
  end
end

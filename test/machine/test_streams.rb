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

  def test_connections_that_the_block_was_not_given_are_closed
    clients = Array.new(5) { connect }
    machine.accept_each(@server) { |fd| opened(fd) && break }
    open = clients.count do |client|
      machine.setsockopt(client, UM::SOL_SOCKET, UM::SO_RCVTIMEO, [0, 1].pack("qq"))
      machine.timeout(0.05, TooLate) { machine.recv(client, +"", 1, 0) }.positive?
    rescue TooLate
      true
    rescue Errno::ECONNRESET
      false
    end
    # Those the machine had accepted are closed; those in the backlog are still to be accepted.
    left = 0
    machine.timeout(0.05, TooLate) { machine.accept_each(@server) { |fd| opened(fd) && left += 1 } } rescue TooLate
    assert_equal open - 1, left
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

# frozen_string_literal: true

require_relative "../test_helper"

# Sockets: made, bound, connected, accepted, sent to and received from.
class TestMachineSockets < MachineTest
  class TooLate < StandardError; end

  def pair(type = UM::SOCK_STREAM)
    opened(UNIXSocket.pair(type).map { |socket| socket.autoclose = false; socket.fileno })
  end

  def listener(host = "127.0.0.1")
    server = opened(machine.tcp_listen(host, 0))
    [server, machine.sockname(server).last]
  end

  def connected(host = "127.0.0.1")
    server, port = listener(host)
    client = opened(machine.tcp_connect(host, port))
    [client, opened(machine.accept(server))]
  end

  def close_on_exec?(fd) = IO.for_fd(fd, autoclose: false).close_on_exec?

  def receive(fd, length = 100)
    buffer = +"".b
    machine.recv(fd, buffer, length, 0)
    buffer
  end

  def test_a_connection_step_by_step
    server = opened(machine.socket(UM::AF_INET, UM::SOCK_STREAM, 0, 0))
    assert_equal 0, machine.bind(server, "127.0.0.1", 0)
    assert_equal 0, machine.listen(server, 5)
    host, port = machine.sockname(server)
    assert_equal "127.0.0.1", host
    client = opened(machine.socket(UM::AF_INET, UM::SOCK_STREAM, 0, 0))
    assert_equal 0, machine.connect(client, "127.0.0.1", port)
    peer = opened(machine.accept(server))
    assert_equal machine.sockname(client), machine.peername(peer)
    assert_equal 5, machine.send(client, "hello", 5, 0)
    assert_equal "hello", receive(peer)
  end

  def test_every_descriptor_is_close_on_exec
    client, peer = connected
    [client, peer, opened(machine.socket(UM::AF_INET, UM::SOCK_DGRAM))].each { |fd| assert close_on_exec?(fd) }
    one, other = pair
    machine.send_fd(one, client)
    assert close_on_exec?(opened(machine.recv_fd(other)))
    server, port = listener
    machine.spin { machine.accept_each(server) { |fd| break assert close_on_exec?(opened(fd)) } }
    opened(machine.tcp_connect("127.0.0.1", port))
    machine.sleep(0.001)
  end

  def test_ipv6_host_names_and_unix_paths
    client, peer = connected("::1")
    assert_equal "::1", machine.sockname(peer).first
    server, port = listener
    by_name = opened(machine.socket(UM::AF_INET, UM::SOCK_STREAM))
    machine.connect(by_name, "localhost", port)
    opened(machine.accept(server), machine.tcp_connect("localhost", port))
    mapped = opened(machine.socket(UM::AF_INET6, UM::SOCK_STREAM))
    machine.connect(mapped, "127.0.0.1", port)
    assert_equal "::ffff:127.0.0.1", machine.peername(mapped).first
    Dir.mktmpdir do |folder|
      [File.join(folder, "socket"), "\0um-#{Process.pid}"].each do |path|
        server = opened(machine.socket(UM::AF_UNIX, UM::SOCK_STREAM))
        machine.bind(server, path)
        machine.listen(server)
        client = opened(machine.socket(UM::AF_UNIX, UM::SOCK_STREAM))
        machine.connect(client, path)
        assert_equal path, machine.peername(client)
        assert_equal path, machine.sockname(opened(machine.accept(server)))
      end
    end
    assert_equal "", machine.sockname(pair.first)
  end

  def test_addresses_that_make_no_sense
    fd = opened(machine.socket(UM::AF_INET, UM::SOCK_STREAM))
    assert_raises(Socket::ResolutionError) { machine.connect(fd, "a.b.c.invalid", 1) }
    assert_raises(Socket::ResolutionError) { machine.tcp_connect("a.b.c.invalid", 1) }
    assert_names("host", ArgumentError) { machine.connect(fd, "::1", 1) }
    assert_names("host", ArgumentError) { machine.connect(fd, "a\0b", 1) }
    assert_names("host", TypeError) { machine.connect(fd, 1234, 1) }
    assert_names("host", TypeError) { machine.tcp_connect(1234, 1) }
    assert_names("port", TypeError) { machine.connect(fd, "127.0.0.1", :http) }
    assert_names("port", TypeError) { machine.connect(fd, "127.0.0.1") }
    assert_names("port", TypeError) { machine.tcp_listen("127.0.0.1", "80") }
    [-1, 65_536, 1 << 40].each { |port| assert_names("port", ArgumentError) { machine.bind(fd, "127.0.0.1", port) } }
    unix = opened(machine.socket(UM::AF_UNIX, UM::SOCK_STREAM))
    assert_names("host", ArgumentError) { machine.connect(unix, "x" * 108) }
    assert_names("host", ArgumentError) { machine.bind(unix, "") }
    assert_raises(Errno::ENOENT) { machine.connect(unix, "/nowhere/at/all") }
  end

  def test_a_refused_connection_leaks_no_descriptor
    server, port = listener
    machine.close(server)
    before = Dir.children("/proc/self/fd").size
    assert_raises(Errno::ECONNREFUSED) { machine.tcp_connect("127.0.0.1", port) }
    assert_raises(Errno::EADDRNOTAVAIL) { machine.tcp_listen("192.0.2.1", 0) }
    assert_equal before, Dir.children("/proc/self/fd").size
  end

  def test_two_listeners_at_one_address
    first = opened(machine.tcp_listen("127.0.0.1", 0, reuse_port: true))
    port = machine.sockname(first).last
    opened(machine.tcp_listen("127.0.0.1", port, reuse_port: true))
    assert_raises(Errno::EADDRINUSE) { machine.tcp_listen("127.0.0.1", port) }
  end

  def test_an_accept_that_has_succeeded_keeps_its_connection_when_it_is_cancelled
    server, port = listener
    fiber = machine.spin do
      connection = machine.accept(server)
      machine.yield
    rescue TooLate
      connection
    end
    machine.snooze
    opened(machine.tcp_connect("127.0.0.1", port))
    machine.submit
    machine.schedule(fiber, TooLate.new)
    assert_kind_of Integer, opened(machine.join(fiber))
  end

  # The accept has ended well, and what is raised in its thread comes first: nobody is given the connection.
  def test_a_connection_that_comes_as_the_thread_is_interrupted_is_closed
    address = "\0um-interrupted-#{Process.pid}"
    server = UNIXServer.new(address)
    accepting = Thread.new do
      Thread.current.report_on_exception = false
      UM.new.accept(server.fileno)
    end
    Thread.pass until accepting.stop?
    # Neither lets the other thread run Ruby in between.
    client = Socket.new(:UNIX, :STREAM)
    client.connect_nonblock(Addrinfo.unix(address))
    accepting.raise(TooLate)
    assert_raises(TooLate) { accepting.value }
    # It may be that it was not accepted: then it is the next one's.
    server.accept_nonblock.close unless client.wait_readable(0.1)
    assert_nil client.recv(1)
  ensure
    [server, client].each(&:close)
  end

  def test_a_cancelled_accept_leaves_the_connection_to_the_next_and_leaks_nothing
    server, port = listener
    20.times do
      assert_raises(TooLate) { machine.timeout(0.001, TooLate) { machine.accept(server) } }
      client = machine.tcp_connect("127.0.0.1", port)
      before = Dir.children("/proc/self/fd").size
      connection = machine.accept(server)
      machine.close(connection)
      machine.close(client)
      assert_operator Dir.children("/proc/self/fd").size, :<, before + 1
    end
  end

  def test_send_and_recv_of_strings_and_buffers
    one, other = pair
    assert_equal 3, machine.send(one, "foobar", 3, 0)
    assert_equal 6, machine.send(one, "foobar")
    memory = IO::Buffer.for("in a buffer")
    assert_equal 11, machine.send(one, memory, -1, 0)
    assert_equal "foofoobarin a buffer", receive(other)
    machine.send(one, "into a buffer")
    memory = IO::Buffer.new(4)
    assert_equal 4, machine.recv(other, memory, 4, 0)
    assert_equal "into", memory.get_string
    machine.shutdown(one, UM::SHUT_WR)
    assert_equal " a buffer", receive(other)
    assert_equal "", receive(other)
  end

  def test_a_send_that_waits_for_all_sends_all
    one, other = pair
    bytes = Random.bytes(2_000_000)
    sender = machine.spin { machine.send(one, bytes, bytes.bytesize, UM::MSG_WAITALL) }
    received = +"".b
    received << receive(other, 100_000) while received.bytesize < bytes.bytesize
    assert_equal bytes.bytesize, machine.join(sender)
    assert_equal bytes, received
  end

  def test_sendv_sends_everything
    one, other = pair
    pieces = [Random.bytes(10), Random.bytes(500_000), "", Random.bytes(100_000)]
    sender = machine.spin { machine.sendv(one, *pieces) }
    received = +"".b
    received << receive(other, 70_000) while received.bytesize < pieces.sum(&:bytesize)
    assert_equal pieces.sum(&:bytesize), machine.join(sender)
    assert_equal pieces.join.b, received
    assert_equal 0, machine.sendv(one)
  end

  def test_sendv_costs_no_memory_per_call
    one, other = pair
    pieces = Array.new(64, "x" * 16)
    buffer = +""
    round = lambda do |_|
      machine.sendv(one, *pieces)
      machine.recv(other, buffer, 2000, 0)
    end
    200.times(&round)
    GC.start
    before = rss
    20_000.times(&round)
    GC.start
    assert_operator rss - before, :<, 4_000
  end

  def test_zero_copy_send_brings_every_byte_over_tcp_and_falls_back_on_unix
    [connected, pair].each do |one, other|
      bytes = Random.bytes(1_000_000).freeze
      sender = machine.spin { machine.send_zc(one, bytes, UM::MSG_WAITALL) }
      received = +"".b
      received << receive(other, 100_000) while received.bytesize < bytes.bytesize
      assert_equal bytes.bytesize, machine.join(sender)
      assert_equal bytes, received
    end
    assert_names("string", ArgumentError) { machine.send_zc(pair.first, +"not frozen") }
    assert_names("string", TypeError) { machine.send_zc(pair.first, 1) }
  end

  def test_a_peer_that_is_gone_is_an_error_and_no_signal
    one, other = pair
    machine.close(other)
    assert_raises(Errno::EPIPE) { machine.send(one, "x") }
    assert_raises(Errno::EPIPE) { machine.sendv(one, "x") }
    assert_raises(Errno::EPIPE) { machine.send_zc(one, "x") }
  end

  # A connection whose peer reads when it is told to.
  def slow_pair
    server = opened(machine.tcp_listen("127.0.0.1", 0))
    client = opened(machine.tcp_connect("127.0.0.1", machine.sockname(server).last))
    [client, opened(machine.accept(server))]
  end

  class TooLate < StandardError; end

  def test_a_time_limit_ends_a_send_without_a_copy_and_its_bytes_stay
    { timeout: ->(client, bytes) { machine.timeout(0.02, TooLate) { machine.send_zc(client, bytes, UM::MSG_WAITALL) } rescue :late },
      kill: lambda { |client, bytes|
        sent = nil
        fiber = machine.spin { sent = machine.send_zc(client, bytes, UM::MSG_WAITALL) }
        3.times { machine.submit && machine.snooze }
        fiber.kill
        machine.await([fiber])
        sent || :late
      } }.each do |how, send|
      client, peer = slow_pair
      letter = "A".ord + Random.rand(26)
      sent = machine.spin { send.call(client, (letter.chr * (16 << 20)).freeze) }
      machine.timeout(20, TooLate) { machine.join(sent) }
      # Nobody but the machine has it any more.
      3.times { GC.start && Array.new(5) { "z" * (16 << 20) } }
      machine.shutdown(client, UM::SHUT_WR)
      count = 0
      machine.timeout(20, TooLate) { machine.recv_each(peer) { |piece| (count += piece.bytesize) && assert_equal(piece.bytesize, piece.count(letter.chr), how) } }
      assert_operator count, :>, 0
      eventually { machine.metrics[:ops_pending].zero? }
    end
  end

  def test_a_registered_buffer_is_in_use_until_the_network_has_let_go_of_it
    client, peer = slow_pair
    pool = machine.register_buffers(count: 1, size: 16 << 20)
    buffer = pool.acquire
    buffer.set_string("x" * (16 << 20))
    (machine.timeout(0.02, TooLate) { machine.send(client, buffer, nil, UM::MSG_WAITALL) } rescue nil)
    # Unless it was copied.
    unless ENV["UM_MASK"].to_s.include?("send_zc") || UM.kernel_version < 600
      assert_raises(UM::Error) { pool.release(buffer) }
      assert_raises(IO::Buffer::LockedError) { buffer.free }
    end
    machine.shutdown(client, UM::SHUT_WR)
    machine.timeout(20, TooLate) { machine.recv_each(peer) {} }
    eventually { machine.metrics[:ops_pending].zero? }
    machine.submit
    pool.release(buffer)
    pool.close
  end

  # The kernel is known to be done with it by what was reaped last: nobody needs to look twice.
  def test_a_registered_buffer_can_be_released_as_soon_as_the_network_has_let_go_of_it
    client, peer = slow_pair
    pool = machine.register_buffers(count: 1, size: 1 << 20)
    buffer = pool.acquire
    (machine.timeout(0.02, TooLate) { machine.send(client, buffer, nil, UM::MSG_WAITALL) } rescue nil)
    machine.shutdown(client, UM::SHUT_WR)
    Thread.new { IO.for_fd(peer, autoclose: false).read }.join
    released = 200.times.any? do
      machine.submit
      pool.release(buffer)
    rescue UM::Error
      Thread.new { sleep 0.01 }.join && nil
    end
    assert released
    pool.close
  end

  def test_a_time_limit_that_has_ended_a_part_is_over_with_its_block
    client, peer = slow_pair
    { send: ->(bytes) { machine.send(client, bytes, nil, UM::MSG_WAITALL) }, send_zc: ->(bytes) { machine.send_zc(client, bytes.freeze, UM::MSG_WAITALL) } }.each do |name, send|
      sent = machine.timeout(0.01, TooLate) { send.call("x" * (16 << 20)) } rescue :late
      machine.snooze
      machine.sleep(0.0001)
      assert_operator sent, :<, 16 << 20, name unless sent == :late
    end
    machine.shutdown(client, UM::SHUT_WR)
    machine.timeout(20, TooLate) { machine.recv_each(peer) {} }
  end

  def test_a_child_of_fork_and_the_end_of_a_scheduler_while_the_network_has_a_string
    output, status = ruby(<<~RUBY)
      require "socket"
      server = TCPServer.new("127.0.0.1", 0)
      start = nil
      peers = []
      Thread.new do
        Fiber.set_scheduler(scheduler = UM::FiberScheduler.new)
        machine = scheduler.machine
        Fiber.schedule do
          fd = machine.tcp_connect("127.0.0.1", server.local_address.ip_port)
          peers << server.accept
          bytes = ("y" * (16 << 20)).freeze
          machine.timeout(0.01, RuntimeError) { machine.send_zc(fd, bytes, UM::MSG_WAITALL) } rescue nil
          bytes = nil
          Process.wait(fork { GC.start; UM.new.sleep(0.001); exit!(0) })
          puts $?.success?
          start = Process.clock_gettime(Process::CLOCK_MONOTONIC)
          machine.close(fd)
        end
      end.join
      puts Process.clock_gettime(Process::CLOCK_MONOTONIC) - start < 3
      GC.start
      junk = Array.new(5) { "z" * (16 << 20) }
      count = 0
      while (piece = (peers[0].readpartial(65_536) rescue nil))
        count += piece.size
        puts "changed" unless piece.count("y") == piece.size
      end
      puts count.positive?
    RUBY
    assert_equal ["true\ntrue\ntrue\n", true], [output, status.success?]
  end

  def test_datagrams_with_addresses
    [["127.0.0.1", UM::AF_INET], ["::1", UM::AF_INET6]].each do |host, family|
      one, other = Array.new(2) { opened(machine.socket(family, UM::SOCK_DGRAM)).tap { |fd| machine.bind(fd, host, 0) } }
      assert_equal 4, machine.sendto(one, "ping", nil, 0, *machine.sockname(other))
      buffer = +""
      assert_equal [4, machine.sockname(one)], machine.recvfrom(other, buffer, 100)
      assert_equal "ping", buffer
      memory = IO::Buffer.new(10)
      machine.sendto(one, IO::Buffer.for("pong"), -1, 0, *machine.sockname(other))
      assert_equal 4, machine.recvfrom(other, memory, nil, 0).first
    end
    one, other = pair(:DGRAM)
    machine.send(one, "x")
    assert_equal([1, nil], machine.recvfrom(other, +"", 10).tap { |answer| answer[1] = nil if answer[1] == "" })
  end

  def test_descriptors_through_a_unix_socket
    one, other = pair
    reader, writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
    assert_equal writer, machine.send_fd(one, writer)
    received = opened(machine.recv_fd(other))
    refute_equal writer, received
    machine.write(received, "through")
    buffer = +""
    machine.read(reader, buffer, 100)
    assert_equal "through", buffer
    machine.send(one, "a message")
    assert_raises(Errno::EINVAL) { machine.recv_fd(other) }
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { machine.recv_fd(one) } }
    machine.close(one)
    receive(other)
    assert_raises(EOFError) { machine.recv_fd(other) }
    assert_raises(Errno::EBADF) { machine.send_fd(other, 9999) }
    assert_raises(Errno::ENOTSOCK) { machine.recv_fd(reader) }
    assert_names("fd", TypeError) { machine.send_fd(other, nil) }
  end

  def test_a_descriptor_that_comes_as_the_thread_is_interrupted_is_closed
    reader, writer = IO.pipe
    one, other = UNIXSocket.pair
    receiving = Thread.new do
      Thread.current.report_on_exception = false
      UM.new.recv_fd(other.fileno)
    end
    Thread.pass until receiving.stop?
    # Neither lets the other thread run Ruby in between.
    machine.send_fd(one.fileno, writer.fileno)
    receiving.raise(TooLate)
    received = receiving.value rescue $!.class
    assert_equal TooLate, received
    [writer, one, other].each(&:close)
    assert reader.wait_readable(20), "it is open"
    assert_nil reader.read_nonblock(1, exception: false)
  end

  def test_a_descriptor_that_comes_along_with_another_is_not_left_open
    one, other = UNIXSocket.pair
    one.sendmsg("x", 0, nil, Socket::AncillaryData.unix_rights($stdin, $stderr))
    before = settled_descriptors
    machine.close(machine.recv_fd(other.fileno))
    assert_operator open_descriptors, :<=, before
  ensure
    [one, other].each(&:close)
  end

  def test_the_first_descriptor_can_be_sent_too
    output, = ruby(<<~RUBY)
      require "socket"
      m = UM.new
      one, other = UNIXSocket.pair
      m.send_fd(one.fileno, 0)
      p m.recv_fd(other.fileno) > 0
    RUBY
    assert_equal "true\n", output
  end

  def test_options
    fd = opened(machine.socket(UM::AF_INET, UM::SOCK_STREAM))
    assert_equal 0, machine.getsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR)
    assert_equal 0, machine.setsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR, true)
    assert_equal 1, machine.getsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR)
    machine.setsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR, false)
    assert_equal 0, machine.getsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR)
    machine.setsockopt(fd, UM::IPPROTO_TCP, UM::TCP_KEEPIDLE, 77)
    assert_equal 77, machine.getsockopt(fd, UM::IPPROTO_TCP, UM::TCP_KEEPIDLE)
    machine.setsockopt(fd, UM::SOL_SOCKET, UM::SO_LINGER, [1, 5].pack("ii"))
    assert_names("value", TypeError) { machine.setsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR, nil) }
    assert_raises(Errno::ENOPROTOOPT) { machine.getsockopt(fd, UM::SOL_SOCKET, 9999) }
  end

  def test_shutdown
    one, other = pair
    assert_equal 0, machine.shutdown(one, UM::SHUT_WR)
    assert_equal "", receive(other)
    assert_raises(Errno::EINVAL) { machine.shutdown(one, -9999) }
    assert_equal other, machine.shutdown_async(other, UM::SHUT_RDWR)
    assert_equal "", receive(one)
  end

  def test_a_cancelled_receive_leaves_the_bytes
    one, other = pair
    buffer = +"untouched"
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { machine.recv(other, buffer, 10_000, 0) } }
    machine.send(one, "late")
    assert_equal "untouched", buffer
    assert_equal "late", receive(other)
  end

  # Each takes a descriptor first; what else it takes is good.
  CALLS = {
    bind: ["127.0.0.1", 0], listen: [1], connect: ["127.0.0.1", 1], accept: [], recv: [String.new, 1, 0], recvfrom: [String.new, 1], send: ["x", 1, 0],
    send_zc: ["x"], sendv: ["x"], sendto: ["x", 1, 0, "127.0.0.1", 1], shutdown: [0], getsockopt: [1, 2], setsockopt: [1, 2, 1], sockname: [], peername: [],
    send_fd: [0], recv_fd: [], accept_each: [], recv_each: [0], read_each: []
  }.freeze

  def test_bad_descriptors_everywhere
    name = { send_fd: "sockfd", recv_fd: "sockfd" }
    CALLS.each do |method, arguments|
      call = ->(fd) { machine.public_send(method, fd, *arguments) {} }
      [9999, -1].each { |fd| assert_raises(Errno::EBADF, method) { call.call(fd) } }
      [nil, "1", 1.5, :fd].each { |fd| assert_names(name.fetch(method, "fd"), TypeError) { call.call(fd) } }
      [1 << 31, -(1 << 40), 1 << 70].each { |fd| assert_names(name.fetch(method, "fd"), ArgumentError) { call.call(fd) } }
      assert_raises(ArgumentError, method) { machine.public_send(method) {} }
    end
    %i[close_async shutdown_async].each { |method| assert_names("fd", TypeError) { machine.public_send(method, "1", *([0] if method == :shutdown_async)) } }
  end

  def test_other_arguments_of_the_wrong_type_or_range
    fd, = pair
    assert_names("domain", TypeError) { machine.socket("inet", 1) }
    assert_names("type", TypeError) { machine.socket(1, nil) }
    assert_names("protocol", TypeError) { machine.socket(1, 1, "tcp") }
    assert_names("domain", ArgumentError) { machine.socket(1 << 40, 1) }
    assert_raises(Errno::EAFNOSUPPORT) { machine.socket(9999, 1) }
    assert_names("backlog", TypeError) { machine.listen(fd, "5") }
    assert_names("how", TypeError) { machine.shutdown(fd, "wr") }
    assert_names("flags", TypeError) { machine.send(fd, "x", 1, "0") }
    assert_names("flags", ArgumentError) { machine.recv(fd, +"", 1, 1 << 40) }
    assert_names("maxlen", ArgumentError) { machine.recv(fd, +"", -1, 0) }
    assert_names("len", ArgumentError) { machine.send(fd, "x", -2, 0) }
    assert_names("len", TypeError) { machine.sendto(fd, "x", "1", 0, "h", 1) }
    assert_names("buffer", UM::Error) { machine.send(fd, [], 1, 0) }
    assert_names("buffer", UM::Error) { machine.sendv(fd, "x", []) }
    assert_names("buffer", UM::Error) { machine.recv(fd, :foo, 1, 0) }
    assert_names("level", TypeError) { machine.getsockopt(fd, nil, 1) }
    assert_names("option", ArgumentError) { machine.getsockopt(fd, 1, 1 << 40) }
    assert_raises(Errno::ENOTSOCK) { machine.accept(opened(IO.sysopen("/dev/null"))) }
  end
end

# frozen_string_literal: true

require_relative "../test_helper"
require "tmpdir"

# Sockets that keep messages apart: each is sent and received once, whole, in order.
class TestMachineMessages < MachineTest
  class TooLate < StandardError; end

  KINDS = { dgram: -> { UNIXSocket.pair(:DGRAM) }, seqpacket: -> { UNIXSocket.pair(:SEQPACKET) }, udp: lambda {
    one, other = UDPSocket.new, UDPSocket.new
    [one, other].each { |socket| socket.bind("127.0.0.1", 0) }
    one.connect("127.0.0.1", other.local_address.ip_port)
    other.connect("127.0.0.1", one.local_address.ip_port)
    [one, other]
  } }.freeze

  # What reads one message: its bytes, or the error.
  READS = {
    read: ->(machine, fd, length) { (+"").tap { |buffer| machine.read(fd, buffer, length) } },
    read_into_a_buffer: ->(machine, fd, length) { IO::Buffer.new(length).then { |buffer| buffer.get_string(0, machine.read(fd, buffer, length)) } },
    recv: ->(machine, fd, length) { (+"").tap { |buffer| machine.recv(fd, buffer, length) } },
    recv_into_registered: ->(machine, fd, length) { machine.register_buffers(count: 1, size: 4096).acquire { |buffer| buffer.get_string(0, machine.recv(fd, buffer, length)) } },
    recvfrom: ->(machine, fd, length) { (+"").tap { |buffer| machine.recvfrom(fd, buffer, length) } }
  }.freeze

  # What sends all of a message at once.
  SENDS = {
    write: ->(machine, fd, bytes) { machine.write(fd, bytes) },
    write_buffer: ->(machine, fd, bytes) { IO::Buffer.for(bytes.dup) { |buffer| machine.write(fd, buffer) } },
    writev: ->(machine, fd, bytes) { machine.writev(fd, bytes[0, 1], bytes[1..] || "") },
    send: ->(machine, fd, bytes) { machine.send(fd, bytes) },
    send_all: ->(machine, fd, bytes) { machine.send(fd, bytes, nil, UM::MSG_WAITALL) },
    send_zc: ->(machine, fd, bytes) { machine.send_zc(fd, bytes.dup.freeze) },
    sendv: ->(machine, fd, bytes) { machine.sendv(fd, bytes[0, 1], bytes[1..] || "") },
    io: ->(machine, fd, bytes) { machine.io(fd, :socket).write(bytes[0, 1], bytes[1..] || "") },
    io_of_descriptor: ->(machine, fd, bytes) { machine.io(fd, :fd).write(bytes) },
    write_async: ->(machine, fd, bytes) { machine.write_async(fd, bytes) }
  }.freeze

  def pair(kind)
    sockets = KINDS.fetch(kind).call
    (@sockets ||= []).concat(sockets)
    sockets
  end

  def teardown
    @sockets&.each(&:close)
    super
  end

  # The receiver is not connected, so its queue holds few.
  def bound_pair
    Dir.mktmpdir do |folder|
      one, other = Array.new(2) { Socket.new(:UNIX, :DGRAM) }
      other.bind(Addrinfo.unix("#{folder}/socket"))
      one.connect(Addrinfo.unix("#{folder}/socket"))
      (@sockets ||= []).push(one, other)
      [one, other]
    end
  end

  def each_kind = KINDS.each_key { |kind| yield(kind, *pair(kind)) }

  def test_an_empty_message_is_a_message
    SENDS.each do |name, send|
      each_kind do |kind, one, other|
        ["first", "", "last"].each { |message| send.call(machine, one.fileno, message) }
        machine.submit
        got = Array.new(3) { other.wait_readable(10) && other.recv(100) }
        # Ruby answers nil for what is empty, in 3.4 only at the end of a stream.
        assert_equal ["first", "", "last"], got.map(&:to_s), "#{name} #{kind}"
      end
    end
  end

  def test_no_reader_takes_an_empty_message_for_the_end
    each_kind do |kind, one, other|
      %i[recv_each read_each].each do |each|
        ["first", "", "", "last"].each { |message| one.send(message, 0) }
        got = []
        machine.timeout(20, TooLate) { machine.public_send(each, other.fileno) { |message| (got << message).last == "last" && break } }
        assert_equal ["first", "", "", "last"], got, "#{each} #{kind}"
      end
      %i[fd socket].each do |mode|
        ["first", "", "last"].each { |message| one.send(message, 0) }
        io = machine.io(other.fileno, mode)
        assert_equal %w[first last], [io.read(0), io.read(0)], "#{mode} #{kind}"
        assert_equal false, io.eof?
      end
    end
  end

  def test_the_end_of_a_connection_of_messages
    one, other = pair(:seqpacket)
    ["first", "", "last"].each { |message| one.send(message, 0) }
    one.close
    got = []
    assert_nil(machine.recv_each(other.fileno) { |message| got << message })
    assert_equal ["first", "", "last"], got
    assert_nil(machine.read_each(other.fileno) { flunk })
    assert_nil machine.io(other.fileno, :socket).read(0)
  end

  def test_a_message_longer_than_the_room_is_an_error
    each_kind do |kind, one, other|
      READS.each do |name, read|
        one.send("x" * 11, 0)
        assert_raises(Errno::EMSGSIZE, "#{name} #{kind}") { read.call(machine, other.fileno, 10) }
        one.send("y" * 10, 0)
        assert_equal "y" * 10, read.call(machine, other.fileno, 10), "#{name} #{kind}"
      end
    end
  end

  def test_a_long_message_is_whole_or_an_error
    one, other = pair(:dgram)
    one.setsockopt(:SOCKET, :SNDBUF, 1 << 20)
    long = Random.bytes(150_000)
    2.times do
      machine.spin { machine.send(one.fileno, long) }
      assert_equal(long, machine.recv_each(other.fileno) { |message| break message })
      machine.spin { machine.send(one.fileno, long) }
      assert_equal(long, machine.read_each(other.fileno) { |message| break message })
    end
    %i[fd socket].each do |mode|
      one.send(long, 0)
      one.send("next", 0)
      io = machine.io(other.fileno, mode)
      assert_raises(Errno::EMSGSIZE) { io.read(0) }
      assert_equal "next", io.read(0)
    end
  end

  def test_a_peek_may_be_short
    each_kind do |kind, one, other|
      one.send("message", 0)
      %i[recv recvfrom].each do |name|
        machine.public_send(name, other.fileno, buffer = +"", 3, UM::MSG_PEEK)
        assert_equal "mes", buffer, "#{name} #{kind}"
      end
      machine.recv(other.fileno, buffer = +"", 10)
      assert_equal "message", buffer
    end
  end

  # The number is the kernel's; the bytes are those that came.
  def test_the_length_of_a_message_that_is_cut_off_on_demand
    each_kind do |kind, one, other|
      [[10, :recv], [5000, :recv], [10, :recvfrom], [5000, :recvfrom]].each do |length, name|
        one.send("d" * 20_000, 0)
        count, = machine.public_send(name, other.fileno, buffer = +"", length, UM::MSG_TRUNC)
        assert_equal [20_000, "d" * length], [count, buffer], "#{name} #{kind}"
        one.send("d" * 20_000, 0)
        room = IO::Buffer.new(length)
        count, = machine.public_send(name, other.fileno, room, length, UM::MSG_TRUNC)
        assert_equal [20_000, "d" * length, length], [count, room.get_string, room.size], "#{name} #{kind}"
        one.send("d" * 20_000, 0)
        machine.register_buffers(count: 1, size: 4096).acquire { |registered| assert_equal 20_000, machine.recv(other.fileno, registered, nil, UM::MSG_TRUNC) }
      end
      one.send("d" * 20_000, 0)
      assert_equal("d" * 20_000, machine.recv_each(other.fileno, UM::MSG_TRUNC) { |message| break message })
    end
  end

  # Of a TCP connection the bytes are thrown away (tcp(7)).
  def test_bytes_that_are_thrown_away_on_demand
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.local_address.ip_port)
    peer = server.accept
    (@sockets ||= []).push(server, client, peer)
    %i[recv recvfrom].each do |name|
      [10, 5000].each do |length|
        client.write("secret")
        machine.poll(peer.fileno, UM::POLLIN)
        count, = machine.public_send(name, peer.fileno, buffer = +"", length, UM::MSG_TRUNC)
        assert_equal [6, ""], [count, buffer], name
      end
    end
    client.write("secret")
    assert_equal("", machine.recv_each(peer.fileno, UM::MSG_TRUNC) { |bytes| break bytes })
    client.write("kept")
    machine.recv(peer.fileno, buffer = +"", 10)
    assert_equal "kept", buffer
    one, other = UNIXSocket.pair
    @sockets.push(one, other)
    one.write("kept")
    machine.recv(other.fileno, buffer, 10, UM::MSG_TRUNC)
    assert_equal "kept", buffer
  end

  def test_messages_wait_for_room_and_come_once_and_whole_and_in_order
    count = 300
    SENDS.each do |name, send|
      [pair(:seqpacket), pair(:dgram), bound_pair].each_with_index do |(one, other), kind|
        sender = machine.spin { count.times { |number| send.call(machine, one.fileno, "<#{number}>") } }
        eventually { one.wait_writable(0).nil? }
        got = []
        eventually do
          # The sender goes on until it waits.
          3.times { machine.submit && machine.snooze }
          message = other.recv_nonblock(100, exception: false)
          message == :wait_readable ? sender.done? && machine.metrics[:ops_pending].zero? : !(got << message)
        end
        assert_equal Array.new(count) { |number| "<#{number}>" }, got, "#{name} #{kind}"
      end
    end
  end

  def test_messages_to_an_address_wait_for_room
    Dir.mktmpdir do |folder|
      full, free = %w[full free].map { |name| Socket.new(:UNIX, :DGRAM).tap { |socket| socket.bind(Addrinfo.unix("#{folder}/#{name}")) } }
      (@sockets ||= []).push(full, free)
      fd = opened(machine.socket(UM::AF_UNIX, UM::SOCK_DGRAM))
      sender = machine.spin { 700.times { |number| machine.sendto(fd, "<#{number}>", nil, 0, "#{folder}/full") } }
      machine.snooze
      # Whom the one is full for, the other is not.
      machine.timeout(20, TooLate) { 5.times { |number| machine.sendto(fd, "free #{number}", nil, 0, "#{folder}/free") } }
      assert_equal(Array.new(5) { |number| "free #{number}" }, Array.new(5) { free.recv(100) })
      got = []
      machine.timeout(20, TooLate) { machine.recv_each(full.fileno) { |message| (got << message).size == 700 && break } }
      machine.join(sender)
      assert_equal Array.new(700) { |number| "<#{number}>" }, got
    end
  end

  def test_a_message_that_nobody_takes_can_be_given_up
    SENDS.except(:write_async).each do |name, send|
      one, other = pair(:dgram)
      nil until one.write_nonblock("full", exception: false) == :wait_writable
      assert_raises(TooLate, name) { machine.timeout(0.005, TooLate) { send.call(machine, one.fileno, "given up") } }
      got = []
      got << other.recv(100) while other.wait_readable(0)
      assert_equal ["full"], got.uniq, name
      send.call(machine, one.fileno, "taken")
      assert_equal "taken", other.recv(100), name
    end
  end

  def test_descriptors_in_messages
    %i[dgram seqpacket].each do |kind|
      one, other = pair(kind)
      reader, writer = opened(UM.pipe)
      nil until one.write_nonblock("full", exception: false) == :wait_writable
      sender = machine.spin { machine.send_fd(one.fileno, writer) }
      3.times { machine.submit && machine.snooze }
      buffer = +""
      machine.recv(other.fileno, buffer, 10) while other.recv(10, Socket::MSG_PEEK) == "full"
      received = opened(machine.recv_fd(other.fileno))
      machine.join(sender)
      machine.write(received, "through")
      machine.read(reader, buffer, 10)
      assert_equal "through", buffer, kind
      GC.start
      before = settled_descriptors
      one.sendmsg("longer", 0, nil, Socket::AncillaryData.unix_rights(IO.for_fd(writer, autoclose: false)))
      assert_raises(Errno::EMSGSIZE) { machine.recv_fd(other.fileno) }
      assert_operator open_descriptors, :<=, before
      one.send("", 0)
      assert_raises(Errno::EINVAL) { machine.recv_fd(other.fileno) }
    end
  end

  def test_what_no_message_holds_is_an_error_and_sends_nothing
    one, other = pair(:udp)
    SENDS.except(:write_async).each do |name, send|
      assert_raises(Errno::EMSGSIZE, name) { send.call(machine, one.fileno, "x" * 70_000) }
    end
    assert_raises(Errno::EMSGSIZE) { machine.sendv(one.fileno, *["x"] * 1025) }
    assert_equal :wait_readable, other.recv_nonblock(10, exception: false)
    assert_equal 1024, machine.sendv(one.fileno, *["x"] * 1024)
    assert_equal 1024, other.recv(2000).size
  end

  # Closed without the machine's hearing of it.
  def test_a_number_that_was_a_socket_of_messages_and_is_a_file_now
    keep_numbers
    one, other = pair(:dgram)
    fd = other.fileno
    one.send("message", 0)
    assert_equal 7, machine.read(fd, +"", 10)
    other.close
    file = opened(IO.sysopen(__FILE__))
    assert_equal fd, file
    assert_equal 10, machine.read(file, buffer = +"", 10)
    assert_equal File.binread(__FILE__, 10), buffer
    assert_equal 10, machine.read(file, buffer, 10)
  end
end

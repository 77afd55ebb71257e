# frozen_string_literal: true

require_relative "../test_helper"
require_relative "../identity"

# What has moved counts, whatever ends the machine's own writes: the count is their answer, and what the fiber is to raise
# comes at its next wait.
class TestMachineProgress < MachineTest
  class Stop < StandardError; end

  LARGE = 8_000_000

  def teardown
    @sockets&.each(&:close)
    super
  end

  def sockets = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno })

  def pipe = opened(UM.pipe)

  # An SSLSocket at the writing end, on the ring.
  def tls
    one, other = @sockets = UNIXSocket.pair
    context = OpenSSL::SSL::SSLContext.new.tap { |made| made.add_certificate(Identity.certificate, Identity.key) }
    server = OpenSSL::SSL::SSLSocket.new(other, context)
    client = OpenSSL::SSL::SSLSocket.new(one)
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = machine.spin { server.accept }
    client.connect
    machine.join(accepted)
    [server, client]
  end

  def self.halves(bytes) = [bytes[0, bytes.size / 2], bytes[(bytes.size / 2)..]]

  # Each is given the machine, where to write to, and the bytes.
  WAYS = {
    writev: [:pipe, ->(machine, fd, bytes) { machine.writev(fd, *halves(bytes)) }],
    writev_to_a_socket: [:sockets, ->(machine, fd, bytes) { machine.writev(fd, *halves(bytes)) }],
    sendv: [:sockets, ->(machine, fd, bytes) { machine.sendv(fd, *halves(bytes)) }],
    send_all: [:sockets, ->(machine, fd, bytes) { machine.send(fd, bytes, nil, UM::MSG_WAITALL) }],
    io: [:pipe, ->(machine, fd, bytes) { machine.io(fd, :fd).write(*halves(bytes)) }],
    io_socket: [:sockets, ->(machine, fd, bytes) { machine.io(fd, :socket).write(*halves(bytes)) }],
    ssl_write: [:tls, ->(machine, ssl, bytes) { machine.ssl_write(ssl, bytes) }],
    syswrite: [:tls, ->(_, ssl, bytes) { ssl.syswrite(bytes) }],
    io_ssl: [:tls, ->(machine, ssl, bytes) { machine.io(ssl).write(*halves(bytes)) }]
  }.freeze

  # What the other end has got when the machine has no more of it.
  def receive(from)
    received = +""
    machine.timeout(20, Stop) do
      if from.is_a?(Integer)
        machine.read_each(from) { |piece| received << piece }
      else
        received << from.readpartial(65_536) until received.end_with?("END")
      end
    end
    received
  end

  def finish(way, to, from)
    receiver = machine.spin { receive(from) }
    assert_equal 3, way.call(machine, to, "END")
    machine.close(to) if to.is_a?(Integer)
    machine.join(receiver)
  end

  WAYS.each do |name, (kind, way)|
    bytes = "0123456789abcdef" * (LARGE / 16)

    define_method(:"test_a_#{name}_that_is_cut_off_says_how_much_went") do
      from, to = public_send(kind)
      count = nil
      assert_raises(Stop) do
        machine.timeout(0.01, Stop) do
          count = way.call(machine, to, bytes)
          # The next wait.
          machine.sleep(10)
        end
      end

      assert_includes 1...LARGE, count
      assert finish(way, to, from) == "#{bytes[0, count]}END", "other bytes than were counted"
    end

    # Also where nothing of it moves the next time.
    define_method(:"test_a_#{name}_that_has_nothing_to_count_raises") do
      from, to = public_send(kind)
      counts = Array.new(3) do
        machine.timeout(0.01, Stop) { way.call(machine, to, bytes) }
      rescue Stop
        :late
      end

      assert_includes counts, :late
      sent = counts.grep(Integer)
      received = finish(way, to, from)
      assert_equal sent.sum + 3, received.bytesize
    end
  end

  WAYS.select { |_, (kind, _)| kind != :tls }.each do |name, (kind, way)|
    define_method(:"test_a_#{name}_whose_reader_goes_says_how_much_went_and_raises_the_next_time") do
      from, to = public_send(kind)
      count = nil
      writer = machine.spin { count = way.call(machine, to, "x" * LARGE) }
      machine.snooze
      machine.read(from, +"", 1000)
      machine.close(from)
      machine.join(writer)

      assert_includes 1...LARGE, count
      assert_raises(Errno::EPIPE, Errno::ECONNRESET) { way.call(machine, to, "x") }
    end

    # The IOError of a close is raised by the operation on it, or nowhere.
    define_method(:"test_a_#{name}_whose_descriptor_is_closed_says_how_much_went") do
      _, to = public_send(kind)
      log = []
      Thread.new do
        machine = UM.new
        io = IO.for_fd(to)
        writer = machine.spin do
          log << way.call(machine, to, "x" * LARGE)
          log << machine.snooze
        rescue IOError, SystemCallError => e
          log << e.class
        end
        machine.snooze
        io.close
        machine.join(writer)
      end.join
      @opened.delete(to)

      assert_includes 1...LARGE, log.first
      assert_equal [nil], log.drop(1)
    end
  end

  def test_what_is_to_be_whole_raises
    _, to = pipe

    assert_raises(Stop) { machine.timeout(0.01, Stop) { machine.io(to).resp_write("x" * LARGE) } }
  end
end

# frozen_string_literal: true

require_relative "../test_helper"

# Connecting by name stalls nobody: the race of TCPSocket.new.
class TestTCPSocket < SchedulerTest
  def test_tcp_sockets_connect_by_name_to_a_server_in_the_same_thread
    server = TCPServer.new("localhost", 0)
    reply = nil
    scheduled do
      Fiber.schedule do
        peer = server.accept
        peer.puts "hello #{peer.gets}"
        peer.close
      end
      Fiber.schedule do
        socket = TCPSocket.new("localhost", server.addr[1])
        socket.puts "there"
        reply = socket.read
      end
    end
    assert_equal "hello there\n", reply
  end

  def test_sockets_connect_by_name_in_every_other_way
    server = TCPServer.new("localhost", 0)
    port = server.addr[1]
    scheduled do
      Fiber.schedule { 3.times { server.accept.close } }
      Fiber.schedule do
        assert_empty TCPSocket.open("localhost", port, &:read)
        assert_empty Socket.tcp("localhost", port, &:read)
        assert_empty Addrinfo.tcp("localhost", port).connect(&:read)
      end
    end
  end

  def test_net_http_speaks_to_a_server_in_another_fiber
    require "net/http"
    server = TCPServer.new("localhost", 0)
    body = nil
    scheduled do
      Fiber.schedule do
        peer = server.accept
        peer.gets("\r\n\r\n")
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        peer.close
      end
      Fiber.schedule { body = Net::HTTP.get(URI("http://localhost:#{server.addr[1]}/")) }
    end
    assert_equal "ok", body
  end

  # Every host has the addresses that it is made with.
  class Hosts < UM::FiberScheduler
    attr_accessor :addresses

    def address_resolve(_) = addresses
  end

  # Runs the block in a fiber where every name has these addresses; no descriptor is left open by it, for the collector.
  def with_addresses(*addresses)
    scheduler = Hosts.new
    scheduler.addresses = addresses
    before = after = nil
    result = nil
    scheduled(scheduler) do
      Fiber.schedule do
        GC.start
        GC.disable
        before = settled_descriptors
        result = yield
        after = open_descriptors
      end
    end
    assert_equal before, after
    result
  ensure
    GC.enable
  end

  # A socket that answers no connection: its queue is full.
  def silent(address, port = 0)
    socket = Socket.new(:INET, :STREAM)
    socket.bind(Addrinfo.tcp(address, port))
    socket.listen(0)
    (@full ||= []) << socket
    3.times do
      @full << Socket.new(:INET, :STREAM)
      @full.last.connect_nonblock(socket.local_address, exception: false)
    end
    socket.local_address.ip_port
  end

  def teardown
    @full&.each(&:close)
    super
  end

  def refusing_port(address)
    TCPServer.open(address, 0) { |server| server.addr[1] }
  end

  def test_an_address_that_does_not_answer_is_overtaken
    port = silent("127.0.0.2")
    server = TCPServer.new("127.0.0.3", port)
    turns = 0
    told = with_addresses("127.0.0.2", "127.0.0.3") do
      connecting = true
      Fiber.schedule { turns += 1 while sleep(0.001) && connecting }
      TCPSocket.open("several.test", port) do |socket|
        connecting = false
        Fiber.schedule { server.accept.then { |peer| peer.write(peer.read) && peer.close } }
        socket.write("there")
        socket.close_write
        [socket.remote_address.ip_address, socket.read]
      end
    end
    assert_equal ["127.0.0.3", "there"], told
    assert_operator turns, :>, 1
  ensure
    server&.close
  end

  def test_an_address_that_refuses_is_passed_by
    port = refusing_port("127.0.0.2")
    server = TCPServer.new("127.0.0.3", port)
    [nil, true, false].each do |fast_fallback|
      %w[127.0.0.2 127.0.0.3].permutation.each do |order|
        told = with_addresses(*order) { TCPSocket.open("several.test", port, fast_fallback:) { |socket| socket.remote_address.ip_address } }
        assert_equal "127.0.0.3", told
      end
    end
  ensure
    server&.close
  end

  # A second exception does not keep the first from closing the descriptor.
  def test_a_connection_that_two_exceptions_end_leaves_no_descriptor
    server = TCPServer.new("127.0.0.1", 0)
    server.listen(0)
    # Its queue is full: whoever connects waits.
    fillers = Array.new(3) { Socket.new(:INET, :STREAM).tap { |socket| socket.connect_nonblock(server.local_address, exception: false) } }
    seen = []
    in_fiber do |scheduler|
      sleep 0
      before = settled_descriptors
      fiber = Fiber.schedule do
        begin
          TCPSocket.new("127.0.0.1", server.local_address.ip_port)
        rescue ArgumentError => e
          seen << e.message
        end
        sleep
      rescue KeyError => e
        seen << e.message
      end
      sleep 0.001
      scheduler.machine.schedule(fiber, KeyError.new("second"))
      fiber.raise(ArgumentError, "first")
      sleep 0 while fiber.alive?
      assert_operator open_descriptors, :<=, before
    end
    assert_equal %w[first second], seen
  ensure
    [server, *fillers].each(&:close)
  end

  def test_the_last_error_is_raised_when_none_connects
    port = refusing_port("127.0.0.2")
    with_addresses("127.0.0.2", "127.0.0.3") do
      error = assert_raises(Errno::ECONNREFUSED) { TCPSocket.new("several.test", port) }
      assert_equal "Connection refused - connect(2) for \"several.test\" port #{port}", error.message
    end
    # One that does not answer is waited for when all others have failed.
    silent("127.0.0.2", port)
    late = RUBY_VERSION >= "4" ? IO::TimeoutError : Errno::ETIMEDOUT
    with_addresses("127.0.0.2", "127.0.0.3") do
      error = assert_raises(late) { TCPSocket.new("several.test", port, connect_timeout: 0.01) }
      assert_match(/user specified timeout/, error.message)
    end
  end

  def test_time_limits
    port = silent("127.0.0.2")
    silent("127.0.0.3", port)
    late = RUBY_VERSION >= "4" ? IO::TimeoutError : Errno::ETIMEDOUT
    with_addresses("127.0.0.2", "127.0.0.3") do
      assert_raises(late) { TCPSocket.new("several.test", port, connect_timeout: 0.01) }
      assert_raises(Timeout::Error) { Timeout.timeout(0.01) { TCPSocket.new("several.test", port) } }
      assert_raises(ArgumentError) { TCPSocket.new("several.test", port, connect_timeout: -1) }
      assert_raises(TypeError) { TCPSocket.new("several.test", port, connect_timeout: "1") }
      assert_raises(ArgumentError) { TCPSocket.new("several.test", port, colour: 1) }
      assert_raises(RUBY_VERSION >= "4" ? late : ArgumentError) { TCPSocket.new("several.test", port, open_timeout: 0.01) }
      assert_raises(ArgumentError) { TCPSocket.new("several.test", port, open_timeout: 1, connect_timeout: 1) }
    end
    # One address is not raced for, and nothing is to be waited for but it.
    with_addresses("127.0.0.2") { assert_raises(IO::TimeoutError) { TCPSocket.new("one.test", port, connect_timeout: 0.01) } }
    slow = Class.new(UM::FiberScheduler) { def address_resolve(_) = sleep }
    scheduled(slow.new) { Fiber.schedule { assert_raises(late) { TCPSocket.new("slow.test", port, resolv_timeout: 0.01) } } }
  end

  def test_the_end_that_is_ours_may_be_given
    server = TCPServer.new("127.0.0.3", 0)
    port = server.addr[1]
    with_addresses("127.0.0.2", "127.0.0.3") do
      Fiber.scheduler.addresses += ["::1"]
      assert_raises(Errno::EADDRNOTAVAIL) { TCPSocket.new("several.test", port, "192.0.2.1", 0) }
      Fiber.scheduler.addresses -= ["::1"]
      assert_equal("127.0.0.9", TCPSocket.open("several.test", port, "127.0.0.9", 0) { |socket| socket.local_address.ip_address })
      error = assert_raises(Errno::EADDRNOTAVAIL) { TCPSocket.new("several.test", port, "192.0.2.1", 0) }
      assert_match(/bind\(2\) for "192.0.2.1" port 0/, error.message)
      assert_raises(Errno::EAFNOSUPPORT) { TCPSocket.new("several.test", port, "::1", 0) }
    end
  ensure
    server&.close
  end

  def test_ipv6_comes_first
    begin
      six = TCPServer.new("::1", 0)
    rescue SystemCallError
      skip "no IPv6"
    end
    four = TCPServer.new("127.0.0.1", six.addr[1])
    told = with_addresses("127.0.0.1", "::1") { TCPSocket.open("several.test", six.addr[1]) { |socket| socket.remote_address.ip_address } }
    assert_equal "::1", told
  ensure
    [six, four].each { |server| server&.close }
  end

  def test_a_socket_that_has_won_is_as_any_other
    subclass = Class.new(TCPSocket)
    server = TCPServer.new("127.0.0.3", 0)
    told = lambda do |host|
      subclass.open(host, server.addr[1]) do |socket|
        [socket.class, socket.sync, socket.binmode?, socket.external_encoding, socket.close_on_exec?, socket.autoclose?, socket.timeout,
         socket.do_not_reverse_lookup, socket.fcntl(1), socket.fcntl(3), socket.peeraddr, socket.closed?]
      end
    end
    assert_equal(told.call("127.0.0.3"), with_addresses("127.0.0.2", "127.0.0.3") { told.call("several.test") })
  ensure
    server&.close
  end

  private

  def addresses(host)
    Addrinfo.getaddrinfo(host, 80, nil, :STREAM).map { |info| [info.ip_address, info.ip_port, info.afamily] }
  rescue Socket::ResolutionError => e
    e.error_code
  end
end

# frozen_string_literal: true

require_relative "test_helper"

# Names resolve as they do without a scheduler, and connecting by name stalls nobody.
class TestResolve < SchedulerTest
  def test_results_equal_those_without_a_scheduler
    ["localhost", Socket.gethostname, "127.0.0.1", "::1", "ip6-localhost"].each do |host|
      plain = addresses(host)
      assert_equal plain, in_fiber { addresses(host) }, host
    end
  end

  def test_an_unknown_name_raises_the_resolvers_error
    in_fiber { assert_raises(Socket::ResolutionError) { Addrinfo.getaddrinfo("does-not-exist.invalid", 80) } }
  end

  def test_a_name_with_a_null_byte_is_refused
    in_fiber { |scheduler| assert_raises(ArgumentError) { scheduler.address_resolve("local\0host") } }
    in_fiber { |scheduler| assert_raises(TypeError) { scheduler.address_resolve(1) } }
  end

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

  private

  def addresses(host)
    Addrinfo.getaddrinfo(host, 80, nil, :STREAM).map { |info| [info.ip_address, info.ip_port, info.afamily] }
  rescue Socket::ResolutionError => e
    e.error_code
  end
end

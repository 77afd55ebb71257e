# frozen_string_literal: true

require_relative "../test_helper"

# The hook io_close: see also test_closing.rb.
class TestIOClose < SchedulerTest
  def test_when_close_returns_the_port_can_be_bound_again_whoever_waited_for_it
    20.times do
      in_fiber do
        server = TCPServer.new("127.0.0.1", 0)
        port = server.addr[1]
        waiting = Fiber.schedule { server.accept rescue $!.class }
        server.close
        TCPServer.new("127.0.0.1", port).close
        sleep 0.001 while waiting.alive?
      end
    end
  end

  def test_a_close_that_lingers_stalls_its_own_fiber_only
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    peer = server.accept
    client.setsockopt(Socket::Option.linger(true, 30))
    begin
      loop { client.write_nonblock("x" * 65_536) }
    rescue IO::WaitWritable
      # More than the peer's window is on its way.
    end
    order = []
    scheduled do
      Fiber.schedule do
        client.close
        order << :closed
      end
      Fiber.schedule do
        5.times { sleep(0.001) && (order << :tick) }
        nil while peer.read(65_536)
      end
    end
    assert_equal [*[:tick] * 5, :closed], order
  end
end

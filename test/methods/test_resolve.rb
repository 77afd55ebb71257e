# frozen_string_literal: true

require_relative "../test_helper"

# UM#resolve, and UM::DNSResolver against Debian's dnsmasq on loopback.
class TestMachineResolve < MachineTest
  def with_server(*records)
    port = free_port
    options = ["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--listen-address=127.0.0.1", "--bind-interfaces", "--port=#{port}",
               "--user=#{Etc.getpwuid.name}", "--pid-file=", "--local=/test/", *records]
    server = Process.spawn("dnsmasq", *options, out: File::NULL, err: File::NULL)
    wait_for(port)
    yield UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", port]])
  ensure
    Process.kill(:TERM, server)
    Process.wait(server)
  end

  # A port that nobody uses, of UDP or of TCP.
  def free_port
    UDPSocket.open do |socket|
      socket.bind("127.0.0.1", 0)
      TCPServer.open("127.0.0.1", socket.addr[1]) { socket.addr[1] }
    end
  rescue Errno::EADDRINUSE
    retry
  end

  # It listens to TCP too, once it is up.
  def wait_for(port)
    machine.close(machine.tcp_connect("127.0.0.1", port))
  rescue Errno::ECONNREFUSED
    machine.sleep(0.01)
    retry
  end

  def test_without_a_type_the_systems_resolver_answers
    expected = Addrinfo.getaddrinfo("localhost", nil, nil, :STREAM).map(&:ip_address).uniq
    assert_equal expected, machine.resolve("localhost")
    assert_equal ["127.0.0.1"], machine.resolve("127.0.0.1")
    assert_raises(Socket::ResolutionError) { machine.resolve("nothing.invalid") }
  end

  def test_records_of_each_type
    with_server("--address=/host.test/192.0.2.7", "--address=/host.test/2001:db8::7", "--mx-host=mail.test,mx.test,10", "--txt-record=text.test,hello,world",
                "--cname=alias.test,real.test", "--host-record=real.test,192.0.2.8", "--srv-host=_http._tcp.test,real.test,80,1") do |resolver|
      assert_equal ["192.0.2.7"], resolver.resolve("host.test", :A)
      assert_equal ["2001:db8::7"], resolver.resolve("host.test", :AAAA)
      assert_equal(["mx.test"], resolver.resolve("mail.test", :MX).map { |record| record.exchange.to_s })
      assert_equal ["helloworld"], resolver.resolve("text.test", :TXT)
      assert_equal ["real.test"], resolver.resolve("alias.test", :CNAME)
      assert_equal ["192.0.2.8"], resolver.resolve("alias.test", :A)
      assert_equal [80], resolver.resolve("_http._tcp.test", :SRV).map(&:port)
      assert_equal [], resolver.resolve("real.test", :MX)
      assert_raises(Socket::ResolutionError) { resolver.resolve("nothing.test", :A) }
    end
  end

  def test_many_questions_at_once_and_answers_too_long_for_udp
    addresses = Array.new(100) { |number| "192.0.2.#{number}" }
    with_server(*addresses.map { |address| "--host-record=many.test,#{address}" }, "--address=/one.test/192.0.2.1") do |resolver|
      fibers = Array.new(20) { machine.spin { resolver.resolve("one.test", :A) } }
      assert_equal [["192.0.2.1"]], machine.join(fibers).uniq
      assert_equal addresses.sort, resolver.resolve("many.test", :A).sort
    end
  end

  # A server that answers a question nobody asked first, then the right one.
  def test_an_answer_to_another_question_is_passed_over
    socket = UDPSocket.new
    socket.bind("127.0.0.1", 0)
    server = Thread.new do
      question, sender = socket.recvfrom(1000)
      forge = lambda do |message, id: message.id, qr: 1|
        answer(message, "192.0.2.66").tap { |forged| (forged.id = id) && forged.qr = qr }.encode
      end
      asked = -> { Resolv::DNS::Message.decode(question) }
      other = Resolv::DNS::Message.new(asked.call.id).tap { |message| message.add_question("other.test", Resolv::DNS::Resource::IN::A) }
      ["no answer", forge.(asked.call, id: (asked.call.id + 1) % 0x10000), forge.(other), forge.(asked.call, qr: 0)].each do |bytes|
        socket.send(bytes, 0, sender[3], sender[1])
      end
      right = asked.call
      right.qr = 1
      socket.send(answer(right, "192.0.2.1").encode, 0, sender[3], sender[1])
    end
    resolver = UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", socket.addr[1]]])
    assert_equal ["192.0.2.1"], resolver.resolve("host.test", :A)
    server.join
  ensure
    socket.close
  end

  def answer(message, address)
    message.add_answer("host.test", 60, Resolv::DNS::Resource::IN::A.new(address))
    message
  end

  def test_the_next_server_is_asked_when_one_refuses
    with_server("--address=/host.test/192.0.2.7") do |resolver|
      servers = resolver.instance_variable_get(:@nameservers)
      closed = UDPSocket.open { |socket| socket.bind("127.0.0.1", 0) && socket.addr[1] }
      both = UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", closed], *servers])
      assert_equal ["192.0.2.7"], both.resolve("host.test", :A)
      none = UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", closed]])
      assert_raises(Socket::ResolutionError) { none.resolve("host.test", :A) }
    end
  end

  def test_bad_arguments
    assert_names("hostname", TypeError) { machine.resolve(1) }
    assert_names("type", ArgumentError) { machine.resolve("localhost", :NONSENSE) }
    assert_names("type", ArgumentError) { machine.resolve("localhost", "a") }
    assert_raises(ArgumentError) { machine.resolve("a\0b") }
  end
end

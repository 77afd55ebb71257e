# frozen_string_literal: true

require_relative "../test_helper"

# Names of addresses: Socket.getnameinfo, Addrinfo#getnameinfo, IPSocket#addr and #peeraddr.
class TestNameLookups < SchedulerTest
  def file
    Tempfile.create("um").tap { |file| (@files ||= []) << file }
  end

  def teardown
    @files&.each { |file| file.close && File.unlink(file.path) }
    super
  end

  def test_names_of_addresses
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    address = Addrinfo.tcp("127.0.0.1", 80)
    arrays = [["AF_INET", 80, "localhost"], ["AF_INET", 80, "127.0.0.1"], ["AF_INET", 80, "nobody", "127.0.0.1"]]
    ends = lambda do |flag|
      %i[addr peeraddr].map { |name| client.public_send(name, flag) rescue [$!.class, $!.message] }
    end
    told = lambda do |*|
      names = [address.to_sockaddr, *arrays].map { |of| Socket.getnameinfo(of) }
      [address.getnameinfo, names, [nil, true, false, :hostname, :numeric, :nonsense, 1].map(&ends), client.addr, client.peeraddr]
    end
    [true, false].each do |flag|
      client.do_not_reverse_lookup = flag
      assert_equal told.call, in_fiber(&told)
    end
    [client, server].each(&:close)
  end

  # A name server that answers only when its fiber, of the same thread, has run.
  NAME_SERVER = <<~'RUBY'

    system("mount", "--bind", ARGV.first, "/etc/resolv.conf", exception: true)
    # SIOCSIFFLAGS, IFF_UP
    UDPSocket.new.ioctl(0x8914, ["lo", 1].pack("a16s"))
    server = UDPSocket.new
    server.bind("127.0.0.1", 53)
    answer = lambda do
      query, from = server.recvfrom(512)
      question = query[12..query.index("\0", 12) + 4]
      name = "\4host\4test\0"
      server.send([query[0, 2], 0x8580, 1, 1, 0, 0, question, 0xc00c, 12, 1, 60, name.bytesize, name].pack("a2n5a*n3Nna*"), 0, from[3], from[1])
    end
    tcp = TCPServer.new("127.0.0.1", 0)
    client = Socket.tcp("127.0.0.1", tcp.addr[1], "127.0.0.9")
    peer = tcp.accept
    peer.do_not_reverse_lookup = false
    Fiber.set_scheduler(UM::FiberScheduler.new)
    address = Addrinfo.tcp("192.0.2.1", 80)
    calls = [-> { address.getnameinfo[0] }, -> { Socket.getnameinfo(address.to_sockaddr)[0] }, -> { Socket.getnameinfo(["AF_INET", 80, "192.0.2.1"])[0] },
             -> { peer.peeraddr[2] }, -> { peer.peeraddr(:hostname)[2] }]
    Fiber.schedule do
      calls.each do |call|
        Fiber.schedule(&answer)
        puts call.call
      end
    end
  RUBY

  def test_names_are_waited_for_while_others_run
    namespaces = [%w[unshare --mount --net], %w[unshare --user --map-root-user --mount --net]].find { |command| system(*command, "true", err: File::NULL) }
    skip "no namespaces to be had" unless namespaces
    configuration = file
    configuration.write("nameserver 127.0.0.1\noptions timeout:3 attempts:1\n")
    configuration.flush
    output, = ruby(NAME_SERVER, configuration.path, before: namespaces)
    assert_equal "host.test\n" * 5, output
  end

  # Ruby holds its lock meanwhile, so nothing of ours could let others run.
  def test_what_is_deprecated_warns_as_in_plain_ruby
    output, = ruby(<<~RUBY)
      address = [127, 0, 0, 1].pack("C4")
      Socket.gethostbyaddr(address)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { Socket.gethostbyaddr(address) }
    RUBY
    warning = "warning: Socket.gethostbyaddr is deprecated; use Addrinfo#getnameinfo instead."
    assert_equal ["-e:2: #{warning}", "-e:4: #{warning}"], output.lines(chomp: true)
  end

  def test_a_look_up_whose_thread_is_killed_is_made_anew
    told = in_fiber do
      killing = true
      Fiber.schedule do
        while killing
          Thread.list.each { |thread| thread.kill if thread.name == "um-pool" }
          sleep 0.0002
        end
      end
      names = Array.new(50) { Socket.getnameinfo(["AF_INET", 80, "127.0.0.1", "127.0.0.1"]).first }
      killing = false
      names.uniq
    end
    assert_equal [Socket.getnameinfo(["AF_INET", 80, "127.0.0.1", "127.0.0.1"]).first], told
  end
end

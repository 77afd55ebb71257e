# frozen_string_literal: true

require_relative "test_helper"

# Core methods that reach no hook of Ruby's: other fibers run meanwhile.
class TestCoreGaps < SchedulerTest
  class TooLate < StandardError; end

  def file
    Tempfile.create("um").tap { |file| (@files ||= []) << file }
  end

  def teardown
    @files&.each { |file| file.close && File.unlink(file.path) }
    super
  end

  def test_closing_a_file_wakes_who_waits_for_its_lock
    Tempfile.create do |file|
      holder = File.open(file.path)
      holder.flock(File::LOCK_EX)
      error = nil
      in_fiber do
        waiting = Fiber.schedule do
          file.flock(File::LOCK_EX)
        rescue IOError => e
          error = e
        end
        assert_predicate waiting, :alive?
        file.close
        sleep(0) while waiting.alive?
      end
      assert_equal "stream closed in another thread", error&.message
      holder.close
    end
  end

  def test_flock_waits_while_others_run
    path = file.path
    order = []
    scheduled do
      Fiber.schedule do
        File.open(path) do |holder|
          assert_equal 0, holder.flock(File::LOCK_EX)
          Fiber.schedule do
            File.open(path) do |waiting|
              assert_equal false, waiting.flock(File::LOCK_EX | File::LOCK_NB)
              order << :waits
              assert_equal 0, waiting.flock(File::LOCK_EX)
              order << :has_it
              assert_equal 0, waiting.flock(File::LOCK_UN)
            end
          end
          5.times { sleep(0.001) && (order << :runs) }
          holder.flock(File::LOCK_UN)
        end
      end
    end
    assert_equal [:waits, *[:runs] * 5, :has_it], order
  end

  def test_flock_can_be_cut_off
    path = file.path
    in_fiber do
      File.open(path) do |holder|
        holder.flock(File::LOCK_EX)
        File.open(path) { |waiting| assert_raises(TooLate) { Timeout.timeout(0.01, TooLate) { waiting.flock(File::LOCK_SH) } } }
        holder.flock(File::LOCK_UN)
        File.open(path) { |next_one| assert_equal 0, next_one.flock(File::LOCK_EX | File::LOCK_NB) }
      end
    end
  end

  def test_syncing_and_truncating_flush_first
    io = file
    in_fiber do
      io.write("buffered")
      assert_equal 0, io.fsync
      assert_equal 8, File.size(io.path)
      io.write(" and more")
      assert_equal 0, io.fdatasync
      assert_equal 17, File.size(io.path)
      io.write("!")
      assert_equal 0, io.truncate(3)
      assert_equal 3, File.size(io.path)
    end
  end

  # What other fibers are ready to run does so before the call returns.
  def test_syncing_and_truncating_let_others_run
    io = file
    %w[fsync fdatasync truncate].each do |name|
      order = []
      counts = []
      scheduled do |scheduler|
        Fiber.schedule do
          io.write("some")
          io.flush
          Fiber.schedule { order << :other if sleep(0) }
          counts << scheduler.machine.metrics[:total_ops]
          name == "truncate" ? io.truncate(2) : io.public_send(name)
          counts << scheduler.machine.metrics[:total_ops]
          order << name
        end
      end
      assert_equal [:other, name], order
      # Before Linux 6.9 the ring cannot truncate: a thread does.
      assert_operator counts[1], :>, counts[0] unless name == "truncate"
    end
  end

  def test_errors_are_those_of_plain_ruby
    reader, = IO.pipe
    closed = file.dup.tap(&:close)
    null = File.open(File::NULL, "r+")
    calls = [
      -> { reader.fsync }, -> { closed.fsync }, -> { null.fsync }, -> { null.fdatasync }, -> { reader.fdatasync },
      -> { closed.flock(File::LOCK_EX) }, -> { file.flock("x") }, -> { file.flock(0) },
      *["x", -1, 2**62, 2**63, 2**70, -(2**70), nil].map { |length| -> { file.truncate(length) } },
      -> { closed.truncate(1) }, -> { null.truncate(1) }, -> { File.open(__FILE__) { |io| io.truncate(1) } },
      -> { Socket.getnameinfo("nonsense") }, -> { Socket.getnameinfo }
    ]
    # Every file has a name of its own.
    told = ->(*) { calls.map { |call| call.call && nil rescue [$!.class, $!.message.sub(%r{/um\S+}, "")] } }
    expected = told.call
    # Some file systems take a length of 2**62.
    assert_operator expected.compact.size, :>=, calls.size - 1
    assert_equal expected, in_fiber(&told)
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

  def test_without_our_scheduler_nothing_changes
    io = file
    assert_equal [0, 0, 0], [io.flock(File::LOCK_EX), io.fsync, io.truncate(0)]
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

  # What takes turns is no other method for whoever looks, or calls it wrongly.
  def test_methods_that_take_turns_are_rubys
    code = <<~RUBY
      require "socket"
      classes = [BasicSocket, IPSocket, UDPSocket, UNIXSocket, Socket, TCPServer, UNIXServer, IO, File, Process.singleton_class, Process::Status.singleton_class, Thread.singleton_class]
      names = %i[send recv sendmsg recvmsg recv_nonblock read_nonblock write_nonblock recvfrom recvfrom_nonblock accept accept_nonblock sysaccept send_io recv_io
                 flush seek rewind pos= stat fcntl ioctl pwrite size wait wait2 waitpid waitpid2 pass]
      classes.product(names) do |owner, name|
        next unless owner.method_defined?(name) || owner.private_method_defined?(name)
        method = owner.instance_method(name)
        p [owner, name, method.arity, method.parameters, owner.private_method_defined?(name)]
      end
      one, other = UNIXSocket.pair
      calls = [-> { one.recv }, -> { one.send("x") }, -> { one.send(:x, 0) }, -> { one.recv(1, what: 1) }, -> { one.read_nonblock(1) }, -> { one.pwrite }, -> { Thread.pass(1) },
               -> { one.recv_nonblock(1, exceptions: false) }, -> { one.recv_nonblock(1, exception: false) }, -> { one.write_nonblock("x", exception: 1) },
               -> { Process.wait }, -> { one.freeze.recv(1) }, -> { other.recv_io(1, 2, 3) }, -> { IO.pipe[0].write_nonblock("x", other: 1) }, -> { File.open("/").seek(0, :ELSE) },
               -> { one.close || one.recv(1) }]
      calls.each { |call| p((call.call rescue [$!.class, $!.message])) }
    RUBY
    with, = ruby(code)
    without = IO.popen([RbConfig.ruby, "-e", code], err: %i[child out], &:read)
    assert_equal without, with
  end
end

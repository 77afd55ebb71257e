# frozen_string_literal: true

require_relative "test_helper"
require "openssl"
require "zlib"
require_relative "identity"

# A fiber whose operations never have to wait lets the ready go first, after some milliseconds.
class TestFairness < SchedulerTest
  # More than is done before others get their turn, on any machine; the test fails where they never do.
  MOST = 1_000_000

  # Two ends of a connection by TLS, each given to the block before.
  def self.encrypted
    context = OpenSSL::SSL::SSLContext.new.tap { |made| made.add_certificate(Identity.certificate, Identity.key) }
    ends = UNIXSocket.pair.zip([context, OpenSSL::SSL::SSLContext.new]).map { |socket, made| OpenSSL::SSL::SSLSocket.new(socket, made) }
    ends.each { |ssl| yield ssl } if block_given?
    accepted = Fiber.schedule { ends.first.accept }
    ends.last.connect
    sleep(0) while accepted.alive?
    ends
  end

  # Work of one step each, that never waits.
  WORKS = {
    lines: lambda do |folder|
      File.write(path = File.join(folder, "lines"), "line of a file\n" * 10_000)
      file = File.open(path)
      -> { file.gets || file.rewind }
    end,
    read: lambda do |folder|
      File.write(path = File.join(folder, "bytes"), "x" * 65_536)
      file = File.open(path)
      -> { file.rewind && file.sysread(65_536) }
    end,
    pread: lambda do |folder|
      File.write(path = File.join(folder, "bytes"), "x" * 65_536)
      file = File.open(path)
      -> { file.pread(1000, 0) }
    end,
    write: lambda do |folder|
      file = File.open(File.join(folder, "written"), "w")
      file.sync = true
      -> { file.rewind && file.write("x" * 100_000) }
    end,
    small_files: ->(folder) { -> { File.write(File.join(folder, "small"), "x") && File.read(File.join(folder, "small")) } },
    socket: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.write("x") && other.readpartial(1) }
    end,
    pipe: lambda do |_|
      reader, writer = IO.pipe
      writer.sync = true
      -> { writer.write("x") && reader.readpartial(1) }
    end,
    messages: lambda do |_|
      one, other = UNIXSocket.pair(:DGRAM)
      -> { one.syswrite("x") && other.readpartial(1) }
    end,
    select: lambda do |_|
      reader, writer = IO.pipe
      writer << "x"
      -> { IO.select([reader], [writer]) }
    end,
    ready: lambda do |_|
      reader, writer = IO.pipe
      writer << "x"
      -> { reader.wait_readable }
    end,
    not_ready: lambda do |_|
      reader, writer = IO.pipe
      -> { reader.wait_readable(0) || writer }
    end,
    bytes: lambda do |folder|
      File.write(path = File.join(folder, "bytes"), "x" * 100_000)
      file = File.open(path)
      -> { file.getbyte || file.rewind }
    end,
    characters: lambda do |folder|
      File.write(path = File.join(folder, "characters"), "\u00fc" * 100_000)
      file = File.open(path)
      -> { file.getc || file.rewind }
    end,
    characters_of_a_pipe: lambda do |_|
      reader, writer = IO.pipe
      characters = reader.each_char
      -> { (writer << ("x" * 5000)) && writer.flush && 5000.times { characters.next } }
    end,
    puts: lambda do |folder|
      file = File.open(File.join(folder, "put"), "w")
      count = 0
      -> { file.puts("x") || ((count += 1) % 100_000 == 0 && file.rewind) || true }
    end,
    flush: lambda do |folder|
      file = File.open(File.join(folder, "flushed"), "w")
      -> { file.write("x") && file.flush }
    end,
    places: lambda do |folder|
      file = File.open(File.join(folder, "places"), "w")
      -> { file.write("x") && file.seek(0) && file.write("x") && file.rewind }
    end,
    # What Ruby calls no hook for.
    send: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.send("x", 0) && other.recv(1) }
    end,
    sendmsg: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.sendmsg("x") && other.recvmsg }
    end,
    udp: lambda do |_|
      one = UDPSocket.new
      one.bind("127.0.0.1", 0)
      port = one.addr[1]
      -> { one.send("x", 0, "127.0.0.1", port) && one.recvfrom(1) }
    end,
    datagrams: lambda do |_|
      one = Socket.new(:INET, :DGRAM)
      one.bind(Addrinfo.udp("127.0.0.1", 0))
      address = one.local_address
      -> { one.send("x", 0, address) && one.recvfrom(1) }
    end,
    sent_descriptors: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.send_io(one) || other.recv_io.close || true }
    end,
    nonblock_of_a_pipe: lambda do |_|
      reader, writer = IO.pipe
      -> { writer.write_nonblock("x") && reader.read_nonblock(1) }
    end,
    full_pipe: lambda do |_|
      reader, writer = IO.pipe
      -> { writer.write_nonblock("x" * 65_536, exception: false) && reader }
    end,
    nonblock_of_a_socket: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.write_nonblock("x") && other.read_nonblock(1) }
    end,
    empty_socket: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.recv_nonblock(1, exception: false) && one.read_nonblock(1, exception: false) && other }
    end,
    messages_nonblock: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.sendmsg_nonblock("x") && other.recvmsg_nonblock }
    end,
    no_datagram: lambda do |_|
      one = UDPSocket.new
      one.bind("127.0.0.1", 0)
      -> { one.recvfrom_nonblock(1, exception: false) }
    end,
    accept: lambda do |_|
      server = TCPServer.new("127.0.0.1", 0)
      address = server.local_address
      # Not by Ruby's own connect, which waits.
      -> { Socket.new(:INET, :STREAM).then { |one| one.connect_nonblock(address, exception: false) && server.accept.close || one.close || true } }
    end,
    nobody_to_accept: lambda do |folder|
      server = TCPServer.new("127.0.0.1", 0)
      local = UNIXServer.new(File.join(folder, "server"))
      -> { server.accept_nonblock(exception: false) && local.accept_nonblock(exception: false) }
    end,
    pwrite: lambda do |folder|
      file = File.open(File.join(folder, "placed"), "w")
      -> { file.pwrite("x", 0) }
    end,
    lock: lambda do |folder|
      file = File.open(File.join(folder, "lock"), "w")
      -> { file.flock(File::LOCK_EX) && file.flock(File::LOCK_UN) }
    end,
    lock_of_another: lambda do |folder|
      holder, file = Array.new(2) { File.open(File.join(folder, "lock"), "w") }
      holder.flock(File::LOCK_EX)
      -> { file.flock(File::LOCK_EX | File::LOCK_NB) || holder }
    end,
    size: lambda do |folder|
      file = File.open(File.join(folder, "sized"), "w")
      -> { file.size && file.stat }
    end,
    child: lambda do |_|
      reader, writer = IO.pipe
      pid = Process.spawn("cat", in: reader)
      # It ends with the writer.
      -> { Process.wait(pid, Process::WNOHANG) || writer }
    end,
    # Nobody waits for them yet.
    spawn: ->(_) { -> { Process.spawn("true") && spawn("true") } },
    fork: ->(_) { -> { fork { exit!(0) } && Process.fork { exit!(0) } } },
    popen: ->(_) { -> { IO.popen("true") } },
    # On no ring.
    tls: lambda do |_|
      server, client = TestFairness.encrypted
      -> { client.syswrite("x") && server.sysread(1) }
    end,
    tls_nonblock: lambda do |_|
      server, client = TestFairness.encrypted
      -> { client.write_nonblock("x") && server.read_nonblock(1) && server.read_nonblock(1, exception: false) }
    end,
    tls_on_the_ring: lambda do |_|
      server, client = TestFairness.encrypted { |ssl| UM::SSL.accelerate(ssl) }
      -> { client.write_nonblock("x") && server.read_nonblock(1, exception: false) && server.read_nonblock(1, exception: false) }
    end,
    pass: ->(_) { -> { Thread.pass || true } }
  }.freeze

  def teardown
    children.each do |pid,|
      Process.kill(:KILL, pid)
      Process.wait(pid)
    end
    super
  end

  WORKS.each do |name, prepare|
    # Another fiber is ready, another waits for the time, and another for what has come.
    define_method(:"test_others_run_beside_#{name}") do
      Dir.mktmpdir do |folder|
        turns = []
        steps = 0
        scheduled do
          Fiber.schedule do
            work = prepare.call(folder)
            (work.call && steps += 1) until turns.size == 3 || steps == MOST
          end
          reader, writer = IO.pipe
          writer << "x"
          Fiber.schedule { [Fiber.scheduler.yield, turns << :ready] }
          Fiber.schedule { sleep(0.001) && turns << :time }
          Fiber.schedule { reader.wait_readable && turns << :come }
        end

        assert_equal %i[come ready time], turns.sort
        assert_operator steps, :<, MOST
      end
    end

    # Also where nobody else wants to run.
    define_method(:"test_a_time_limit_ends_#{name}") do
      Dir.mktmpdir do |folder|
        steps = 0
        late = in_fiber do
          work = prepare.call(folder)
          Timeout.timeout(0.01) { steps += 1 while steps < MOST && work.call }
          :ended
        rescue Timeout::Error
          :late
        end

        assert_equal [:late, true], [late, steps < MOST]
      end
    end
  end

  # Who computes for long and gives way in between is not asked twice before a timer that is due.
  def test_a_timer_waits_for_one_turn_of_a_busy_fiber
    now = -> { Process.clock_gettime(Process::CLOCK_MONOTONIC) }
    begun = []
    due = nil
    scheduled do
      fired = false
      Fiber.schedule do
        until fired
          begun << (start = now.call)
          nil until now.call > start + 0.02
          sleep(0)
        end
      end
      Fiber.schedule do
        due = now.call + 0.01
        sleep(0.01)
        fired = true
      end
    end
    # The one that is under way when it is due has begun before.
    assert_operator begun.count { |start| start > due }, :<=, 1
  end

  # What has come is not looked for at each turn, and not only when the clock has gone on.
  def test_what_has_come_is_seen_after_some_turns
    turns = 0
    scheduled do
      reader, writer = IO.pipe
      done = false
      Fiber.schedule { reader.readpartial(1) && done = true }
      Fiber.schedule do
        sleep(0.001)
        writer.syswrite("x")
        (turns += 1) && sleep(0) until done
      end
    end
    # Faults keep back what has come for several looks.
    assert_operator turns, :<=, ENV.key?("UM_FAULTS") ? 10_000 : 1000
  end

  # A peer that sends without end has its reader, and everybody else goes on.
  def test_a_flood_drowns_nobody
    rounds = Array.new(20, 0)
    scheduled do
      flooded, flood = UNIXSocket.pair
      flooding = Thread.new { loop { flood.write("x" * 65_536) } rescue Errno::EPIPE }
      flooding.report_on_exception = false
      read = 0
      Fiber.schedule { read += flooded.readpartial(65_536).bytesize until rounds.all?(50) }
      rounds.each_index do |index|
        one, other = UNIXSocket.pair
        Fiber.schedule { 50.times { one.write(one.readpartial(1)) } }
        Fiber.schedule { 50.times { other.write("x") && other.readpartial(1) && rounds[index] += 1 } }
      end
      Fiber.scheduler.run
      flooded.close
      flooding.join
      assert_operator read, :>, 0
    end
    assert_equal [50], rounds.uniq
  end
end

# frozen_string_literal: true

require "etc"
require "openssl"
require "socket"
require "tempfile"
require "timeout"
require "uringmachine"
require_relative "identity"

# Everything at once, for as long as one likes: connections that come and go and others that stay, cancels and time limits at
# any moment, children, files, TLS, threads. Every byte that was sent is compared with what comes back. At the end memory is
# what it was after the first tenth, and no descriptor is left. See script/soak.
class Soak
  # Connections that stay.
  HELD = 10_000
  # Threads that act, and fibers of each.
  THREADS = 2
  FIBERS = 60
  # Descriptors beside those of the connections that stay: the program's own, and those of what comes and goes.
  SPARE = 1500
  # What memory may grow by from the first tenth to the end; while Ruby's heap, the pools of threads and malloc(3) have not
  # come to their size, which takes so many seconds, it is bounded only.
  GROWTH = 0.05
  SHORT = 600
  GROWTH_WHILE_SHORT = 2.0

  # Seconds in which the servers have seen the end of all connections.
  PATIENCE = 60

  class Cancel < StandardError; end

  # A connection to a server that sends back whatever it is sent. What was sent and has not come back is known.
  class Stream
    # Less than sockets hold, so that whoever writes never waits for himself to read.
    CHUNK = 16_384

    attr_reader :outstanding

    def initialize(io)
      @io = io
      @outstanding = +"".b
    end

    # Sends bytes, if there is room, and takes some of what has come. A cancel at any moment loses no byte.
    def exchange(random)
      if @outstanding.bytesize < CHUNK
        bytes = random.bytes(random.rand(1..CHUNK))
        sent = @io.syswrite(bytes)
        @outstanding << bytes.byteslice(0, sent)
      end
      take(random.rand(1..CHUNK))
      sent.to_i
    end

    # Takes all that is to come back.
    def finish
      take(CHUNK) until @outstanding.empty?
    end

    def close = @io.close

    # Says that there is no more, and waits for the end of what comes.
    def end
      finish
      @io.close_write
      raise "more has come than was sent" if @io.read(1)

      close
    end

    private

    def take(most)
      bytes = @io.readpartial(most)
      raise "other bytes have come than were sent" unless @outstanding.start_with?(bytes)

      @outstanding = @outstanding.byteslice(bytes.bytesize..)
    end
  end

  # One thread's fibers, which do anything until the time is up.
  class Actor
    # How often each is done.
    STEPS = { poke: 600, connect: 800, tls: 8, file: 20, copy: 20, hand_over: 80, child: 1, thread: 2 }
            .flat_map { |step, weight| [step] * weight }.freeze

    attr_reader :counts, :streams

    def initialize(soak, seed, held)
      @soak = soak
      @random = Random.new(seed)
      @held = held
      @counts = Hash.new(0)
      @cancellable = {}
      @streams = []
    end

    def run
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.scheduler.abort_on_exception = true
      Fiber.schedule do
        hold
        @soak.arrived
        fibers = Array.new(FIBERS) { Fiber.schedule { step until @soak.over? } }
        Fiber.schedule { cancel while fibers.any?(&:alive?) }
      end
      Fiber.scheduler.run
      Fiber.schedule { @soak.leave { end_streams } }
      Fiber.set_scheduler(nil)
    end

    private

    def step = __send__(STEPS.sample(random: @random))

    # Opens those that stay.
    def hold
      slots = Thread::SizedQueue.new(50)
      @held.times do
        slots << 1
        Fiber.schedule do
          stream = Stream.new(TCPSocket.new("127.0.0.1", @soak.port(@random)))
          @counts[:opened] += 1
          # Both ends have the memory that they will need.
          3.times { @counts[:bytes] += stream.exchange(@random) }
          stream.finish
          @streams << stream
          slots.pop
        end
      end
      sleep 0.01 until @streams.size == @held
      @free = @streams.dup
    end

    def end_streams
      @streams.each do |stream|
        stream.end
        @counts[:closed] += 1
      end
    end

    # Exchanges something on one of those that stay, until something ends it.
    def poke
      return sleep(0.001) if @free.empty?

      stream = @free.delete_at(@random.rand(@free.size))
      interruptible { @random.rand(1..8).times { @counts[:bytes] += stream.exchange(@random) } }
      @free << stream
    end

    # A whole connection, or one that is given up.
    def connect
      stream = nil
      interruptible do
        stream = Stream.new(TCPSocket.new("127.0.0.1", @soak.port(@random)))
        @counts[:opened] += 1
        @random.rand(1..3).times { @counts[:bytes] += stream.exchange(@random) }
        stream.finish
      end
    ensure
      stream&.close
      @counts[:closed] += 1 if stream
    end

    def tls
      io = TCPSocket.new("127.0.0.1", @soak.tls_port)
      ssl = OpenSSL::SSL::SSLSocket.new(io, @soak.client_context)
      ssl.sync_close = true
      UM::SSL.accelerate(ssl, kernel: @random.rand(2).zero?)
      ssl.connect
      bytes = @random.bytes(@random.rand(1..40_000))
      ssl.write(bytes)
      same(bytes, ssl.read(bytes.bytesize))
      @counts[:tls] += 1
    ensure
      ssl ? ssl.close : io&.close
    end

    def file
      with_file { |file, bytes| same(bytes, file.read) }
      @counts[:files] += 1
    end

    # A file to a socket, and back.
    def copy
      with_file do |file, bytes|
        reader, writer = UNIXSocket.pair
        Fiber.schedule do
          IO.copy_stream(file, writer)
          writer.close
        end
        same(bytes, reader.read)
        reader.close
      end
      @counts[:copies] += 1
    end

    def with_file
      bytes = @random.bytes(@random.rand(1..100_000))
      Tempfile.create("um-soak") do |file|
        file.binmode
        file.write(bytes)
        file.rewind
        yield file, bytes
      end
    end

    # Something by way of a queue that all threads use.
    def hand_over
      number = @random.rand(1000)
      @soak.queue << number
      @counts[:given] += number
      @counts[:taken] += @soak.queue.pop
    end

    def child
      word = @random.rand(1_000_000).to_s
      same(word, IO.popen(["cat"], "r+") { |cat| cat.write(word) && (cat.close_write || cat.read) })
      same(3, UM::Process.spawn("exit 3").wait.exitstatus)
      @counts[:children] += 2
    end

    # A thread with a machine of its own, which comes and goes.
    def thread
      # A crowd of them would keep each other from Ruby's lock.
      return sleep(0.001) if @soak.crowded?

      bytes = @random.bytes(1000)
      port = @soak.port(@random)
      got = Thread.new do
        machine = UM.new
        fd = machine.tcp_connect("127.0.0.1", port)
        machine.send(fd, bytes, bytes.bytesize, UM::MSG_WAITALL)
        machine.io(fd) { |io| io.read(bytes.bytesize) }
      ensure
        machine.close(fd)
      end.value
      same(bytes, got)
      @counts[:threads] += 1
    end

    def same(sent, got)
      raise "#{sent.inspect[0, 50]} was sent, and #{got.inspect[0, 50]} has come" unless sent == got
    end

    # Runs the block until it ends, its time is up or somebody cancels it.
    def interruptible(&)
      fiber = Fiber.current
      @cancellable[fiber] = true
      stopped { Timeout.timeout([0.0005, 0.005, 10].sample(random: @random), &) }
      @cancellable.delete(fiber)
      # The second of two is raised at the next wait.
      stopped { sleep 0 }
    end

    def stopped
      yield
    rescue Cancel
      @counts[:cancels] += 1
    rescue Timeout::Error
      @counts[:timeouts] += 1
    end

    def cancel
      sleep 0.001
      fiber = @cancellable.keys.sample(random: @random) or return
      @cancellable.delete(fiber)
      fiber.raise(Cancel)
    end
  end

  attr_reader :queue, :tls_port, :client_context

  def initialize(seconds, out: $stdout, seed: Random.new_seed)
    @seconds = seconds
    @out = out
    @seed = seed
    @queue = Thread::Queue.new
    @over = false
    @arrived = Thread::Queue.new
    @leaving = Thread::Queue.new
  end

  # Runs; raises if anything is not as it ought to be.
  def run
    @descriptors = descriptors
    held = possible(HELD)
    @out.puts "#{@seconds} s, #{held} connections held, #{THREADS} threads with #{FIBERS} fibers each, seed #{@seed}"
    serve
    @actors = Array.new(THREADS) { |number| Actor.new(self, @seed + number, held / THREADS) }
    threads = @actors.map { |actor| Thread.new { actor.run } }
    THREADS.times { @arrived.pop }
    memory = watch
    @over = true
    threads.size.times { @arrived.pop }
    grown = settled_memory
    THREADS.times { @leaving << 1 }
    threads.each(&:join)
    stop_servers
    check(memory, grown)
  end

  # Whether the time is up.
  def over? = @over

  # Whether there are more threads than there have to be.
  def crowded? = Thread.list.size > 4 * THREADS + 16

  # An actor's part is done: its connections are open, or its time is up.
  def arrived = @arrived << 1

  # An actor waits until memory has been looked at, and gives up what it holds.
  def leave
    arrived
    @leaving.pop
    yield
  end

  # One of the servers' ports.
  def port(random) = @ports.sample(random:)

  private

  # How many connections there may be: both ends of each are in this process.
  def possible(wanted)
    wanted = [wanted, @seconds * 170].min
    needed = (2 * wanted) + SPARE
    soft, hard = Process.getrlimit(:NOFILE)
    soft = raised_to(needed, hard) if soft < needed
    return wanted if soft >= needed

    @out.puts "#{soft} descriptors are allowed, #{needed} would be needed (ulimit -n): fewer connections are held"
    (soft - SPARE) / 2
  end

  # The limit of descriptors, once it is as near to what is needed as it may be.
  def raised_to(needed, hard)
    Process.setrlimit(:NOFILE, needed, [needed, hard].max)
    needed
  rescue Errno::EPERM
    Process.setrlimit(:NOFILE, hard, hard)
    hard
  end

  # Servers that send back what they get: of a machine's own methods, of plain Ruby under the scheduler, of TLS.
  def serve
    @listening = Array.new(3) { TCPServer.new("127.0.0.1", 0).tap { |server| server.listen(1024) } }
    *@ports, @tls_port = @listening.map { |server| server.local_address.ip_port }
    certificate = Identity.certificate("IP:127.0.0.1")
    context = OpenSSL::SSL::SSLContext.new.tap { |server| server.add_certificate(certificate, Identity.key) }
    @client_context = OpenSSL::SSL::SSLContext.new
    @client_context.cert_store = OpenSSL::X509::Store.new.tap { |store| store.add_cert(certificate) }
    @client_context.verify_mode = OpenSSL::SSL::VERIFY_PEER
    @servers = [
      Thread.new { serve_by_machine(@listening[0].fileno) },
      Thread.new { serve_by_scheduler(@listening[1]) { |io| io } },
      Thread.new { serve_by_scheduler(@listening[2]) { |io| tls_of(io, context) } }
    ]
  end

  def serve_by_machine(server)
    machine = UM.new
    fibers = 0
    machine.accept_each(server) do |fd|
      fibers += 1
      machine.spin do
        buffer = +""
        machine.send(fd, buffer, buffer.bytesize, UM::MSG_WAITALL) while machine.recv(fd, buffer, 16_384, 0).positive?
      rescue Errno::ECONNRESET, Errno::EPIPE
        # It was given up.
      ensure
        machine.close(fd)
        fibers -= 1
      end
    end
    machine.sleep(0.001) until fibers.zero?
  end

  def serve_by_scheduler(server)
    Fiber.set_scheduler(UM::FiberScheduler.new)
    Fiber.schedule do
      loop do
        connection = server.accept
        Fiber.schedule do
          io = yield connection
          loop { io.write(io.readpartial(16_384)) }
        rescue EOFError, Errno::ECONNRESET, Errno::EPIPE, OpenSSL::SSL::SSLError
          # It has ended, or was given up.
        ensure
          (io || connection).close
        end
      end
    rescue Errno::EINVAL, IOError
      # It is shut down.
    end
    Fiber.set_scheduler(nil)
  end

  def tls_of(io, context)
    ssl = OpenSSL::SSL::SSLSocket.new(io, context)
    ssl.sync_close = ssl.sync = true
    UM::SSL.accelerate(ssl).accept
  end

  def stop_servers
    @listening.each { |server| server.shutdown(:RD) rescue Errno::ENOTCONN }
    expect @servers.all? { |server| server.join(PATIENCE) }, "a server has connections that nobody has closed"
    @listening.each(&:close)
  end

  # Says how it goes until the time is up; returns the memory after the first tenth.
  def watch
    start = now
    tenth = nil
    step = [@seconds / 60.0, 1].max
    until (elapsed = now - start) >= @seconds
      tenth ||= settled_memory if elapsed >= @seconds / 10.0
      sleep [step, @seconds - elapsed].min
      report(now - start)
    end
    tenth
  end

  def report(elapsed)
    counts = totals
    shown = %i[opened closed cancels timeouts tls files copies children threads].map { |name| "#{counts[name].to_i} #{name}" }
    @out.puts "#{elapsed.round.to_s.rjust(5)} s  #{shown.join(", ")}, #{counts[:bytes].to_i >> 20} MB; " \
              "#{memory >> 10} MB resident, #{descriptors} descriptors open"
    @out.flush
  end

  def totals = @actors.map(&:counts).reduce { |one, other| one.merge(other) { |_, a, b| a + b } }

  # What is left over.
  def check(memory, grown)
    counts = totals
    report(@seconds)
    GC.start
    allowed = @seconds < SHORT ? GROWTH_WHILE_SHORT : GROWTH
    expect counts[:opened] == counts[:closed], "#{counts[:opened]} connections were opened, #{counts[:closed]} closed"
    expect counts[:given] == counts[:taken], "#{counts[:given]} was given to other threads, #{counts[:taken]} taken"
    expect descriptors <= @descriptors, "#{descriptors} descriptors are open, #{@descriptors} were at the start"
    expect grown <= memory * (1 + allowed), "#{grown} KB are resident at the end, #{memory} were after the first tenth"
    @out.puts "all bytes came back; #{memory >> 10} MB were resident after the first tenth, #{grown >> 10} MB at the end; " \
              "#{descriptors} descriptors are open, #{@descriptors} were at the start"
  end

  def expect(truth, text)
    raise "soak (seed #{@seed}): #{text}" unless truth
  end

  def settled_memory
    GC.start
    memory
  end

  # In KB.
  def memory = File.read("/proc/self/status")[/VmRSS:\s+(\d+)/, 1].to_i

  def descriptors = Dir.children("/proc/self/fd").size

  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
end

if $PROGRAM_NAME == __FILE__
  Thread.abort_on_exception = true
  Soak.new((Float(ARGV.fetch(0)) * 60).ceil, seed: Integer(ENV.fetch("SEED", Random.rand(1 << 32)))).run
end

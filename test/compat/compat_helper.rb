# frozen_string_literal: true

require "json"
require "net/http"
require "shellwords"
require_relative "../test_helper"

# Tests of real libraries, on real servers: programs in fibers, beside a fiber that ticks every 5 ms.
class CompatTest < SchedulerTest
  # The file for the figures that docs/compatibility.md is made of, a line of JSON each. Where it is named, the programs are of their whole
  # size, and run in threads too.
  FIGURES = ENV.fetch("UM_COMPAT_FIGURES", nil)
  TICK = 0.005

  # What starts the parts of a program: fibers of the scheduler, or threads.
  Crowd = Data.define(:kind, :starter) do
    def start(&) = starter.call(&)

    # Runs the block for each object, all at once; returns what it returns, in their order. What the first to fail raises, is raised.
    def all(objects)
      ended = Queue.new
      objects = objects.to_a
      objects.each_with_index do |object, index|
        start do
          ended << [index, yield(object), nil]
        rescue Exception => error # rubocop:disable Lint/RescueException -- a failed assertion too
          ended << [index, nil, error]
        end
      end
      results = Array.new(objects.size)
      objects.size.times do
        index, result, error = ended.pop
        raise error if error

        results[index] = result
      end
      results
    end
  end

  FIBERS = Crowd.new("fibers", ->(&block) { Fiber.schedule(&block) })
  THREADS = Crowd.new("threads", ->(&block) { Thread.new(&block) })

  # Loads libraries, or skips the test: `script/compat` fetches those that Ruby does not bring.
  def need(*libraries)
    libraries.each { |library| require library }
  rescue LoadError => error
    skip "#{error.message}: script/compat fetches it"
  end

  # A program of Debian's, with where it lies.
  def need_command(name)
    folders = ENV.fetch("PATH").split(":") + %w[/usr/sbin] + Dir.glob("/usr/lib/postgresql/*/bin").sort.reverse
    folders.map { |folder| File.join(folder, name) }.find { |path| File.executable?(path) } || skip("#{name} is not there: script/compat installs it")
  end

  # What takes long, or servers and gems that script/test does not fetch, is for script/compat.
  def only_measured
    skip "script/compat runs it" unless FIGURES
  end

  # The number, or where figures are wanted the larger one.
  def sized(quick, whole) = FIGURES ? whole : quick

  # Runs the block in a fiber under a scheduler, with FIBERS, beside the one that ticks; then, where figures are wanted, in a thread with
  # THREADS, which says what is right. Each kind warms up once.
  #
  # @param row [String] of the table
  # @param program [String] what the block does
  # @param requests [Integer] how often
  # @param versions [Hash] of library or server to its version
  def beside_ticks(row, program, requests, versions = {}, &)
    return run_in(FIBERS, &) unless FIGURES

    figures = { FIBERS => nil, THREADS => nil }
    2.times { figures.each_key { |crowd| figures[crowd] = run_in(crowd, &) } }
    line = { row:, program:, requests:, versions:, ruby: RUBY_VERSION, fibers: figures[FIBERS], threads: figures[THREADS] }
    File.write(FIGURES, "#{line.to_json}\n", mode: "a")
  end

  # A PostgreSQL of the block's own.
  def with_postgresql
    only_measured
    need "pg", "connection_pool"
    postgres, initdb = %w[postgres initdb].map { |name| need_command(name) }
    # PostgreSQL does not run as root.
    as = Process.uid.zero? ? %w[setpriv --reuid=postgres --regid=postgres --clear-groups] : []
    configured = lambda do |server|
      unless File.exist?(server.path("data"))
        FileUtils.chmod(0o777, server.folder)
        system(*as, initdb, "-D", server.path("data"), "-U", "postgres", "-A", "trust", "--no-sync", out: File::NULL, exception: true)
      end
      [*as, postgres, "-D", server.path("data"), "-p", server.port.to_s, "-h", "127.0.0.1", "-k", server.folder, "-c", "fsync=off", "-c", "max_connections=100"]
    end
    LocalServer.run(configured) do |server|
      @address = { host: "127.0.0.1", port: server.port, user: "postgres", dbname: "postgres" }
      # It listens before it takes queries.
      begin
        connect.close
      rescue PG::ConnectionBad
        sleep 0.01
        retry
      end
      @versions = { "pg" => PG::VERSION, "PostgreSQL" => IO.popen([postgres, "--version"], &:read)[/\d[\d.]+/] }
      yield server
    ensure
      # Without a wait for connections.
      server.stop(:INT)
    end
  end

  def connect = PG.connect(**@address)

  private

  # Returns the longest gap between two ticks and the CPU time of this process, in seconds.
  def run_in(crowd)
    GC.start
    cpu = Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID)
    gap = ended = nil
    program = lambda do
      crowd.start { gap = tick { ended } }
      crowd.all([crowd]) { yield crowd }
    ensure
      ended = true
    end
    crowd == FIBERS ? in_fiber { program.call } : Thread.new(&program).tap { |thread| thread.report_on_exception = false }.value
    Thread.pass until gap
    { gap:, cpu: Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID) - cpu }
  end

  # Ticks until the block is true; returns the longest gap.
  def tick
    longest = 0
    last = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    until yield
      sleep TICK
      now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      longest = [longest, now - last - TICK].max
      last = now
    end
    longest
  end
end

# For tests of web servers: the load of fibers on one that has /answer?name=… and /slow?name=…
module UnderLoad
  CLIENTS = 50

  def setup
    super
    @slow = Queue.new
  end

  # Loads a server on a port with the requests of fibers, whose answers are `expected(name)`; then stops it while some wait for theirs,
  # which come.
  #
  # @yield stops it, gracefully
  def load(crowd, port, requests)
    crowd.all(0...CLIENTS) do |number|
      Net::HTTP.start("127.0.0.1", port) do |http|
        requests.times { |request| assert_equal expected("#{number}-#{request}"), http.get("/answer?name=#{number}-#{request}").body }
      end
    end
    if CompatTest::FIGURES && (wrk = ENV["PATH"].split(":").map { |folder| File.join(folder, "wrk") }.find { |path| File.executable?(path) })
      output = IO.popen([wrk, "-t1", "-c20", "-d1", "http://127.0.0.1:#{port}/answer?name=wrk"], &:read)
      assert_match(/Requests\/sec/, output)
      refute_match(/Non-2xx|Socket errors/, output)
    end
    under_way = Queue.new
    crowd.start { 5.times { under_way.pop } && yield }
    slow = crowd.all(0...5) do |number|
      TCPSocket.open("127.0.0.1", port) do |socket|
        socket.write("GET /slow?name=#{number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        @slow.pop
        under_way << true
        socket.read
      end
    end
    slow.each_with_index { |answer, number| assert answer.end_with?("slow #{number}"), answer }
  end

  # Called by a handler: says that it has begun, and goes on when others have too.
  def slowly(name)
    @slow << true
    Fiber.set_scheduler(UM::FiberScheduler.new)
    Fiber.schedule { sleep 0.1 }
    Fiber.set_scheduler(nil)
    "slow #{name}"
  end

  def on_webrick(name, app, versions)
    need "rackup/handler/webrick"
    requests = sized(5, 40)
    beside_ticks(self.class::ROW, "#{name}: requests of 50, and a graceful stop", requests * CLIENTS, versions) do |crowd|
      started = Queue.new
      ended = Queue.new
      crowd.start do
        options = { Host: "127.0.0.1", Port: 0, Logger: WEBrick::Log.new(File::NULL), AccessLog: [], MaxClients: 200 }
        Rackup::Handler::WEBrick.run(app, **options) { |server| started << server }
      ensure
        ended << true
      end
      server = started.pop
      load(crowd, server.listeners.first.addr[1], requests) { server.shutdown }
      ended.pop
    end
  end

  def on_puma(name, app, versions)
    requests = sized(5, 40)
    beside_ticks(self.class::ROW, "#{name}: requests of 50, and a graceful stop", requests * CLIENTS, versions) do |crowd|
      server = Puma::Server.new(app, nil, min_threads: 10, max_threads: 10, log_writer: Puma::LogWriter.null)
      port = server.add_tcp_listener("127.0.0.1", 0).addr[1]
      server.run
      load(crowd, port, requests) { server.stop(true) }
    end
  end
end

# A server of Debian's on loopback, with a folder of its own.
class LocalServer
  attr_reader :folder, :port

  # @param command [Proc] of the server to its command, as Process.spawn takes it; it may write files into the folder before
  def initialize(folder, command)
    @folder = folder
    @port = TCPServer.open("127.0.0.1", 0) { |server| server.addr[1] }
    @command = command
  end

  # A server for as long as the block runs.
  def self.run(command)
    Dir.mktmpdir("um") do |folder|
      server = new(folder, command)
      server.start
      yield server
    ensure
      server&.stop
    end
  end

  # Starts it and waits until it answers. Its own program waits in plain Ruby's ways, or the scheduler's.
  def start
    @pid = Process.spawn(*@command.call(self), in: File::NULL, out: log, err: log)
    begin
      TCPSocket.new("127.0.0.1", port).close
    rescue Errno::ECONNREFUSED
      raise "the server has ended: #{File.read(log)}" if Process.wait(@pid, Process::WNOHANG)

      sleep 0.01
      retry
    end
  end

  def stop(signal = :TERM)
    return unless @pid

    Process.kill(signal, @pid)
    Process.wait(@pid)
    @pid = nil
  end

  def path(name) = File.join(folder, name)
  def log = path("log")
end

# frozen_string_literal: true

require "json"
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

# frozen_string_literal: true

# Keeps workers alive: starts them, starts those anew that end, and stops them all at SIGTERM or SIGINT: gently, then
# hard. A worker that ends again and again is started at ever longer intervals.
#
#   script/with-ruby ruby examples/supervisor.rb [--workers=4] [--grace=5] COMMAND [ARGUMENT…]

require "optparse"
require "uringmachine"

class Supervisor
  # `grace` is how many seconds a worker has to end by SIGTERM. `backoff` are the shortest and the longest time until one
  # that has ended is started anew; it doubles each time, unless the worker has lived for `healthy` seconds.
  # The block is given a worker's number and starts it: it returns a UM::Process.
  def initialize(count, grace: 5, backoff: 0.1..10, healthy: 10, &start)
    @count = count
    @grace = grace
    @backoff = backoff
    @healthy = healthy
    @start = start
    @running = {}
    # Closed when there is to be no more starting.
    @stop = Queue.new
  end

  # Starts the workers; a fiber looks after each. For a fiber under a UM::FiberScheduler.
  def start
    @count.times { |number| Fiber.schedule { keep(number) } }
  end

  # Stops the workers. They are gone when the fibers that `start` made have ended.
  def stop
    return if @stop.closed?

    @stop.close
    @running.each { |number, process| Fiber.schedule { end_gently(number, process) } }
  end

  # Has SIGTERM and SIGINT stop the workers, and waits until they have.
  def run
    supervisor = Process.pid
    signals = Queue.new
    # A child that has no handlers of its own yet has these.
    %i[TERM INT].each { |signal| trap(signal) { Process.pid == supervisor ? signals << signal : exit } }
    Fiber.schedule do
      signals.pop
      stop
    end
    start
    Fiber.scheduler.run
  end

  private

  def keep(number)
    delay = @backoff.begin
    until @stop.closed?
      started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      status = live(number)
      break say(number, "ended by #{describe(status)}") if @stop.closed?

      healthy = Process.clock_gettime(Process::CLOCK_MONOTONIC) - started >= @healthy
      delay = @backoff.begin if healthy
      say(number, "ended by #{describe(status)}, starts anew in #{delay} s")
      # Ends early when the queue is closed.
      @stop.pop(timeout: delay)
      delay = [delay * 2, @backoff.end].min
    end
  end

  # A worker's life, from its start to its end; returns its status.
  def live(number)
    process = @running[number] = @start.call(number)
    say(number, "started as #{process.pid}")
    process.wait
  ensure
    @running.delete(number)
    process&.close
  end

  def end_gently(number, process)
    process.kill(:TERM)
    return if process.wait(timeout: @grace)

    say(number, "does not end: killed")
    process.kill(:KILL)
  rescue Errno::ESRCH, UM::Error
    # It has ended by itself, and may be closed.
  end

  def describe(status)
    status.respond_to?(:signaled?) && status.signaled? ? "SIG#{Signal.signame(status.termsig)}" : "status #{status.exitstatus}"
  end

  def say(number, text)
    $stdout.puts "worker #{number} #{text}"
    $stdout.flush
  end
end

if $PROGRAM_NAME == __FILE__
  options = { workers: 4, grace: 5.0 }
  OptionParser.new do |parser|
    parser.on("--workers=COUNT", Integer)
    parser.on("--grace=SECONDS", Float)
  end.order!(into: options)
  command = ARGV.empty? ? ["sleep 1; exit $WORKER"] : ARGV

  Fiber.set_scheduler(UM::FiberScheduler.new)
  Fiber.schedule do
    Supervisor.new(options[:workers], grace: options[:grace]) do |number|
      UM::Process.spawn({ "WORKER" => number.to_s }, *command)
    end.run
  end
end

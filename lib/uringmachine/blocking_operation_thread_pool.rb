# frozen_string_literal: true

require "etc"

class UringMachine
  # Threads that run what would block a machine's own. Any number of machines, of any thread, may share a pool.
  class BlockingOperationThreadPool
    # @param max [Integer] the most threads; they are started when they are first needed
    # @raise [TypeError] if max is no Integer
    # @raise [ArgumentError] if it is not positive
    # @example
    #   pool = UM::BlockingOperationThreadPool.new(4)
    def initialize(max = Etc.nprocessors)
      raise TypeError, "max must be an Integer, not #{max.class}" unless max.is_a?(Integer)
      raise ArgumentError, "max must be positive" unless max.positive?

      @max = max
      reset
    end

    # Runs something on a thread of the pool and waits for it; other fibers of the machine run meanwhile.
    #
    # @param machine [UringMachine] of the calling thread
    # @param callable [#call]
    # @return [Object] what it returns
    # @raise [Exception] what it raises. An exception that ends the wait leaves it running, and its result is dropped
    # @raise [TypeError] if it cannot be called
    # @example
    #   pool.process(machine, -> { File.read("/proc/cpuinfo") })
    def process(machine, callable)
      raise TypeError, "callable must respond to call" unless callable.respond_to?(:call)

      reset unless @pid == ::Process.pid
      answer = Queue.new
      job = [callable, answer, machine]
      @jobs << job
      start_thread if @jobs.num_waiting.zero? && @threads.size < @max
      succeeded, result = machine.shift(answer)
      raise result unless succeeded

      result
    ensure
      # One that no thread has begun is not begun any more.
      job&.clear
    end

    private

    # A child of fork has none of its parent's threads.
    def reset
      @pid = ::Process.pid
      @jobs = Thread::Queue.new
      @threads = []
    end

    def start_thread
      @threads << Thread.new(@jobs) do |jobs|
        Thread.current.name = "um-pool"
        loop do
          callable, answer, machine = jobs.pop
          machine&.push(answer, run(callable))
        end
      end
    end

    def run(callable)
      [true, callable.call]
    rescue Exception => e # rubocop:disable Lint/RescueException -- it is raised where the caller waits
      [false, e]
    end
  end
end

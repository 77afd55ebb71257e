# frozen_string_literal: true

require "etc"

class UringMachine
  # Threads that run what would block a machine's own. Any number of machines, of any thread, may share a pool.
  class BlockingOperationThreadPool
    # @param max [Integer] the most threads; they are started when they are needed, and end when they have not been for
    #   a while
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
    # @raise [UringMachine::Error] if it ends its thread (Thread.exit), or somebody kills that
    # @raise [ThreadError] if no thread can be started, and there is none
    # @raise [TypeError] if it cannot be called
    # @example
    #   pool.process(machine, -> { File.read("/proc/cpuinfo") })
    def process(machine, callable)
      raise TypeError, "callable must respond to call" unless callable.respond_to?(:call)

      reset unless @pid == ::Process.pid
      answer = Queue.new
      job = [callable, answer, machine]
      outcome = AGAIN
      while outcome.equal?(AGAIN)
        enqueue(job)
        outcome = machine.shift(answer)
      end
      # A value that the fiber was scheduled with.
      return outcome unless outcome.is_a?(Array)

      succeeded, result = outcome
      raise result unless succeeded

      result
    ensure
      # One that no thread has begun is not begun any more.
      job&.clear
    end

    private

    # Seconds that a thread waits for more.
    IDLE = 10
    # What a job is answered that is to be queued anew.
    AGAIN = [].freeze
    # Whatever is raised in a thread of ours, a kill too, comes where it does no harm.
    HELD_BACK = { Object => :never }.freeze
    WHILE_IDLE = { Object => :on_blocking }.freeze
    WHILE_BUSY = { Object => :immediate }.freeze
    private_constant :IDLE, :AGAIN, :HELD_BACK, :WHILE_IDLE, :WHILE_BUSY

    # A child of fork has none of its parent's threads.
    def reset
      @pid = ::Process.pid
      @jobs = Thread::Queue.new
      @threads = []
    end

    def enqueue(job)
      @jobs << job
      # Whoever waits there takes one, at most.
      return unless @jobs.size > @jobs.num_waiting

      @threads.select!(&:alive?)
      start_thread if @threads.size < @max
    rescue ThreadError
      raise if @threads.empty?
    end

    def start_thread
      @threads << Thread.handle_interrupt(HELD_BACK) { Thread.new(@jobs) { |jobs| work(jobs) } }
    end

    def work(jobs)
      Thread.current.name = "um-pool"
      Thread.current.report_on_exception = false
      Thread.handle_interrupt(WHILE_IDLE) do
        while (job = jobs.pop(timeout: IDLE))
          callable, answer, machine = job
          run(callable, answer, machine) if machine
        end
      end
    ensure
      give_back(jobs)
    end

    def run(callable, answer, machine)
      outcome = nil
      Thread.handle_interrupt(WHILE_BUSY) { outcome = [true, callable.call] }
    rescue Exception => e # rubocop:disable Lint/RescueException -- it is raised where the caller waits
      outcome ||= [false, e]
    ensure
      machine.push(answer, outcome || ended)
    end

    # What a job is answered that has ended its thread, or whose thread was killed.
    def ended = [false, Error.new("the thread of the job was ended")]

    # The thread ends: what it might have done is for another one, which those who wait for it start.
    def give_back(jobs)
      @threads.delete(Thread.current)
      until jobs.empty?
        _, answer, machine = jobs.pop(true)
        machine&.push(answer, AGAIN)
      end
    rescue ThreadError
      # Another one has taken the last.
    end
  end
end

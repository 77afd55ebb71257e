# frozen_string_literal: true

class UringMachine
  # Core methods that reach no hook of Fiber::Scheduler and would stall every fiber of the thread. Each acts only in a
  # fiber under a UM::FiberScheduler, and else is Ruby's own. docs/scheduler.md lists them, and what still stalls. Here is
  # what they share; each is in the file of the class that it is prepended to.
  module CoreGaps
    # The machine that the current fiber's scheduler runs on, or nil.
    def self.machine = FiberScheduler.current&.machine

    # Has what the machine fails by say what it does in plain Ruby: the function's name, and the file's.
    def self.naming(io, function)
      yield
    rescue SystemCallError => e
      raise unless (path = io.path)

      raise e.class.new(path, function), cause: nil
    end

    # Threads for what neither the ring nor a hook can do, shared by the schedulers of a Ractor. As many as there are
    # calls, since a name server may take its time: those beyond wait.
    def self.pool = Ractor.store_if_absent(:um_core_gaps_pool) { Lookups.new(MOST_THREADS) }

    MOST_THREADS = 1024

    # A program that kills threads does not mean the look-ups of its fibers.
    class Lookups < BlockingOperationThreadPool
      private

      # One whose thread was killed is made anew.
      def ended = AGAIN
    end
  end
  private_constant :CoreGaps
end

# frozen_string_literal: true

class UringMachine
  # Has a block run in every child of fork from now on, by the fiber that forked: to connect anew, to start loops. The
  # blocks run in the order they were given, after the child has got its scheduler, and before fork returns there.
  #
  # A block that fails is reported to $stderr, and the others run; `exit` and the like end the child.
  #
  # @method UringMachine.after_fork(&block)
  # @yieldparam scheduler [UringMachine::FiberScheduler, nil] the child's, see UM::FiberScheduler#process_fork
  # @return [Proc] the block
  # @raise [ArgumentError] without a block
  # @example
  #   UM.after_fork { |scheduler| $database = Database.connect }
  def self.after_fork(&block)
    raise ArgumentError, "no block given (after_fork)" unless block

    AfterFork.add(block)
    block
  end

  # Makes a process a child of its own. `parents` is the scheduler of the thread that forked.
  def self.forked(parents)
    forsake
    scheduler = nil
    if FiberScheduler.behind(parents)
      # Ruby 4.0 has done that.
      Fiber.set_scheduler(nil) if Fiber.scheduler
      attempt { scheduler = parents.process_fork }
    end
    AfterFork.blocks.each { |block| attempt { block.call(scheduler) } }
  end

  # The blocks of a Ractor: those of another one cannot be called.
  module AfterFork
    # Adds a block.
    def self.add(block)
      Ractor.current[:um_after_fork] = blocks + [block]
    end

    # The blocks, in the order they were given.
    def self.blocks = Ractor.current[:um_after_fork] || []
  end
  private_constant :AfterFork

  # What runs in the child must not go on as the parent's program, whose next lines may be a rescue.
  def self.attempt
    yield
  rescue StandardError, NotImplementedError => e
    $stderr.write(e.full_message)
  end

  private_class_method :forked, :attempt
end

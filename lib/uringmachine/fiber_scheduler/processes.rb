# frozen_string_literal: true

class UringMachine
  # Processes for plain Ruby code.
  class FiberScheduler
    # As UringMachine#process_open, for the scheduler's fibers.
    #
    # @param pid [Integer]
    # @yieldparam process [UringMachine::Process]
    # @return [UringMachine::Process, Object] the process, or what the block returns
    # @raise [Errno::ESRCH] if there is no such process
    # @raise [TypeError] if pid is no Integer
    # @raise [ArgumentError] if it is not positive, or too large
    # @example
    #   process = Fiber.scheduler.process_open(pid)
    #   process.wait(timeout: 0.5) #=> nil
    def process_open(pid, &block) = machine.process_open(pid, &block)
  end
end

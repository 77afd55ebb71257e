# frozen_string_literal: true

class UringMachine
  # What a scheduler tells of itself.
  class FiberScheduler
    # As `UringMachine#report`, of the scheduler's machine.
    #
    # @param frames [Integer] lines of each backtrace, at most
    # @return [UringMachine::Report]
    # @raise [TypeError] if frames is no Integer
    # @raise [ArgumentError] if it is negative
    # @example
    #   puts Fiber.scheduler.report
    def report(frames: Report::FRAMES) = machine.report(frames:)
  end
end

# frozen_string_literal: true

class UringMachine
  # Which scheduler is meant.
  class FiberScheduler
    # The one that the current fiber waits with. What a program has installed may be an object that delegates to it:
    # whatever here needs to know asks this method, or `behind`.
    #
    # @return [UringMachine::FiberScheduler, nil] nil in a fiber that blocks, and under another library's scheduler
    # @example
    #   UM::FiberScheduler.current&.machine
    def self.current = behind(Fiber.current_scheduler)

    # The one that an object is, or delegates to.
    #
    # @param scheduler [Object]
    # @return [UringMachine::FiberScheduler, nil]
    # @example
    #   UM::FiberScheduler.behind(SimpleDelegator.new(scheduler)) #=> scheduler
    def self.behind(scheduler)
      return scheduler if scheduler.nil? || FiberScheduler === scheduler # rubocop:disable Style/CaseEquality -- it may be a BasicObject

      scheduler.uring_scheduler if scheduler.respond_to?(:uring_scheduler)
    end

    # Itself: what an object that delegates to it answers, too.
    #
    # @return [UringMachine::FiberScheduler]
    # @example
    #   Fiber.scheduler.uring_scheduler.machine
    def uring_scheduler = self
  end
end

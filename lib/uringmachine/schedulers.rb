# frozen_string_literal: true

class UringMachine
  # What a UM::FiberScheduler is beyond Ruby's hooks.
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

    # The fibers that the scheduler has started and that have not ended, as they are now.
    #
    # @return [ObjectSpace::WeakMap] with the fibers as keys
    # @example
    #   scheduler.fiber_map.size #=> 0
    def fiber_map
      scheduled.each_with_object(ObjectSpace::WeakMap.new) { |fiber, map| map[fiber] = true }
    end

    # Waits for fibers to end: those given, of the scheduler's machine, or all that the scheduler has started, but for the one that
    # calls. What they fail by is not raised.
    #
    # @param fibers [Array<Fiber>]
    # @return [Integer] how many there were
    # @raise [TypeError] if one is no Fiber
    # @example
    #   scheduler.join(Fiber.schedule { sleep 1 }) #=> 1
    def join(*fibers)
      fibers.each { |fiber| raise TypeError, "fibers must be Fibers, not #{fiber.class}" unless fiber.is_a?(Fiber) }
      fibers = scheduled - [Fiber.current] if fibers.empty?
      machine.await(fibers)
    end
  end
end

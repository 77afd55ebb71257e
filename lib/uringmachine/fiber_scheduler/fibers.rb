# frozen_string_literal: true

class UringMachine
  # The scheduler's fibers.
  class FiberScheduler
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

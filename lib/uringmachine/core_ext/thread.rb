# frozen_string_literal: true

class UringMachine
  # What every Thread gets.
  module ThreadExtensions
    # The thread's own machine, made at its first use. A child of fork gets a new one.
    #
    # @return [UringMachine]
    # @example
    #   Thread.current.machine.sleep(0.1)
    def machine
      @um_machine = nil unless @um_machine_pid == ::Process.pid
      @um_machine_pid = ::Process.pid
      @um_machine ||= UringMachine.new
    end
  end

  # Thread.handle_interrupt holds back what would be raised in a thread, and so what Timeout raises. In a fiber under a
  # UM::FiberScheduler timeouts are the fiber's, and so are the masks that hold them back.
  module Masks
    # As Thread.handle_interrupt.
    def handle_interrupt(*mask, &block)
      scheduler = FiberScheduler.current
      return super unless block && mask.size == 1 && scheduler

      scheduler.__send__(:masked, mask.first) { super }
    end
  end

  # To whoever asks in it, the thread of a fiber that is killed, or unwound with its thread, is aborting, as one is that is killed itself.
  # ActiveRecord and Sequel ask so when a transaction's block is left by no exception, and roll back: else they commit the half of it.
  module Aborting
    # As Thread#status.
    def status = equal?(Thread.current) && CoreGaps.unwinding? ? "aborting" : super
  end

  module CoreGaps
    # Whether the current fiber is being killed, or its scheduler's fibers are being unwound.
    def self.unwinding? = Fiber.current.instance_variable_get(:@um_killed) || FiberScheduler.current&.__send__(:unwinding?)
  end

  Thread.include(ThreadExtensions)
  Thread.prepend(Aborting)
  Thread.singleton_class.prepend(Masks)
  private_constant :Masks, :Aborting
end

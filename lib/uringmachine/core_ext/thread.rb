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

  Thread.include(ThreadExtensions)
  Thread.singleton_class.prepend(Masks)
  private_constant :Masks
end

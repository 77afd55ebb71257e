# frozen_string_literal: true

class UringMachine
  # Thread.handle_interrupt holds back what would be raised in a thread, and so what Timeout raises. In a fiber under a
  # UM::FiberScheduler timeouts are the fiber's, and so are the masks that hold them back.
  module Masks
    # As Thread.handle_interrupt.
    def handle_interrupt(*mask, &block)
      scheduler = FiberScheduler.current
      return super unless block && mask.size == 1 && scheduler

      scheduler.__send__(:masked, mask.first) { super }
    end

    Thread.singleton_class.prepend(self)
  end
  private_constant :Masks
end

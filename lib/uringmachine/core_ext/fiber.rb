# frozen_string_literal: true

class UringMachine
  # What every Fiber gets.
  module FiberExtensions
    # The fiber's own queue, for whoever wants to send it messages. The machine puts nothing there.
    #
    # @return [UringMachine::Queue]
    # @example
    #   machine.push(fiber.mailbox, :hello)
    def mailbox
      @um_mailbox ||= Queue.new
    end
  end
end

# frozen_string_literal: true

class UringMachine
  # A machine beneath the interface of io-event's selectors: see docs/async.md.
  class Selector
    # Raises an exception in a fiber, which runs at once; the current one goes on in its turn.
    #
    # @param fiber [Fiber]
    # @param arguments [Array] as of Fiber#raise
    # @return [nil]
    # @example
    #   selector.raise(fiber, Timeout::Error)
    def raise(fiber, *arguments, **options) = behind { fiber.raise(*arguments, **options) }
  end
end

# frozen_string_literal: true

require "io/event"
require "uringmachine"

class UringMachine
  # A machine beneath Async, and whatever else runs on io-event: IO_EVENT_SELECTOR=UringMachine, or
  # `Async::Scheduler.new(selector: UM::Selector.new(Fiber.current))`. See docs/async.md.
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

IO::Event::Selector::UringMachine = UringMachine::Selector

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

    # The hooks of Async's that are spared, by methods of IO's (ext/uringmachine/src/hooks/direct_read and direct_write.rs) or by
    # Hooks; and what they ask a selector for.
    SPARED = %i[io_read io_write io_wait block kernel_sleep].freeze
    ASKED = %i[io_read io_write io_wait transfer].freeze
    private_constant :SPARED, :ASKED, :Hooks

    private

    # Whether the hooks of a scheduler do nothing but ask this selector, and limit the time that it takes: Async's own do, and not
    # those of a program's that overrides them.
    def spares?(scheduler)
      spares = defined?(::Async::Scheduler) && scheduler.is_a?(::Async::Scheduler) &&
               SPARED.all? { |name| stock?(scheduler.method(name)) } && ASKED.all? { |name| method(name).owner == Selector }
      return false unless spares

      CoreGaps.spare_hooks
      ::Async::Scheduler.prepend(Hooks)
      true
    end

    # Whether a method is Async's, and of its own file, or what has taken its place.
    def stock?(hook)
      hook.owner == Hooks ||
        (hook.owner == ::Async::Scheduler && hook.source_location&.first == ::Async::Scheduler.instance_method(:run).source_location&.first)
    end
  end
end

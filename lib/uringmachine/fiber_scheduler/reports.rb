# frozen_string_literal: true

class UringMachine
  # What a scheduler tells of itself.
  class FiberScheduler
    # As `UringMachine#report`, of the scheduler's machine.
    #
    # @param frames [Integer] lines of each backtrace, at most
    # @return [UringMachine::Report]
    # @raise [TypeError] if frames is no Integer
    # @raise [ArgumentError] if it is negative
    # @example
    #   puts Fiber.scheduler.report
    def report(frames: Report::FRAMES) = machine.report(frames:)

    # As `UringMachine#warn_of_stalls`, of the scheduler's machine.
    #
    # @method UringMachine::FiberScheduler#warn_of_stalls(limit, &block)
    # @param limit [Numeric, nil] seconds; nil turns it off
    # @yieldparam seconds [Float] how long, at the least; without a block it is printed to standard error
    # @yieldparam backtrace [Array<String>]
    # @return [UringMachine::FiberScheduler] self
    # @raise [TypeError] if limit is no number
    # @raise [ArgumentError] if it is not positive
    # @example
    #   Fiber.scheduler.warn_of_stalls(0.05) { |seconds, backtrace| logger.warn([seconds, *backtrace].join("\n")) }
    def warn_of_stalls(limit, &)
      machine.warn_of_stalls(limit, &)
      self
    end

    # What exporters want: names that end in `_total` are counters, others are gauges, and a Hash has a number for each
    # `kind`. Any thread may ask. Stalls are told while `warn_of_stalls` is on, the times in seconds while the machine's `profile_mode` is,
    # with `utilization`, the part of the time that the thread was not asleep in the kernel.
    #
    # @return [Hash{Symbol => Integer, Float, Hash{Symbol => Integer}}]
    # @example
    #   Fiber.scheduler.metrics[:switches_total] #=> 0
    def metrics
      found = machine.metrics
      count, longest = machine.stalls
      {
        fibers: scheduled.size, run_queue: found[:ops_runqueue], operations_pending: found[:ops_pending],
        operations_unsubmitted: found[:ops_unsubmitted], switches_total: found[:total_switches], enters_total: found[:total_enters],
        sleeps_total: found[:total_waits], operations_total: found[:total_ops_by_kind],
        **(count ? { stalls_total: count, stall_longest_seconds: longest } : {}), **times(found)
      }
    end

    private

    def times(found)
      total, asleep = found.values_at(:time_total, :time_total_wait)
      return {} unless total

      { seconds_total: total, seconds_asleep_total: asleep, utilization: total.zero? ? 0.0 : (total - asleep) / total }
    end
  end
end

# frozen_string_literal: true

class UringMachine
  # Ruby 4.0 leaves the parent's scheduler behind in a forked child; Ruby 3.4 keeps it. This does for 3.4 what 4.0
  # does, through Process._fork, which is there to be overridden.
  module LeaveScheduler
    # Returns what fork(2) returns: 0 in the child.
    def _fork
      pid = super
      Fiber.set_scheduler(nil) if pid.zero? && Fiber.scheduler.is_a?(FiberScheduler)
      pid
    end
  end

  Process.singleton_class.prepend(LeaveScheduler) if FiberScheduler.interface_version < 3
  private_constant :LeaveScheduler
end

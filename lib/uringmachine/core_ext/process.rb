# frozen_string_literal: true

class UringMachine
  # Attends to the children of whatever forks, through Process._fork, which is there to be overridden.
  module ForkExtensions
    # Returns what fork(2) returns: 0 in the child.
    def _fork
      scheduler = Fiber.scheduler
      pid = super
      UringMachine.__send__(:forked, scheduler) if pid.zero?
      pid
    end
  end

  # daemon(3) forks by itself.
  module DaemonExtensions
    # As Process.daemon.
    def daemon(...)
      scheduler = Fiber.scheduler
      result = super
      UringMachine.__send__(:forked, scheduler)
      result
    end
  end

  # As Process#daemon, which is what a class that includes Process calls.
  module IncludedDaemonExtensions
    include DaemonExtensions

    private(*DaemonExtensions.instance_methods)
  end

  ::Process.singleton_class.prepend(ForkExtensions, DaemonExtensions)
  ::Process.prepend(IncludedDaemonExtensions)
  private_constant :ForkExtensions, :DaemonExtensions, :IncludedDaemonExtensions
end

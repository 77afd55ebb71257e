# frozen_string_literal: true

class UringMachine
  # What Ruby 3.4 does not ask a scheduler about: its IO#close wakes threads that wait for the descriptor, and no fibers
  # (thread.c, rb_notify_fd_close). From Ruby 4.0 on this file does nothing.
  module Closing
    # Every scheduler there is, for closes by any thread.
    SCHEDULERS = ObjectSpace::WeakMap.new

    # Raises in the fibers that wait for an IO which is about to be closed.
    def self.interrupt(io)
      fd = io.fileno
      SCHEDULERS.each_key do |scheduler|
        scheduler.__send__(:waiting_for, fd)&.each do |fiber|
          scheduler.fiber_interrupt(fiber, IOError.new("stream closed in another thread"))
        end
      end
    end

    # Schedulers that keep count of who waits for what.
    module Counting
      # As FiberScheduler.new.
      def initialize(*)
        super
        keep_waits
        SCHEDULERS[self] = true
      end
    end

    # IO#close.
    module Waking
      # As IO#close.
      def close
        unless closed?
          Closing.interrupt(self)
          scheduler = Fiber.current_scheduler
          scheduler.machine.__send__(:let_go_of, fileno) if scheduler.is_a?(FiberScheduler) && autoclose?
        end
        super
      end
    end

    if FiberScheduler.interface_version < 3
      FiberScheduler.prepend(Counting)
      ::IO.prepend(Waking)
    end
  end
  private_constant :Closing
end

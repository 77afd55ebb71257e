# frozen_string_literal: true

class UringMachine
  # Whoever closes a descriptor, or makes it another file's, first ends what fibers do with it, on whichever thread they
  # are: what the kernel would otherwise do with the old file, or a fiber with the number, is another file's by then.
  # Ruby 3.4 wakes threads only (thread.c, rb_notify_fd_close); Ruby 4.0 whoever waits through the same IO object.
  module Closing
    # How long a close waits between two looks at fibers of another thread, which must end what they do by themselves.
    AGAIN = 0.001

    def self.end_waits(io, side = nil)
      sleep(AGAIN) while FiberScheduler.__send__(:end_waits, io, side)
    end

    # IO's.
    module Ending
      # As IO#close.
      def close
        Closing.end_waits(self) unless closed?
        super
      end

      # As IO#close_read.
      def close_read
        Closing.end_waits(self, :read) unless closed?
        super
      end

      # As IO#close_write.
      def close_write
        Closing.end_waits(self, :write) unless closed?
        super
      end

      # As IO#reopen.
      def reopen(...)
        Closing.end_waits(self) unless closed?
        super
      ensure
        # Its flush has learnt of the old file.
        FiberScheduler.__send__(:forget, self) unless closed?
      end
    end

    FiberScheduler.private_class_method(:end_waits, :forget)
    ::IO.prepend(Ending)
  end
  private_constant :Closing
end

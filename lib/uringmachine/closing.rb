# frozen_string_literal: true

class UringMachine
  # Whoever closes a descriptor, or makes it another file's, first ends what fibers do with it, on whichever thread they
  # are: what the kernel would otherwise do with the old file, or a fiber with the number, is another file's by then.
  # Ruby 3.4 wakes threads only (thread.c, rb_notify_fd_close); Ruby 4.0 whoever waits through the same IO object.
  module Closing
    # How long a close waits between two looks at fibers of another thread, which must end what they do by themselves.
    AGAIN = 0.001

    # Runs the block, which closes one side of an IO, or all of it.
    def self.around(io, side = nil)
      return yield if io.closed?

      fd = io.fileno
      sleep(AGAIN) while FiberScheduler.__send__(:end_waits, io, side)
      begin
        yield
      ensure
        # A last flush has learnt of the old file.
        FiberScheduler.__send__(:forget, fd)
      end
    end

    # IO's.
    module Ending
      # As IO#close.
      def close = Closing.around(self) { super() }

      # As IO#close_read.
      def close_read = Closing.around(self, :read) { super() }

      # As IO#close_write.
      def close_write = Closing.around(self, :write) { super() }

      # As IO#reopen.
      def reopen(...) = Closing.around(self) { super }
    end

    FiberScheduler.private_class_method(:end_waits, :forget)
    ::IO.prepend(Ending)
  end
  private_constant :Closing
end

# frozen_string_literal: true

class UringMachine
  # Whoever closes a descriptor, or makes it another file's, first ends what fibers do with it, on whichever thread they
  # are: what the kernel would otherwise do with the old file, or a fiber with the number, is another file's by then.
  # Ruby 3.4 wakes threads only (thread.c, rb_notify_fd_close); Ruby 4.0 whoever waits through the same IO object.
  module Closing
    # How long a close waits between two looks at fibers of another thread, which must end what they do by themselves, and
    # how often. A thread that looks after none of its fibers meanwhile (it joins this one, say) is not waited for.
    AGAIN = 0.001
    LOOKS = 250

    # Runs the block, which closes one side of an IO, or all of it; one without autoclose leaves its descriptor as it is.
    def self.around_close(io, side = nil, &)
      io.closed? || !io.autoclose? ? yield : around(io, side, &)
    end

    # Runs the block, which closes an IO's descriptor, or makes it another file's.
    def self.around(io, side = nil, &close)
      fd = io.fileno
      case end_waits(io, side)
      when :others then LOOKS.times { end_waits(io, side) == :others ? sleep(AGAIN) : break }
      when :own then return in_a_fiber(fd, &close) if waits_for_fibers?
      end
      finish(fd, &close)
    end

    def self.end_waits(io, side) = FiberScheduler.__send__(:end_waits, io, side)

    def self.finish(fd)
      yield
    ensure
      # A last flush has learnt of the old file.
      FiberScheduler.__send__(:forget, fd)
    end

    # Whether Ruby's own close waits until fibers have left the IO, and stalls them all: it does in a blocking fiber, as
    # the root fiber is one (Ruby 4.0, thread.c, rb_thread_io_close_wait).
    def self.waits_for_fibers?
      FiberScheduler.interface_version > 2 && Fiber.current.blocking? && FiberScheduler.behind(Fiber.scheduler)
    end

    # Has a fiber of the scheduler close, and lets all of them go on until it has.
    def self.in_a_fiber(fd, &close)
      machine = FiberScheduler.behind(Fiber.scheduler).machine
      caller = Fiber.current
      result = error = nil
      waits = done = false
      Fiber.schedule do
        result = finish(fd, &close)
      rescue Exception => e # rubocop:disable Lint/RescueException -- it is the caller's
        error = e
      ensure
        done = true
        machine.schedule(caller, nil) if waits
      end
      waits = true
      machine.yield until done
      error ? raise(error) : result
    end

    private_class_method :end_waits, :finish, :waits_for_fibers?, :in_a_fiber

    # IO's.
    module Ending
      # As IO#close.
      def close = Closing.in_use?(self) ? Closing.around_close(self) { super() } : super

      # As IO#close_read.
      def close_read = Closing.around_close(self, :read) { super() }

      # As IO#close_write.
      def close_write = Closing.around_close(self, :write) { super() }

      # As IO#reopen.
      def reopen(...) = closed? ? super : Closing.around(self) { super }
    end

    FiberScheduler.private_class_method(:end_waits, :forget)
    ::IO.prepend(Ending)
  end
  private_constant :Closing
end

# frozen_string_literal: true

class UringMachine
  # Core methods that reach no hook of Fiber::Scheduler and would stall every fiber of the thread. Each acts only in a
  # fiber under a UM::FiberScheduler, and else is Ruby's own. docs/scheduler.md lists them, and what still stalls.
  module CoreGaps
    # The machine that the current fiber's scheduler runs on, or nil.
    def self.machine
      scheduler = Fiber.current_scheduler
      scheduler.machine if scheduler.is_a?(FiberScheduler)
    end

    # Threads for what neither the ring nor a hook can do, shared by all schedulers.
    def self.pool = @pool ||= BlockingOperationThreadPool.new(8)

    # File#flock waits by sleeping; File#truncate calls the file system.
    module Files
      # As File#flock: an attempt that does not wait; then the wait is the machine's.
      def flock(operation)
        machine = CoreGaps.machine
        return super unless machine && operation.is_a?(Integer) && operation.nobits?(File::LOCK_NB) && operation != File::LOCK_UN
        return 0 if super(operation | File::LOCK_NB)

        machine.flock(fileno, operation)
      end

      # As File#truncate.
      def truncate(length)
        machine = CoreGaps.machine
        return super unless machine && length.is_a?(Integer) && length >= 0

        flush
        machine.ftruncate(fileno, length)
      rescue Errno::EINVAL
        # Not open for writing: Ruby has an error of its own for it.
        super
      end
    end

    # IO#fsync and IO#fdatasync wait for the disk.
    module Syncing
      # As IO#fsync.
      def fsync
        machine = CoreGaps.machine or return super
        flush
        machine.fsync(fileno)
      end

      # As IO#fdatasync.
      def fdatasync
        machine = CoreGaps.machine or return super
        flush
        machine.fdatasync(fileno)
      end
    end

    # Names of addresses are asked for over the network. (An Array may hold a name, which Ruby has the scheduler look up
    # first.)
    module Names
      %i[getnameinfo gethostbyaddr].each do |name|
        define_method(name) do |*arguments, &block|
          machine = CoreGaps.machine
          return super(*arguments, &block) unless machine && arguments.first.is_a?(String)

          CoreGaps.pool.process(machine, -> { super(*arguments, &block) })
        end
      end
    end

    # As Names, of an address.
    module AddressNames
      # As Addrinfo#getnameinfo.
      def getnameinfo(*)
        machine = CoreGaps.machine or return super
        CoreGaps.pool.process(machine, -> { super })
      end
    end

    File.prepend(Files)
    ::IO.prepend(Syncing)
    Socket.singleton_class.prepend(Names)
    Addrinfo.prepend(AddressNames)
  end
  private_constant :CoreGaps
end

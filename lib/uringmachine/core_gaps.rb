# frozen_string_literal: true

class UringMachine
  # Core methods that reach no hook of Fiber::Scheduler and would stall every fiber of the thread. Each acts only in a
  # fiber under a UM::FiberScheduler, and else is Ruby's own. docs/scheduler.md lists them, and what still stalls.
  module CoreGaps
    # The machine that the current fiber's scheduler runs on, or nil.
    def self.machine = FiberScheduler.current&.machine

    # Has what the machine fails by say what it does in plain Ruby: the function's name, and the file's.
    def self.naming(io, function)
      yield
    rescue SystemCallError => e
      raise unless (path = io.path)

      raise e.class.new(path, function), cause: nil
    end

    # Threads for what neither the ring nor a hook can do, shared by the schedulers of a Ractor. As many as there are
    # calls, since a name server may take its time: those beyond wait.
    def self.pool = Ractor.store_if_absent(:um_core_gaps_pool) { Lookups.new(MOST_THREADS) }

    MOST_THREADS = 1024

    # A program that kills threads does not mean the look-ups of its fibers.
    class Lookups < BlockingOperationThreadPool
      private

      # One whose thread was killed is made anew.
      def ended = AGAIN
    end

    # File#flock waits by sleeping; File#truncate calls the file system.
    module Files
      # As File#flock: an attempt that does not wait; then the wait is the machine's.
      def flock(operation)
        CoreGaps.take_turn
        machine = CoreGaps.machine
        return super unless machine && operation.is_a?(Integer) && operation.nobits?(File::LOCK_NB) && operation != File::LOCK_UN
        return 0 if super(operation | File::LOCK_NB)

        FiberScheduler.current.__send__(:waiting_on, self) do
          CoreGaps.naming(self, "rb_file_flock") { machine.flock(fileno, operation) }
        end
      end

      # As File#truncate.
      def truncate(length)
        machine = CoreGaps.machine
        return super unless machine && length.is_a?(Integer) && length >= 0 && length.bit_length < 64

        flush
        begin
          CoreGaps.naming(self, "rb_file_truncate") { machine.ftruncate(fileno, length) }
        rescue Errno::EINVAL
          # Not open for writing: Ruby has an error of its own for it.
          super
        end
      end
    end

    # IO#fsync and IO#fdatasync wait for the disk.
    module Syncing
      # As IO#fsync.
      def fsync
        machine = CoreGaps.machine or return super
        flush
        CoreGaps.naming(self, "rb_io_fsync") { machine.fsync(fileno) }
      end

      # As IO#fdatasync.
      def fdatasync
        machine = CoreGaps.machine or return super
        flush
        # By this name: where there is no fdatasync(2) to be had, Ruby tries fsync(2).
        CoreGaps.naming(self, "rb_io_fsync") { machine.fdatasync(fileno) }
      end
    end

    # Names of addresses are asked for over the network.
    module Names
      # As Socket.getnameinfo. (An Array may hold a name, which Ruby has the scheduler look up first.)
      def getnameinfo(*arguments)
        machine = CoreGaps.machine
        address = arguments.first
        return super unless machine && (address.is_a?(String) || (address.is_a?(Array) && address.last.to_s.match?(NUMERIC)))

        CoreGaps.pool.process(machine, -> { super })
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

    # As Names, of a socket's ends.
    module SocketNames
      # As IPSocket#addr.
      def addr(reverse_lookup = nil)
        machine = CoreGaps.machine
        return super unless machine && looks_up?(reverse_lookup)

        CoreGaps.pool.process(machine, -> { super })
      end

      # As IPSocket#peeraddr.
      def peeraddr(reverse_lookup = nil)
        machine = CoreGaps.machine
        return super unless machine && looks_up?(reverse_lookup)

        CoreGaps.pool.process(machine, -> { super })
      end

      private

      def looks_up?(flag) = flag.nil? ? !do_not_reverse_lookup : [true, :hostname].include?(flag)
    end

    # IO#write_nonblock asks no hook, as those below.
    module Writing
      # As IO#write_nonblock.
      def write_nonblock(buf, exception: true)
        CoreGaps.take_turn
        super
      end
    end

    # Methods that succeed at once where they can, without a hook: a fiber that calls them again and again lets the ready
    # go first now and then, and raises what it is to raise. What other Rubies lack is left out. (socket.rb calls those
    # with the underscores.)
    TURNS = {
      BasicSocket => %i[send recv __sendmsg __recvmsg __recv_nonblock __read_nonblock __write_nonblock __sendmsg_nonblock __recvmsg_nonblock],
      IPSocket => %i[recvfrom],
      UDPSocket => %i[send __recvfrom_nonblock],
      UNIXSocket => %i[recvfrom send_io recv_io],
      Socket => %i[recvfrom accept sysaccept __recvfrom_nonblock __accept_nonblock],
      TCPServer => %i[accept sysaccept __accept_nonblock],
      UNIXServer => %i[accept sysaccept __accept_nonblock],
      # Those that seek write what is buffered first, by a plain write(2), as `flush` does to what is in blocking mode.
      ::IO => [:flush, :seek, :rewind, :pos=, :stat, :fcntl, :ioctl, *(:pwrite unless FiberScheduler.method_defined?(:io_pwrite))],
      File => %i[size],
      # With WNOHANG.
      ::Process.singleton_class => %i[wait wait2 waitpid waitpid2],
      ::Process::Status.singleton_class => %i[wait],
      Thread.singleton_class => %i[pass]
    }.then { |turns| Ractor.make_shareable(turns) }
    private_constant :TURNS

    # Prepends what takes turns to the methods of a class.
    def self.take_turns_in(owner, names)
      names = names.select { |name| owner.method_defined?(name, false) || owner.private_method_defined?(name, false) }
      return if names.empty?

      turns = Module.new
      names.each do |name|
        define_turn(turns, name, owner.instance_method(name).arity)
        turns.__send__(:private, name) if owner.private_method_defined?(name, false)
      end
      owner.prepend(turns)
    end

    # Those of OpenSSL's sockets that are on no ring.
    module Encrypting
      # As OpenSSL::Buffering#read_nonblock.
      def read_nonblock(maxlen, buf = nil, exception: true)
        CoreGaps.take_turn
        super
      end

      # As OpenSSL::Buffering#write_nonblock.
      def write_nonblock(s, exception: true)
        CoreGaps.take_turn
        super
      end
    end

    # Has OpenSSL's sockets take turns. A program may load it after us: whoever makes a scheduler looks for it, and whoever
    # connects under one.
    def self.meet_openssl
      return if !Object.const_defined?(:OpenSSL) || Object.autoload?(:OpenSSL) || !defined?(::OpenSSL::SSL::SSLSocket)

      sockets = ::OpenSSL::SSL::SSLSocket
      return if sockets < Encrypting

      sockets.prepend(Encrypting)
      take_turns_in(sockets, %i[sysread syswrite])
    end

    # Has methods take turns. Called when the first scheduler is made: programs without one do not pay for it.
    def self.take_turns
      TURNS.each { |owner, names| take_turns_in(owner, names) }
      ::IO.prepend(Writing)
    end

    private_class_method :define_turn, :take_turns_in

    # An address as text.
    NUMERIC = /:|\A[\d.]+\z/

    File.prepend(Files)
    ::IO.prepend(Syncing)
    Socket.singleton_class.prepend(Names)
    Addrinfo.prepend(AddressNames)
    IPSocket.prepend(SocketNames)
  end
  private_constant :CoreGaps
end

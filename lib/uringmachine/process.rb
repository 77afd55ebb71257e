# frozen_string_literal: true

class UringMachine
  # A process by a descriptor (pidfd_open(2)): it stays the same process when its number is another's. Waiting for its
  # end is a poll of the descriptor through the ring: no signal handler, no thread, and nobody else's child is reaped.
  #
  # Any thread may use it, and so may the handler of a signal (`trap`). A wait is one of the machine it was opened with,
  # or, on another thread, of that thread's own.
  class Process
    # What a wait returns that is over in time, and one whose process has ended.
    LATE = Object.new.freeze
    ENDED = Object.new.freeze
    READY = POLLIN
    private_constant :LATE, :ENDED, :READY

    class << self
      # Starts a program, as ::Process.spawn.
      #
      # @method UringMachine::Process.spawn(*command, machine: nil, **options)
      # @param command [Array] as of ::Process.spawn: an environment, if any, and a command
      # @param machine [UringMachine, nil] nil is that of the scheduler, or else the thread's
      # @param options [Hash] as of ::Process.spawn
      # @return [UringMachine::Process]
      # @raise [SystemCallError] Errno::ENOENT and the like; Errno::EMFILE too, if there is no descriptor to open the
      #   process with, which has been killed then
      # @example
      #   UM::Process.spawn({ "LANG" => "C" }, "ls", "-l", out: "list").wait.success? #=> true
      def spawn(*command, machine: nil, **options)
        machine ||= default_machine
        open_child(::Process.spawn(*command, **options), machine)
      end

      # Forks, and runs the block in the child, which then ends.
      #
      # @method UringMachine::Process.fork(machine: nil, &block)
      # @param machine [UringMachine, nil] as of `spawn`
      # @return [UringMachine::Process] the child
      # @raise [ArgumentError] without a block
      # @raise [SystemCallError] as fork(2), and as `spawn`
      # @example
      #   UM::Process.fork { exit 3 }.wait.exitstatus #=> 3
      def fork(machine: nil, &block)
        raise ArgumentError, "no block given (fork)" unless block

        machine ||= default_machine
        open_child(::Process.fork(&block), machine)
      end

      # Opens a process of a machine; machine.process_open does the same.
      #
      # @method UringMachine::Process.open(pid, machine = nil, &block)
      # @param pid [Integer]
      # @param machine [UringMachine, nil] as of `spawn`
      # @yieldparam process [UringMachine::Process]
      # @return [UringMachine::Process, Object] the process, or what the block returns
      # @raise [Errno::ESRCH] if there is no such process
      # @raise [TypeError] if pid is no Integer
      # @raise [ArgumentError] if it is not positive, or too large
      # @example
      #   UM::Process.open(pid, &:wait)
      def open(pid, machine = nil)
        process = new(pid, machine)
        return process unless block_given?

        begin
          yield process
        ensure
          process.close
        end
      end

      private

      # The machine that the current fiber waits with.
      def default_machine
        FiberScheduler.behind(Fiber.scheduler)&.machine || UringMachine.current || Thread.current.machine
      end

      # Nobody would know of a child that cannot be opened.
      def open_child(pid, machine)
        new(pid, machine)
      rescue Errno::ESRCH
        # It has ended already, and SIGCHLD is ignored, or somebody waits for whatever child there is. Its number may be
        # another's by now.
        allocate.tap { |process| process.__send__(:initialize_ended, pid, machine) }
      rescue SystemCallError
        ::Process.kill(:KILL, pid)
        ::Process.detach(pid)
        raise
      end
    end

    # The process's number.
    #
    # @return [Integer]
    # @example
    #   process.pid #=> 4711
    attr_reader :pid

    # @param pid [Integer]
    # @param machine [UringMachine, nil] as of `spawn`
    # @raise [Errno::ESRCH] if there is no such process
    # @raise [TypeError] if pid is no Integer
    # @raise [ArgumentError] if it is not positive, or too large
    # @example
    #   process = UM::Process.new(pid, machine)
    def initialize(pid, machine = nil)
      raise TypeError, "pid must be an Integer, not #{pid.class}" unless pid.is_a?(Integer)
      raise ArgumentError, "pid must be positive" unless pid.positive?

      # The collector closes what is forgotten.
      adopt(UringMachine.pidfd_open(pid))
      @machine = machine || Process.__send__(:default_machine)
      @pid = pid
      @exit_blocks = nil
    end

    # Sends a signal to the process: never to another one that has got its number.
    #
    # @param signal [Integer, String, Symbol] number, or name with or without SIG; 0 sends nothing
    # @return [UringMachine::Process] self
    # @raise [Errno::ESRCH] if the process has ended
    # @raise [Errno::EPERM] if it is not allowed
    # @raise [ArgumentError] if there is no such signal
    # @raise [TypeError] if signal is none of these
    # @raise [UringMachine::Error] if it is closed and its end is not known
    # @kernel 5.1
    # @example
    #   process.kill(:TERM)
    def kill(signal) = signal(number_of(signal))

    # Waits for the process to end. Any number of fibers may. A child is reaped by it, once: what is returned later is
    # the same, also when it is closed. `$?` is left alone.
    #
    # @param timeout [Numeric, nil] seconds; 0 does not wait, nil and Float::INFINITY wait as long as it takes
    # @return [Process::Status, true, nil] the status of a child; true if the process is no child of this one, or if
    #   somebody else has reaped it (Process.wait, Process.detach, SIGCHLD ignored); nil if the time is up
    # @raise [TypeError] if timeout is no number
    # @raise [ArgumentError] if it is negative, or NaN
    # @raise [UringMachine::Error] if it is closed and has not been waited for
    # @example
    #   process.wait(timeout: 0.5) || process.kill(:KILL).wait
    def wait(timeout: nil)
      check_timeout(timeout)
      return @status if @status

      descriptor = acquire
      begin
        answer = await(descriptor, timeout)
        answer.equal?(ENDED) ? reap : answer
      ensure
        release
      end
    end

    # Has a block run when the process has ended, by a fiber of its own on the machine; at once if it has. Blocks start
    # in the order they were given. `wait` in the block returns without waiting. They run, and reap the child, also
    # if it is closed meanwhile.
    #
    # @method UringMachine::Process#on_exit(&block)
    # @yieldparam process [UringMachine::Process] self
    # @return [UringMachine::Process] self
    # @raise [ArgumentError] without a block
    # @raise [UringMachine::Error] if the machine is another thread's, or it is closed and has not been waited for
    # @example
    #   process.on_exit { |ended| puts "#{ended.pid} ended with #{ended.wait.exitstatus}" }
    def on_exit(&block)
      raise ArgumentError, "no block given (on_exit)" unless block

      @machine.owned? or raise Error, "the process's machine belongs to another thread, or is closed"
      if @status
        start { block.call(self) }
      elsif @exit_blocks
        @exit_blocks << block
      else
        descriptor = acquire
        @exit_blocks = [block]
        start { watch(descriptor) }
      end
      self
    end

    # @return [String]
    # @example
    #   process.inspect #=> "#<UringMachine::Process 4711 alive>"
    def inspect
      state = if @status then "ended"
              elsif closed? then "closed"
              else alive? ? "alive" : "ended"
              end
      "#<#{self.class} #{pid} #{state}>"
    end

    private

    # As one that has been waited for and closed.
    def initialize_ended(pid, machine)
      @machine = machine
      @pid = pid
      @status = true
    end

    def initialize_copy(_)
      raise TypeError, "can't copy #{self.class}"
    end

    def check_timeout(timeout)
      return unless timeout
      raise TypeError, "timeout must be a number of seconds, not #{timeout.class}" unless timeout.is_a?(Numeric) && timeout.real?
      raise ArgumentError, "timeout can't be NaN" if timeout.is_a?(Float) && timeout.nan?
      raise ArgumentError, "timeout can't be negative" if timeout.negative?
    end

    # Waits until it has ended: ENDED. If the time is up before, nil; else the value that the fiber was scheduled with.
    def await(descriptor, timeout)
      return ENDED if UringMachine.pidfd_ended?(descriptor)
      return if timeout&.zero?

      machine = machine_here
      poll = proc { machine.poll(descriptor, READY) }
      answer = timeout ? machine.timeout(timeout, LATE, &poll) : poll.call
      return ENDED if UringMachine.pidfd_ended?(descriptor)

      answer.equal?(LATE) ? nil : answer
    end

    def machine_here
      @machine.owned? ? @machine : Process.__send__(:default_machine)
    end

    # Runs a block in a fiber of the machine's, or of its scheduler's.
    def start(&)
      if FiberScheduler.behind(Fiber.scheduler)&.machine.equal?(@machine)
        Fiber.schedule(&)
      else
        @machine.spin(&)
      end
    end

    def watch(descriptor)
      return unless await(descriptor, nil).equal?(ENDED)

      reap
      blocks = @exit_blocks
      @exit_blocks = nil
      blocks.each { |block| start { block.call(self) } }
    ensure
      # A watch that was ended is begun anew by the next block.
      @exit_blocks = nil
      release
    end

    def number_of(signal)
      case signal
      when Integer
        raise ArgumentError, "signal can't be negative" if signal.negative?

        signal
      when String, Symbol
        Signal.list.fetch(signal.to_s.delete_prefix("SIG")) { raise ArgumentError, "unknown signal #{signal}" }
      else
        raise TypeError, "signal must be an Integer, String or Symbol, not #{signal.class}"
      end
    end
  end
end

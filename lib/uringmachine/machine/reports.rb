# frozen_string_literal: true

class UringMachine
  autoload :ReportSocket, File.expand_path("../report_socket.rb", __dir__)
  private_constant :ReportSocket
  autoload :Doctor, File.expand_path("../doctor.rb", __dir__)

  # The machine as it stands: what each of its fibers waits for, and since when, with backtraces. It is made of what the
  # machine knows anyway, so nothing is paid for it until it is asked for; any thread of the Ractor may ask, also while the
  # machine's own thread sleeps.
  #
  # Nobody looks at the clock when a wait begins. That a fiber has waited for some time is known once somebody has looked
  # before: a report, `metrics`, `warn_of_stalls`, `UM.listen_for_reports`.
  #
  # @param frames [Integer] lines of each backtrace, at most
  # @return [UringMachine::Report]
  # @raise [TypeError] if frames is no Integer
  # @raise [ArgumentError] if it is negative
  # @example
  #   puts machine.report
  def report(frames: Report::FRAMES)
    raise TypeError, "frames must be an Integer, not #{frames.class}" unless frames.is_a?(Integer)
    raise ArgumentError, "frames must not be negative" if frames.negative?

    Report.new(snapshot(frames))
  end

  # Has a thread look whether the fibers take turns, and tell of one that holds the thread for longer than a limit while
  # others wait: how long it has done so at the least, and its backtrace, once a place. Nothing is paid for it when it is
  # off; when it is on, Ruby's lock is taken twice in each limit.
  #
  # Ruby has a thread that computes give way after 100 ms (RUBY_THREAD_TIMESLICE=10 makes them 10): a shorter stall is seen only
  # if what stalls has let go of Ruby's lock, as system calls do.
  #
  # @method UringMachine#warn_of_stalls(limit, &block)
  # @param limit [Numeric, nil] seconds; nil turns it off
  # @yieldparam seconds [Float] how long, at the least; without a block it is printed to standard error
  # @yieldparam backtrace [Array<String>]
  # @return [UringMachine] self
  # @raise [TypeError] if limit is no number
  # @raise [ArgumentError] if it is not positive
  # @example
  #   machine.warn_of_stalls(0.05)
  def warn_of_stalls(limit, &tell)
    raise TypeError, "limit must be a number of seconds or nil, not #{limit.class}" unless limit.nil? || limit.is_a?(Numeric)
    raise ArgumentError, "limit must be positive" unless limit.nil? || limit.positive?

    @stalls&.stop
    @stalls = limit && StallWatch.new(limit, tell) { pulse }
    self
  end

  # What `warn_of_stalls` has counted: how many, and the seconds of the longest; nil if it is off.
  #
  # @return [Array(Integer, Float), nil]
  # @example
  #   machine.stalls #=> nil
  def stalls = @stalls && [@stalls.count, @stalls.longest]

  # The machines that the threads of this Ractor use.
  #
  # @method UringMachine.machines
  # @return [Array<UringMachine>]
  # @example
  #   UM.machines.sum { |machine| machine.metrics[:total_ops] }
  def self.machines = Thread.list.flat_map { |thread| used_by(thread) }

  # Has a report on every machine printed to standard error when the process gets a signal. A handler that there was
  # before is called too.
  #
  # @method UringMachine.dump_on(signal)
  # @param signal [Symbol, String, Integer] as of Signal.trap
  # @return [nil]
  # @raise [ArgumentError] if there is no such signal, or Ruby needs it itself
  # @example
  #   UM.dump_on(:USR2)
  def self.dump_on(signal)
    before = nil
    # What prints may wait for a lock, which a handler may not: it has a thread of its own.
    before = Signal.trap(signal) do |number|
      Thread.new { dump }
      before.call(number) if before.respond_to?(:call)
    end
    nil
  end

  # Has this process tell of its machines to `uringmachine report` and `uringmachine top` of the same user: by a UNIX socket
  # of mode 0600 in $XDG_RUNTIME_DIR or /tmp, named after the process. It is removed when the process exits, and a child of
  # fork has none until it asks. The variable UM_REPORTS=1 does the same when the gem is loaded.
  #
  # @method UringMachine.listen_for_reports
  # @return [String] the socket's path
  # @raise [SystemCallError] if it cannot be made
  # @example
  #   UM.listen_for_reports #=> "/tmp/uringmachine-1234.sock"
  def self.listen_for_reports = ReportSocket.open

  # Prints the reports in one piece.
  def self.dump
    Thread.current.name = "um-dump"
    text = Report.all.map { |report| "#{report}\n" }.join
    $stderr.write(text.empty? ? "no machine is in use\n" : text)
  end

  private_class_method :dump
end

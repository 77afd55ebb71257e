# frozen_string_literal: true

class UringMachine
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

  # Prints the reports in one piece.
  def self.dump
    Thread.current.name = "um-dump"
    text = Report.all.map { |report| "#{report}\n" }.join
    $stderr.write(text.empty? ? "no machine is in use\n" : text)
  end

  private_class_method :dump
end

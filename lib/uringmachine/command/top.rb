# frozen_string_literal: true

class UringMachine
  module Command
    # `uringmachine top PID`
    module Top
      SUMMARY = "count the fibers of a process by what they wait for, again and again"
      # Begins a terminal's screen anew (console_codes(4)).
      CLEAR = "\e[H\e[2J"
      private_constant :CLEAR

      # Prints what the fibers of another process wait for, until that ends, or an interrupt comes.
      #
      # @param arguments [Array<String>]
      # @param output [IO]
      # @return [Integer] 0
      # @raise [ArgumentError] if the arguments make no sense, or the process does not listen
      # @example
      #   UM::Command::Top.run(["1234", "--times", "1"], $stdout) #=> 0
      def self.run(arguments, output)
        interval, times, help = 1.0, nil, false
        parser = OptionParser.new do |options|
          options.banner = "Usage: uringmachine top PID [--interval SECONDS] [--times N]"
          options.on("--interval SECONDS", Float, "between two looks") { |number| interval = number }
          options.on("--times N", Integer, "looks, instead of no end") { |number| times = number }
          options.on("-h", "--help", "print this") { help = true }
        end
        rest = parser.parse(arguments)
        return output.puts(parser) || 0 if help
        raise ArgumentError, "interval must be positive" unless interval.positive?

        look(rest, output, interval, times)
        0
      rescue Interrupt
        0
      end

      def self.look(arguments, output, interval, times)
        1.step do |number|
          reports = Command.reports_of(arguments, UringMachine::Report::FRAMES)
          output.print(CLEAR) if output.tty?
          output.puts(reports.flat_map { |report| [report.headline, *rows(report)] })
          break if number == times

          sleep(interval)
        rescue ArgumentError
          # The process has ended.
          number == 1 ? raise : break
        end
      end

      # The most fibers first.
      def self.rows(report)
        places = report.fibers.map { |fiber| [fiber[:state], fiber[:hook], fiber[:call]] }.tally
        places.sort_by { |_, count| -count }.map { |(state, hook, call), count| format("%8d  %-11s  %-18s  %s", count, state, hook, call) }
      end

      private_class_method :look, :rows
    end
  end
end

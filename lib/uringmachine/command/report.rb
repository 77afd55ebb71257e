# frozen_string_literal: true

class UringMachine
  module Command
    # `uringmachine report PID`
    module Report
      SUMMARY = "print what the fibers of a process wait for"

      # Prints the reports of another process.
      #
      # @param arguments [Array<String>]
      # @param output [IO]
      # @return [Integer] 0
      # @raise [ArgumentError] if the arguments make no sense, or the process does not listen
      # @example
      #   UM::Command::Report.run(["1234", "--json"], $stdout) #=> 0
      def self.run(arguments, output)
        json = help = false
        frames = UringMachine::Report::FRAMES
        parser = OptionParser.new do |options|
          options.banner = "Usage: uringmachine report PID [--json] [--frames N]"
          options.on("--json", "print it as JSON") { json = true }
          options.on("--frames N", Integer, "lines of each backtrace") { |number| frames = number }
          options.on("-h", "--help", "print this") { help = true }
        end
        rest = parser.parse(arguments)
        return output.puts(parser) || 0 if help

        reports = Command.reports_of(rest, frames)
        output.puts(json ? JSON.generate(reports.map(&:to_h)) : reports)
        0
      end
    end
  end
end

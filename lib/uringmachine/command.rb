# frozen_string_literal: true

require "optparse"
require "uringmachine"

class UringMachine
  # What the executable `uringmachine` does: a module for each of its commands, in a file of its name.
  module Command
    require_relative "command/doctor"
    require_relative "command/report"
    require_relative "command/top"

    # Each takes the rest of the arguments and where to print, and returns the exit status.
    ALL = { "doctor" => Doctor, "report" => Report, "top" => Top }.freeze

    USAGE = <<~TEXT
      Usage: uringmachine COMMAND [ARGUMENT…]

      #{ALL.map { |name, command| format("  %-8s %s", name, command::SUMMARY) }.join("\n")}

      uringmachine COMMAND --help says more.
    TEXT

    # Why nobody answers.
    UNHEARD = "process %d listens for no reports of this user: UM.listen_for_reports, or UM_REPORTS=1 in its environment, has it do so"
    private_constant :UNHEARD

    # The reports of the process that the arguments name.
    #
    # @param arguments [Array<String>] a process's number
    # @param frames [Integer] lines of each backtrace
    # @return [Array<UringMachine::Report>]
    # @raise [ArgumentError] if they name none, or it does not listen
    # @example
    #   UM::Command.reports_of(["1234"], 20)
    def self.reports_of(arguments, frames)
      pid = Integer(arguments.first || "", exception: false)
      raise ArgumentError, "PID must be the number of a process" unless pid && arguments.size == 1

      UringMachine::Report.of(pid, frames:)
    rescue Errno::ENOENT, Errno::ECONNREFUSED, Errno::EACCES
      raise ArgumentError, format(UNHEARD, pid)
    end

    # Runs the command that the arguments name.
    #
    # @param arguments [Array<String>]
    # @param output [IO]
    # @param errors [IO]
    # @return [Integer] the exit status: 0 if all is well, 1 if not, 2 if the arguments make no sense
    # @example
    #   exit UM::Command.run(ARGV)
    def self.run(arguments, output: $stdout, errors: $stderr)
      name, *rest = arguments
      case name
      when *ALL.keys then ALL.fetch(name).run(rest, output)
      when "--version", "-v" then output.puts(VERSION) || 0
      when "--help", "-h", "help" then output.puts(USAGE) || 0
      else
        errors.puts(name ? "uringmachine: there is no command #{name}" : "uringmachine: which command?", USAGE)
        2
      end
    rescue OptionParser::ParseError, ArgumentError => e
      errors.puts("uringmachine #{name}: #{e.message}")
      2
    end
  end
end

# frozen_string_literal: true

require "optparse"
require "uringmachine"

class UringMachine
  # What the executable `uringmachine` does: a module for each of its commands, in a file of its name.
  module Command
    require_relative "command/doctor"

    # Each takes the rest of the arguments and where to print, and returns the exit status.
    ALL = { "doctor" => Doctor }.freeze

    USAGE = <<~TEXT
      Usage: uringmachine COMMAND [ARGUMENT…]

      #{ALL.map { |name, command| format("  %-8s %s", name, command::SUMMARY) }.join("\n")}

      uringmachine COMMAND --help says more.
    TEXT

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

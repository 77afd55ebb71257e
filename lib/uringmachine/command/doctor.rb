# frozen_string_literal: true

class UringMachine
  module Command
    # `uringmachine doctor`
    module Doctor
      SUMMARY = "say whether io_uring can be had here, how well, and what to do about it"

      # Prints what UM::Doctor finds.
      #
      # @param arguments [Array<String>]
      # @param output [IO]
      # @return [Integer] 0 if it works, 1 if not
      # @example
      #   UM::Command::Doctor.run(["--json"], $stdout) #=> 0
      def self.run(arguments, output)
        json = help = false
        parser = OptionParser.new do |options|
          options.banner = "Usage: uringmachine doctor [--json]"
          options.on("--json", "print it as JSON") { json = true }
          options.on("-h", "--help", "print this") { help = true }
        end
        rest = parser.parse(arguments)
        raise ArgumentError, "what is #{rest.first}?" unless rest.empty?
        return output.puts(parser) || 0 if help

        doctor = UringMachine::Doctor.new
        output.puts(json ? doctor.to_json : doctor)
        doctor.works? ? 0 : 1
      end
    end
  end
end

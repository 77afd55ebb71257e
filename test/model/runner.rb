# frozen_string_literal: true

module Model
  # Plays programs, each in a child of this process, which has loaded everything.
  module Runner
    class << self
      # @param program [Array<Array>]
      # @param modes [Array<Symbol>] the first says what is right
      # @return [Failure, nil] how it fails: the kind of failure, the mode, and what was seen
      def failure(program, modes = Play::MODES)
        expected = nil
        modes.each do |mode|
          outcome = outcome(program, mode)
          kind = kind(outcome, mode, expected)
          return Failure.new(kind, mode, outcome, expected) if kind

          expected ||= outcome
        end
        nil
      end

      # @return [Hash] what the child says, or how it has ended
      def outcome(program, mode)
        reader, writer = IO.pipe
        pid = fork { child(program, mode, reader, writer) }
        writer.close
        said = Thread.new { reader.read }
        ended = Process.detach(pid)
        ended.join(Play.patience + 10)
        # And its children, which have the pipe too.
        Process.kill(:KILL, -pid) rescue Errno::ESRCH
        said.value.empty? ? { "ends" => ended.value.to_s.sub(/pid \d+ /, "") } : JSON.parse(said.value)
      rescue JSON::ParserError
        { "ends" => ended.value.to_s.sub(/pid \d+ /, ""), "says" => said.value }
      ensure
        reader.close
      end

      private

      def child(program, mode, reader, writer)
        Process.setpgid(0, 0)
        reader.close
        # What Ruby says of a crash.
        $stderr.reopen(writer) && $stdout.reopen(writer) && writer.close
        Thread.report_on_exception = false
        said = JSON.generate(Play.play(program, mode))
        $stdout << said
        $stdout.flush
        exit!(0)
      rescue Exception => e # rubocop:disable Lint/RescueException
        Play.end_with(raises: [e.class.name, e.message, e.backtrace.first(8)])
      end

      def kind(outcome, mode, expected)
        return outcome.keys.first.to_sym unless outcome["logs"]
        return :model if expected.nil? && outcome["logs"].flatten.intersect?(%w[other fewer received returned])
        return :logs unless expected.nil? || outcome["logs"] == expected["logs"]

        # An exception may come to a thread at any moment, and leave something.
        :left unless mode == :threads || outcome["left"].empty?
      end
    end

    Failure = Struct.new(:kind, :mode, :outcome, :expected) do
      def same?(other) = other && [kind, mode] == [other.kind, other.mode]

      def to_s
        lines = ["#{kind}, mode #{mode}"]
        if kind == :logs
          outcome["logs"].zip(expected["logs"]).each_with_index do |(ours, theirs), index|
            place = "conversation #{index / 2}, #{%w[left right][index % 2]}"
            lines << "#{place}: #{ours - theirs} instead of #{theirs - ours}" if ours != theirs
          end
        else
          lines << outcome.except("logs").inspect << (outcome["logs"] || []).map(&:last).inspect
        end
        lines.join("\n  ")
      end
    end
  end
end

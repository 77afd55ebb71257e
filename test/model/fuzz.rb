# frozen_string_literal: true

# Random programs of fibers and channels, each played by threads and by fibers under the scheduler: what they read, what is
# raised where, and what is left must be the same. See script/fuzz, and test_model.rb.

require "rbconfig"
require_relative "../identity"
%w[fileutils io/console io/nonblock io/wait json monitor pty socket stringio tempfile timeout tmpdir uringmachine].each { |name| require name }
%w[writes reads waits messages episodes side conversation play runner generator shrinker script].each do |name|
  require_relative name
end

module Model
  # Plays the programs of a seed, one after the other.
  class Fuzz
    # @return [Integer] how many were played
    attr_reader :played

    def initialize(seed, out = $stderr)
      @seed = seed
      @out = out
      @played = 0
    end

    # @param seconds [Numeric]
    # @return [String, nil] the first failing program as a script, made small
    def run(seconds)
      ends = now + seconds
      while now < ends
        program = Generator.new(@seed).program
        failure = Runner.failure(program)
        return found(program, failure) if failure

        @played += 1
        @seed += 1
        progress if (@played % 20).zero?
      end
    end

    private

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    def progress
      @out << "\r#{@played} programs, the last of seed #{@seed - 1}  " if @out.tty?
    end

    def found(program, failure)
      @out << "\nseed #{@seed} fails: #{failure}\nmaking it smaller\n"
      # Most of the smaller ones that are tried hang or do not within this.
      Play.patience = [Play.patience, 5].min
      smaller, failure = Shrinker.new(program, failure) { @out << "." }.shrink
      @out << "\n"
      Script.of(smaller, <<~HEAD)
        Seed #{@seed}, Ruby #{RUBY_VERSION}: #{failure}
        As it was found:   script/fuzz 1 #{@seed}
        As it is here:     script/with-ruby ruby -W:no-experimental FILE [#{Play::MODES.join(" | ")}]
      HEAD
    end
  end
end

if $PROGRAM_NAME == __FILE__
  minutes = Float(ARGV[0])
  seed = Integer(ARGV[1] || Random.rand(1_000_000_000))
  $stderr << "seed #{seed}, #{minutes} minutes, Ruby #{RUBY_VERSION}\n"
  fuzz = Model::Fuzz.new(seed)
  script = fuzz.run(minutes * 60)
  $stderr << "\n#{fuzz.played} programs\n"
  puts script
  exit(script.nil?)
end

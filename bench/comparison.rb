# frozen_string_literal: true

require "optparse"
require "uringmachine"
require_relative "peers"

# Ways to do the same work, compared in one run: they take turns, so that what disturbs the machine disturbs all of them,
# and the median of the rounds counts. CPU time is the whole process's.
class Comparison
  CLOCKS = [Process::CLOCK_PROCESS_CPUTIME_ID, Process::CLOCK_MONOTONIC].freeze
  ASYNC = %w[async-epoll async-uring].freeze

  # What one way came to, in microseconds an operation.
  Result = Struct.new(:name, :cpu, :wall)

  # @param title [String] what is done
  # @param operations [Integer] how often each way does it
  # @param unit [String] what an operation is called
  def initialize(title, operations:, unit:)
    @title = title
    @operations = operations
    @unit = unit
    @ways = {}
  end

  # The block does the work. The first way is what the others are compared with.
  def way(name, &work)
    @ways[name] = work
  end

  # Each scheduler that can run here, and threads: the block is given what starts something concurrently.
  def peers(names = %w[um async-epoll async-uring], &work)
    names.each do |name|
      reason = Peers.missing(name)
      next warn("#{name} is left out: #{reason}") if reason

      way(name) { Peers.run(name, &work) }
    end
  end

  def run(rounds: 5)
    samples = Hash.new { |hash, name| hash[name] = [] }
    rounds.times do |round|
      @ways.each do |name, work|
        progress("#{@title}: round #{round + 1} of #{rounds}, #{name}")
        samples[name] << measure(work)
      end
    end
    progress("")
    results = samples.map { |name, found| Result.new(name, *found.transpose.map { |values| values.sort[values.size / 2] }) }
    report(results)
    results
  end

  private

  def progress(line)
    $stderr.print "\r#{line.ljust(78)}\r" if $stderr.tty?
  end

  # CPU and wall time an operation, in microseconds.
  def measure(work)
    GC.start
    before = CLOCKS.map { |clock| Process.clock_gettime(clock) }
    work.call
    CLOCKS.zip(before).map { |clock, start| (Process.clock_gettime(clock) - start) / @operations * 1e6 }
  end

  def report(results)
    first = results.first
    async = results.select { |result| ASYNC.include?(result.name) }.min_by(&:cpu)
    puts "#{@title}, #{RUBY_ENGINE} #{RUBY_VERSION}"
    puts format("%-24s %12s %12s %16s %16s", "us per #{@unit}", "CPU", "wall", "CPU to #{first.name}", ("CPU to Async" if async))
    results.each do |result|
      print format("%-24s %12.2f %12.2f %16.2f", result.name, result.cpu, result.wall, result.cpu / first.cpu)
      puts((format("%17.2f", result.cpu / async.cpu) if async))
    end
    puts
    $stdout.flush
  end
end

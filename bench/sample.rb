# frozen_string_literal: true

require "io/wait"
require "json"
require "rbconfig"

# One measurement: a run of measure.rb.
module Sample
  # Seconds that it may take.
  LIMIT = 20
  MEASURE = File.join(__dir__, "measure.rb")
  JIT = RbConfig::CONFIG["YJIT_SUPPORT"].to_s == "no" ? [] : ["--yjit"]

  module_function

  # Measures a workload with each peer in turn, as often. `samples` has a list for each; one that gave no answer is left out of
  # the rounds that follow.
  def rounds(number, workload, samples)
    asked = samples.dup
    number.times do |round|
      asked.to_a.each do |peer, found|
        $stderr.print("\r#{"#{workload}: round #{round + 1} of #{number}, #{peer}".ljust(70)}\r")
        line = take(workload, peer)
        line ? found << JSON.parse(line, symbolize_names: true) : asked.delete(peer)
      end
    end
    $stderr.print("\r#{" " * 70}\r")
  end

  # What it found, a line; nil if it failed or took too long.
  def take(*arguments)
    reader, writer = IO.pipe
    child = Process.spawn(RbConfig.ruby, *JIT, "-W0", MEASURE, *arguments, out: writer, pgroup: true)
    writer.close
    return warn("\r#{arguments.join(" with ")}: no answer in #{LIMIT} s") unless reader.wait_readable(LIMIT)

    reader.read.lines.last
  ensure
    reader.close
    finish(child)
  end

  def finish(child)
    return unless Process.wait(child, Process::WNOHANG).nil?

    Process.kill(:KILL, -child)
    Process.wait(child)
  end
end

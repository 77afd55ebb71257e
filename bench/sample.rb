# frozen_string_literal: true

require "rbconfig"

# One measurement: a run of measure.rb.
module Sample
  # Seconds that it may take.
  LIMIT = 60
  MEASURE = File.join(__dir__, "measure.rb")
  JIT = RbConfig::CONFIG["YJIT_SUPPORT"].to_s == "no" ? [] : ["--yjit"]

  module_function

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

# frozen_string_literal: true

# Runs tests while the collector runs at every allocation of their bodies: what no frame keeps, and no `mark` visits, is gone
# at once. A test takes some hundred times as long.
#
#   rake test:stress                  the tests of SHORT, which allocate little and cover much
#   rake test:stress FILES=all        all of them, which takes hours
#   rake test:stress FILES=test/hooks/test_io_read.rb,test/classes/test_queue.rb

require "rbconfig"

# Within a test's process.
module Stress
  def after_setup
    super
    GC.stress = true
  end

  def before_teardown
    GC.stress = false
    super
  end
end

if $PROGRAM_NAME != __FILE__
  require "minitest"
  Minitest::Test.prepend(Stress)
  return
end

ROOT = File.expand_path("..", __dir__)
# A file, and which of its tests.
SHORT = {
  "test/hooks/test_block.rb" => /plain_thread|monitor|one_fiber|raised_in/,
  "test/hooks/test_io_read.rb" => /minimum_length|cancelled_read$/,
  "test/hooks/test_timeout_after.rb" => //,
  "test/hooks/test_fiber.rb" => /nested|enumerator|reported|storage/,
  "test/classes/test_queue.rb" => /woken|cut_off|first_served|both_ends/,
  "test/classes/test_async_op.rb" => //,
  "test/classes/test_mutex.rb" => //,
  "test/classes/test_io.rb" => /read_each|of_pieces|to_delim/,
  "test/classes/test_io_resp.rb" => /byte_by_byte|errors_are_returned|written_is_read/,
  "test/lending/test_lifetime.rb" => //,
  "test/methods/test_transfer.rb" => /cuts_the_string|at_an_offset|part_and_of_nothing|copied_while|io_buffer_that|is_cancelled/,
  "test/methods/test_streams.rb" => /accept_each_until|each_datagram|into_queue/
}.freeze

chosen = ENV.fetch("FILES", "").split(",")
tests =
  case chosen
  when [] then SHORT
  when ["all"] then Dir.glob("test/**/test_*.rb", base: ROOT).sort.reject { |file| file.match?(%r{test_helper|/faults/}) }.to_h { |file| [file, //] }
  else chosen.to_h { |file| [file, //] }
  end

failed = tests.reject do |file, names|
  started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  folders = $LOAD_PATH.flat_map { |folder| ["-I", folder] }
  command = [RbConfig.ruby, "-W:no-experimental", "-Itest", *folders, "-r", File.expand_path(__FILE__), File.join(ROOT, file), "-n", names.inspect]
  passed = system({ "UM_TEST_PATIENCE" => "3600" }, *command, chdir: ROOT)
  puts format("%-60s %s in %d s", file, passed ? "passed" : "FAILED", Process.clock_gettime(Process::CLOCK_MONOTONIC) - started)
  $stdout.flush
  passed
end
abort("stress: #{failed.keys.join(", ")}") unless failed.empty?

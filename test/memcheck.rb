# frozen_string_literal: true

# Runs test files under valgrind's memcheck: memory that is read or written after it was freed, or beyond its end, by us,
# by Ruby for us, or by the kernel's calls.
#
#   rake test:memcheck                  the files in which memory is lent, handed on and given back
#   rake test:memcheck FILES=all        all of them
#   rake test:memcheck FILES=test/hooks/test_io_read.rb,test/tls/test_tls.rb
#
# Nothing is suppressed. Values that are used before they are set are not looked for: the collector reads whole stacks, and memcheck does not
# know what io_uring writes to.

require "rbconfig"

ROOT = File.expand_path("..", __dir__)
SHORT = %w[
  test/classes/test_buffer_pool.rb
  test/classes/test_fiber_scheduler.rb
  test/classes/test_io.rb
  test/hooks/test_close.rb
  test/hooks/test_fiber.rb
  test/lending/test_buffers.rb
  test/lending/test_lifetime.rb
  test/machine/test_raise.rb
  test/methods/test_messages.rb
  test/methods/test_streams.rb
  test/methods/test_transfer.rb
  test/test_collector.rb
  test/test_progress.rb
].freeze
# What valgrind cannot do: it ends by an assertion of its own in a child of fork that maps a ring, where the parent's is
# gone (MADV_DONTFORK), and it lacks pidfd_send_signal(2).
BEYOND = %w[test/test_fork.rb test/test_descriptors.rb test/classes/test_process.rb test/methods/test_waitid.rb].freeze
BEYOND_TESTS = "/fork|renew/"
# Its own exit status, which no test has.
FOUND = 98

chosen = ENV.fetch("FILES", "").split(",")
files =
  case chosen
  when [] then SHORT
  when ["all"] then Dir.glob("test/**/test_*.rb", base: ROOT).sort - ["test/test_helper.rb", *BEYOND]
  else chosen
  end
missing = files.reject { |file| File.exist?(File.join(ROOT, file)) }
abort("no such test file: #{missing.join(", ")}") unless missing.empty?

VALGRIND = [
  ENV.fetch("VALGRIND", "valgrind"), "--quiet", "--undef-value-errors=no", "--error-exitcode=#{FOUND}",
  "--num-callers=30", "--gen-suppressions=all",
  # A thread that waits in a loop lets the others run.
  "--fair-sched=yes",
  # A step of the stack pointer that is a switch to another fiber, whose stacks are 512 KiB apart and more, and no frame.
  "--max-stackframe=200000"
].freeze

failed = files.reject do |file|
  started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  # Everything is some thirty times slower: a test is taken for hanging later.
  environment = { "UM_TEST_PATIENCE" => "600" }
  passed = system(environment, *VALGRIND, RbConfig.ruby, "--disable=jit", "-W:no-experimental", "-Itest", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, File.join(ROOT, file), "--exclude", BEYOND_TESTS, chdir: ROOT)
  puts format("%-60s %s in %d s", file, passed ? "clean" : "FAILED", Process.clock_gettime(Process::CLOCK_MONOTONIC) - started)
  $stdout.flush
  passed
end
abort("memcheck: #{failed.join(", ")}") unless failed.empty?

# frozen_string_literal: true

# Runs Ruby's own test/fiber suite, unmodified but for scheduler.rb, and insists that every test it defines has run.
#
# The suite is that of the running Ruby's source: RUBY_SOURCE, the source that script/setup kept beside the Ruby it
# built, or, failing both, a clear message.

require "fileutils"
require "rbconfig"
require "tmpdir"

# What each release line is known to have, so that a file that is not found is noticed.
EXPECTED = { "3.4" => 84, "4.0" => 94 }.freeze

candidates = [ENV.fetch("RUBY_SOURCE", nil), "#{RbConfig::CONFIG.fetch("prefix")}-source"].compact
source = candidates.find { |folder| File.directory?(File.join(folder, "test", "fiber")) }
abort <<~MESSAGE unless source
  error: Ruby's own test/fiber suite was not found in #{candidates.join(" or ")}.
         Name the source tree of this Ruby (#{RUBY_VERSION}): RUBY_SOURCE=/path/to/ruby-source rake test:ruby
MESSAGE

release = RUBY_VERSION[/\A\d+\.\d+/]
Dir.mktmpdir("uringmachine") do |folder|
  FileUtils.cp(Dir[File.join(source, "test", "fiber", "*.rb")], folder)
  FileUtils.cp(File.join(__dir__, "scheduler.rb"), folder)
  tests = Dir[File.join(folder, "test_*.rb")]
  defined = tests.sum { |file| File.read(file).scan(/^\s*def test_\w+/).size }
  expected = EXPECTED.fetch(release, defined)
  abort "error: #{source} defines #{defined} tests; Ruby #{release} has #{expected}" unless defined == expected

  loader = <<~RUBY
    require "tempfile"
    require "tmpdir"
    require "test/unit"
    require "core_assertions"
    require "envutil"
    Test::Unit::TestCase.include(Test::Unit::CoreAssertions)
    Dir["#{folder}/test_*.rb"].sort.each { |file| require file }
    exit Test::Unit::AutoRunner.run
  RUBY
  tool = File.join(source, "tool", "lib")
  command = [RbConfig.ruby, "-W0", "-I", folder, "-I", tool, "-e", loader]
  output = IO.popen(command, err: %i[child out], chdir: folder, &:read)
  passed = $?.success?
  puts output
  summary = output[/^(\d+) tests, \d+ assertions, (\d+) failures, (\d+) errors, (\d+) skips/]
  abort "error: Ruby's suite ended without a summary (#{$?})" unless summary
  run, failures, errors, skips = summary.scan(/\d+/).values_at(0, 2, 3, 4).map(&:to_i)
  abort "error: #{run} tests ran, #{defined} are defined" unless run == defined
  abort "error: #{skips} tests were skipped" unless skips.zero?
  abort "error: Ruby's suite failed" unless passed && (failures + errors).zero?
  puts "Ruby #{RUBY_VERSION}: all #{run} tests of its test/fiber suite passed on UM::FiberScheduler"
end

# frozen_string_literal: true

require_relative "../test_helper"
require_relative "../test_unsupported"
require "json"
require "stringio"
require "uringmachine/command"

# What is found out about io_uring here, and the command that prints it.
class TestDoctor < PatientTest
  EXECUTABLE = File.expand_path("../../exe/uringmachine", __dir__)

  # The output and the status of `uringmachine doctor`, in a process of its own.
  def doctor(*arguments, env: {})
    command = [env, RbConfig.ruby, "-W:no-experimental", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, EXECUTABLE, "doctor", *arguments]
    output = IO.popen(command, err: %i[child out], &:read)
    [output, $?.exitstatus]
  end

  def test_it_works_here
    output, status = doctor
    assert_equal 0, status, output
    assert_match(/^ok +the machine +moves bytes/, output)
    assert_match(/^ok +the scheduler +moves bytes/, output)
    assert_match(/works here\.\n\z/, output)
    refute_includes output, "FAILURE"
  end

  def test_json
    output, status = doctor("--json")
    found = JSON.parse(output, symbolize_names: true)
    assert_equal [0, true, UM::VERSION], [status, found[:works], found[:version]]
    names = found[:findings].map { |finding| finding[:name] }
    assert_empty %w[kernel Ruby kernel.io_uring_disabled seccomp io_uring waitid descriptors] - names
  end

  def test_every_feature_is_known
    assert_equal UM::Doctor::FEATURES.keys, UM.new.features.keys
  end

  def test_a_hidden_feature_is_told_of_and_is_no_failure
    output, status = doctor(env: { "UM_MASK" => "waitid" })
    assert_equal 0, status
    assert_match(/^no +waitid +hidden by UM_MASK: a thread waits for each child\n +take it out of UM_MASK$/, output)
  end

  def test_a_low_limit_is_a_warning
    code = "require 'uringmachine'; Process.setrlimit(:NOFILE, 100); puts UM::Doctor.new"
    output, status = ruby(code)
    assert_predicate status, :success?
    assert_match(/^warning +descriptors +RLIMIT_NOFILE 100, at most 100\n.*ulimit -n/, output)
  end

  TestUnsupported::CALLS.each do |name, number|
    define_method("test_a_sandbox_that_refuses_#{name}_is_told_of") do
      output, status = ruby("#{TestUnsupported::REFUSE}refuse(#{number})\nrequire 'uringmachine/command'\nexit UM::Command.run(%w[doctor])")
      assert_equal 1, status.exitstatus, output
      assert_match(/^FAILURE +io_uring +refused$/, output)
      assert_match(/^warning +seccomp +1 filters$/, output)
      assert_match(/does not work here\.\n\z/, output)
    end
  end

  def test_arguments
    assert_equal [0, "#{UM::VERSION}\n", ""], run_command("--version")
    assert_match(/doctor/, run_command("--help")[1])
    assert_match(/--json/, run_command("doctor", "--help")[1])
    [[], %w[nonsense], %w[doctor --nonsense], %w[doctor nonsense]].each do |arguments|
      status, output, errors = run_command(*arguments)
      assert_equal [2, ""], [status, output]
      assert_match(/\Auringmachine/, errors)
      assert_includes errors, arguments.last if arguments.any?
    end
  end
end

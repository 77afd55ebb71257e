# frozen_string_literal: true

require_relative "test_helper"
require_relative "mutants"

# The list of safeguards is true of the code. script/mutants takes them out one by one.
class TestMutants < Minitest::Test
  def test_each_change_is_of_a_text_that_is_there_once
    assert_empty Mutants.faults
  end

  def test_what_is_wrong_with_a_change_is_said
    right = {
      name: "x", safeguard: "y", file: "test/test_mutants.rb", from: "# The list of safe".dup << "guards", to: "", tests: ["cargo slab::"]
    }
    assert_nil Mutants::Mutant.new(**right).fault
    {
      { file: "test/no_file.rb" } => /no test.no_file/, { from: "there is ".dup << "none" } => /0 times/,
      { from: "assert_" } => /\d+ times/, { to: right[:from] } => /nothing/,
      { tests: ["test/no_test.rb name"] } => /no test.no_test/, { tests: [] } => /no test is named/
    }.each { |wrong, said| assert_match said, Mutants::Mutant.new(**right, **wrong).fault }
  end
end

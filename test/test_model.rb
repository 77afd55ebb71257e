# frozen_string_literal: true

require_relative "test_helper"
require_relative "model/fuzz"

# Random programs do in fibers what they do in threads: see model/fuzz.rb. script/fuzz goes on for hours.
class TestModel < Minitest::Test
  SEED = Integer(ENV.fetch("UM_MODEL_SEED", Random.rand(1_000_000)))
  SECONDS = Integer(ENV.fetch("UM_MODEL_SECONDS", 20))

  def test_fibers_do_what_threads_do
    out = StringIO.new
    puts "the model's seed: UM_MODEL_SEED=#{SEED}"
    script = Model::Fuzz.new(SEED, out).run(SECONDS)
    assert script.nil?, "#{out.string}\n#{script}"
  end

  def test_one_seed_makes_one_program
    assert_equal Model::Generator.new(SEED).program, Model::Generator.new(SEED).program
  end

  def test_a_wrong_program_is_found_and_made_small
    program = [[:pipe, [[:turn, :sleep], [:break_off, 5], [:turn, :pass]]], [:unix, [[:turn, :sleep]]]]
    failure = Model::Runner.failure(program)
    assert_equal :fails, failure.kind
    smaller, = Model::Shrinker.new(program, failure).shrink
    assert_equal [[:pipe, [[:break_off, 1]]]], smaller
  end

  def test_a_script_stands_alone
    program = [[:unix, [[:transfer, [[:write, 10]], [[:recv, 5]], nil], [:fill, 2_000_000, :send, :raise]]]]
    script = Model::Script.of(program, "a test")
    folders = $LOAD_PATH.flat_map { |folder| ["-I", folder] }
    output = IO.popen([RbConfig.ruby, "-W:no-experimental", *folders, "-", "fibers"], "r+") do |ruby|
      ruby.write(script)
      ruby.close_write
      ruby.read
    end
    assert_equal JSON.parse(JSON.generate(Model::Runner.outcome(program, :threads))), JSON.parse(output)
  end
end

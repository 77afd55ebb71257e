# frozen_string_literal: true

require_relative "../test_helper"

# IO.select under the scheduler.
class TestSelect < SchedulerTest
  def test_it_returns_what_is_ready
    reader, writer = IO.pipe
    in_fiber do
      assert_equal [[], [writer], []], IO.select([reader], [writer])
      writer << "x"
      assert_equal [[reader], [], []], IO.select([reader])
      assert_equal [[reader], [writer], []], IO.select([reader], [writer], [], 1)
    end
  end

  def test_it_waits_for_another_fiber
    pairs = Array.new(3) { IO.pipe }
    ready = nil
    scheduled do
      Fiber.schedule { ready = IO.select(pairs.map(&:first)) }
      Fiber.schedule { pairs[1].last << "x" }
    end
    assert_equal [[pairs[1].first], [], []], ready
  end

  def test_it_returns_nil_at_the_timeout_and_leaves_nothing_behind
    reader, = IO.pipe
    in_fiber do
      assert_nil IO.select([reader], nil, nil, 0)
      assert_nil IO.select([reader], nil, nil, 0.002)
      assert_nil IO.select(nil, nil, nil, 0.002)
    end
  end

  def test_a_buffered_io_is_ready
    reader, writer = IO.pipe
    writer << "first\nsecond\n"
    in_fiber do
      reader.gets
      assert_equal [[reader], [], []], IO.select([reader])
    end
  end

  def test_to_io_is_honoured_and_one_descriptor_may_stand_in_several_sets
    source, sink = UNIXSocket.pair
    wrapper = Struct.new(:to_io).new(source)
    ready = nil
    scheduled do
      Fiber.schedule { ready = IO.select([wrapper], nil, [wrapper], 5) }
      Fiber.schedule { sink << "x" }
    end
    assert_equal [[wrapper], [], []], ready
  end

  def test_bad_arguments_raise_what_plain_ruby_raises
    in_fiber do
      assert_raises(TypeError) { IO.select(1) }
      assert_raises(TypeError) { IO.select(["io"]) }
      assert_raises(ArgumentError) { IO.select(nil, nil, nil, -1) }
      closed = IO.pipe.each(&:close).first
      assert_raises(IOError) { IO.select([closed]) }
    end
  end
end

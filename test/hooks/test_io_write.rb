# frozen_string_literal: true

require_relative "../test_helper"

# Writing through the hook io_write.
class TestIOWrite < SchedulerTest
  def test_write_nonblock_does_not_wait
    _source, sink = UNIXSocket.pair
    in_fiber do
      assert_raises(IO::EAGAINWaitWritable) { loop { sink.write_nonblock("x" * 65_536) } }
    end
  end

  def test_the_writers_timeout_raises
    _source, sink = UNIXSocket.pair
    in_fiber do
      sink.timeout = 0.003
      assert_raises(IO::TimeoutError) { loop { sink.write("x" * 65_536) } }
    end
  end

  def test_a_short_socket_write_is_continued_until_everything_is_written
    source, sink = UNIXSocket.pair
    size = 3_000_000
    written = nil
    received = nil
    scheduled do
      Fiber.schedule { written = sink.write("y" * size).tap { sink.close } }
      Fiber.schedule { received = source.read.bytesize }
    end
    assert_equal [size, size], [written, received]
  end

  def test_flushing_at_close_loses_nothing_on_a_full_pipe
    source, sink = IO.pipe
    received = nil
    scheduled do
      Fiber.schedule do
        sink.sync = false
        40.times { sink.write("z" * 4000) }
        sink.close
      end
      Fiber.schedule { received = source.read.bytesize }
    end
    assert_equal 160_000, received
  end

  def test_a_write_of_a_shortage_fails_alone
    in_fiber do
      File.open("/dev/full", "w") do |full|
        full.sync = true
        assert_raises(Errno::ENOSPC) { full.write("x") }
      end
      assert_equal("fine", IO.pipe.then { |source, sink| (sink << "fine") && source.readpartial(4) })
    end
  end
end

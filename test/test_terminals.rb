# frozen_string_literal: true

require_relative "test_helper"
require "pty"
require "io/console"

# Terminals wait as their settings say (termios(3)), and stall nobody else.
class TestTerminals < SchedulerTest
  def setup
    super
    @master, @slave = PTY.open
    @slave.raw!
  end

  def teardown
    [@master, @slave].each(&:close)
    super
  end

  # Runs other fibers until the block ends.
  def while_others_run
    done = false
    turns = 0
    result = nil
    scheduled do
      Fiber.schedule { (turns += 1) && sleep(0.001) until done }
      Fiber.schedule do
        result = yield
      ensure
        done = true
      end
    end
    [result, turns]
  end

  def test_a_read_with_a_time_and_no_least_number_is_over_when_the_time_is
    result, turns = while_others_run { @slave.getch(min: 0, time: 0.1) }

    assert_nil result
    assert_operator turns, :>, 2
  end

  def test_a_read_with_neither_returns_at_once
    assert_nil in_fiber { @slave.getch(min: 0, time: 0) }
  end

  def test_a_read_with_a_time_takes_what_comes_in_time
    result, = while_others_run do
      Fiber.schedule { @master.write("x") }
      @slave.getch(min: 0, time: 20)
    end

    assert_equal "x", result
  end

  # The time is for each byte after the first.
  def test_a_read_of_a_least_number_with_a_time
    result, turns = while_others_run do
      Fiber.schedule { @master.write("ab") }
      @slave.raw(min: 3, time: 0.1) { |io| io.sysread(10) }
    end

    assert_equal "ab", result
    assert_operator turns, :>, 2
  end

  def test_a_write_to_a_full_terminal_stalls_its_writer_only
    received = 0
    result, turns = while_others_run do
      Fiber.schedule { sleep(0.02) && (received += @master.readpartial(4096).size while received < 100_000) }
      @slave.write("z" * 100_000)
    end

    assert_equal [100_000, 100_000], [result, received]
    assert_operator turns, :>, 2
  end

  def test_a_write_that_a_timeout_ends_has_written_what_was_read
    received = +""
    in_fiber do
      written = Timeout.timeout(0.02) { @slave.syswrite("z" * 100_000) } rescue 0
      reader = Fiber.schedule { received << @master.readpartial(4096) until received.end_with?("!") }
      @slave.syswrite("!")
      reader.alive? && Fiber.scheduler.yield
      assert_operator written, :<, 100_000
    end

    assert_equal 1, received.count("!")
    assert_operator received.count("z"), :<, 100_000
  end

  def test_lines_are_read_as_they_end
    @slave.cooked!
    @slave.echo = false
    lines = []
    scheduled do
      Fiber.schedule { 2.times { lines << @slave.gets } }
      Fiber.schedule { ["one\n", "tw", "o\n"].each { |part| @master.write(part) && Fiber.scheduler.yield } }
    end

    assert_equal ["one\n", "two\n"], lines
  end

  def test_a_hang_up_ends_a_read
    result = in_fiber do
      Fiber.schedule { @master.close }
      @slave.sysread(1)
    rescue EOFError, Errno::EIO => e
      e.class
    ensure
      @master, = PTY.open
    end

    assert_includes [EOFError, Errno::EIO], result
  end
end

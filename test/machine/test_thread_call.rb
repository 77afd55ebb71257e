# frozen_string_literal: true

require_relative "../test_helper"

# Calls that the ring has no operation for: each has a native thread to itself, and threads are used again.
class TestMachineThreadCall < PatientTest
  # What the programs below begin with.
  BEGINNING = <<~'RUBY'
    require "tempfile"
    MACHINE = UM.new
    FILE = Tempfile.new
    HERE = MACHINE.open(FILE.path, UM::O_RDWR)
    # A hint for so much is given on a thread (the operation has 32 bits for the length).
    def on_thread = MACHINE.fadvise(HERE, 0, 5 << 30, UM::POSIX_FADV_NORMAL)
    def native_threads = Dir["/proc/self/task/*/comm"].count { |name| File.read(name) == "um-native\n" }
    # One that waits for a lock that another open file has, until the block is over.
    def waiting(count)
      FILE.flock(File::LOCK_EX)
      fibers = Array.new(count) do
        fd = MACHINE.open(FILE.path, UM::O_RDWR)
        MACHINE.spin { MACHINE.flock(fd, File::LOCK_EX); MACHINE.flock(fd, File::LOCK_UN); :locked }
      end
      MACHINE.snooze until native_threads == count
      yield
      FILE.flock(File::LOCK_UN)
      fibers.map { |fiber| MACHINE.join(fiber) }.tally
    end
  RUBY

  def answer(program) = ruby(BEGINNING + program).first

  def test_calls_one_after_the_other_need_few_threads
    assert_equal "true\n", answer(<<~'RUBY')
      200.times { on_thread }
      # The thread is still on its way to its rest when its fiber goes on: the next call may start another.
      puts (1..20) === native_threads
    RUBY
  end

  def test_calls_that_wait_hold_up_no_other
    assert_equal "{locked: 100}\n", answer(<<~'RUBY').sub("{:locked=>100}", "{locked: 100}")
      puts(waiting(100) { 20.times { on_thread } })
    RUBY
  end

  # The signals for the calls that are given up meet none that come after them on the same threads.
  def test_calls_that_are_given_up_leave_their_threads_whole
    assert_equal "[0, 300, true]\n", answer(<<~'RUBY')
      waits = Class.new(StandardError)
      FILE.flock(File::LOCK_EX)
      fd = MACHINE.open(FILE.path, UM::O_RDWR)
      hints = 0
      wrong = 300.times.count do
        MACHINE.timeout(0.0005, waits) { MACHINE.flock(fd, File::LOCK_EX) }
        true
      rescue waits
        hints += 1 if on_thread.zero?
        false
      end
      p [wrong, hints, native_threads <= 20]
    RUBY
  end

  def test_a_child_of_fork_starts_threads_of_its_own
    assert_equal "[0, 1]\n", answer(<<~'RUBY')
      on_thread
      reader, writer = IO.pipe
      child = fork do
        machine = UM.new
        writer.puts [machine.fadvise(HERE, 0, 5 << 30, UM::POSIX_FADV_NORMAL), native_threads].inspect
      end
      writer.close
      puts reader.read
      Process.wait(child)
    RUBY
  end
end

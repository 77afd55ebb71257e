# frozen_string_literal: true

require_relative "../test_helper"

# File#flock.
class TestFileLocks < SchedulerTest
  class TooLate < StandardError; end

  def file
    Tempfile.create("um").tap { |file| (@files ||= []) << file }
  end

  def teardown
    @files&.each { |file| file.close && File.unlink(file.path) }
    super
  end

  def test_closing_a_file_wakes_who_waits_for_its_lock
    Tempfile.create do |file|
      holder = File.open(file.path)
      holder.flock(File::LOCK_EX)
      error = nil
      in_fiber do
        waiting = Fiber.schedule do
          file.flock(File::LOCK_EX)
        rescue IOError => e
          error = e
        end
        assert_predicate waiting, :alive?
        file.close
        sleep(0) while waiting.alive?
      end
      assert_equal "stream closed in another thread", error&.message
      holder.close
    end
  end

  def test_flock_waits_while_others_run
    path = file.path
    order = []
    scheduled do
      Fiber.schedule do
        File.open(path) do |holder|
          assert_equal 0, holder.flock(File::LOCK_EX)
          Fiber.schedule do
            File.open(path) do |waiting|
              assert_equal false, waiting.flock(File::LOCK_EX | File::LOCK_NB)
              order << :waits
              assert_equal 0, waiting.flock(File::LOCK_EX)
              order << :has_it
              assert_equal 0, waiting.flock(File::LOCK_UN)
            end
          end
          # It may have waited for the file.
          sleep(0) until order.any?
          5.times { sleep(0.001) && (order << :runs) }
          holder.flock(File::LOCK_UN)
        end
      end
    end
    assert_equal [:waits, *[:runs] * 5, :has_it], order
  end

  # The lock has come, and its fiber has not gone on since: it is to raise, and has no lock.
  def test_a_lock_that_comes_with_an_exception_is_given_up
    holder, waiting, third = Array.new(3) { File.open((@files&.first || file).path) }
    holder.flock(File::LOCK_EX)
    in_fiber do
      seen = nil
      fiber = Fiber.schedule { waiting.flock(File::LOCK_EX) rescue seen = $!.class }
      # The thread that waits for the lock is none of Ruby's: it goes on while this fiber computes.
      compute(0.02)
      holder.flock(File::LOCK_UN)
      compute(0.02)
      fiber.raise(ArgumentError)
      sleep 0 while fiber.alive?
      assert_equal ArgumentError, seen
      assert_equal 0, third.flock(File::LOCK_EX | File::LOCK_NB)
    end
  ensure
    [holder, waiting, third].each(&:close)
  end

  def compute(seconds)
    limit = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
    nil while Process.clock_gettime(Process::CLOCK_MONOTONIC) < limit
  end

  def test_flock_can_be_cut_off
    path = file.path
    in_fiber do
      File.open(path) do |holder|
        holder.flock(File::LOCK_EX)
        File.open(path) { |waiting| assert_raises(TooLate) { Timeout.timeout(0.01, TooLate) { waiting.flock(File::LOCK_SH) } } }
        holder.flock(File::LOCK_UN)
        File.open(path) { |next_one| assert_equal 0, next_one.flock(File::LOCK_EX | File::LOCK_NB) }
      end
    end
  end
end

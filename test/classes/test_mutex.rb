# frozen_string_literal: true

require_relative "../test_helper"

# UM::Mutex.
class TestMachineMutex < MachineTest
  class TooLate < StandardError; end

  def test_a_mutex_lets_one_fiber_in_at_a_time
    mutex = UM::Mutex.new
    inside = most = 0
    fibers = Array.new(10) do |number|
      machine.spin do
        machine.synchronize(mutex) do
          most = [most, inside += 1].max
          machine.sleep(number.even? ? 0.001 : 0)
          inside -= 1
          number
        end
      end
    end
    assert_equal (0..9).to_a, machine.join(fibers)
    assert_equal 1, most
    refute_predicate mutex, :locked?
  end

  def test_the_block_has_the_mutex_and_gives_it_back_however_it_ends
    mutex = UM::Mutex.new
    assert_equal [true, true], machine.synchronize(mutex) { [mutex.locked?, mutex.owned?] }
    assert_raises(TooLate) { machine.synchronize(mutex) { raise TooLate } }
    assert_equal(1, catch(:out) { machine.synchronize(mutex) { throw :out, 1 } })
    refute_predicate mutex, :locked?
    refute_predicate mutex, :owned?
  end

  def test_locking_it_again_is_an_error
    mutex = UM::Mutex.new
    machine.synchronize(mutex) { assert_raises(UM::Error) { machine.synchronize(mutex) { flunk } } }
    refute_predicate mutex, :locked?
  end

  def test_an_exception_while_waiting_changes_nothing
    mutex = UM::Mutex.new
    release = UM::Queue.new
    holder = machine.spin { machine.synchronize(mutex) { machine.shift(release) } }
    machine.snooze
    assert_raises(TooLate) { machine.timeout(0.005, TooLate) { machine.synchronize(mutex) { flunk } } }
    assert_predicate mutex, :locked?
    refute_predicate mutex, :owned?
    third = machine.spin { machine.synchronize(mutex) { :third } }
    machine.snooze
    machine.push(release, :done)
    assert_equal %i[done third], machine.join(holder, third)
  end

  def test_a_fiber_that_is_woken_and_then_ended_leaves_the_mutex_to_the_next
    mutex = UM::Mutex.new
    release = UM::Queue.new
    holder = machine.spin { machine.synchronize(mutex) { machine.shift(release) } }
    machine.snooze
    waiting = Array.new(2) { machine.spin { machine.synchronize(mutex) { :had_it } } }
    machine.snooze
    machine.push(release, nil)
    machine.terminate(waiting.first)
    machine.join(holder)
    assert_equal :had_it, machine.join(waiting.last)
    machine.join(waiting.first)
    refute_predicate mutex, :locked?
  end

  def test_a_mutex_between_threads
    mutex = UM::Mutex.new
    count = 0
    threads = Array.new(4) do
      Thread.new do
        other = UM.new
        50.times do
          other.synchronize(mutex) do
            before = count
            other.sleep(0)
            Thread.pass
            count = before + 1
          end
        end
      end
    end
    threads.each(&:join)
    assert_equal 200, count
  end

  def test_bad_mutexes
    assert_names("mutex", TypeError) { machine.synchronize(Thread::Mutex.new) {} }
    assert_raises(ArgumentError) { machine.synchronize(UM::Mutex.new) }
  end
end

# frozen_string_literal: true

require_relative "../test_helper"

# UM::Queue.
class TestMachineQueue < MachineTest
  class TooLate < StandardError; end

  def test_a_queue_gives_from_both_ends
    queue = UM::Queue.new
    assert_same queue, machine.push(queue, 1)
    machine.push(queue, 2)
    assert_same queue, machine.unshift(queue, 0)
    assert_equal 3, queue.count
    assert_equal 0, machine.shift(queue)
    assert_equal 2, machine.pop(queue)
    assert_equal 1, machine.pop(queue)
    assert_equal 0, queue.count
  end

  def test_any_mix_of_pops_and_shifts_behaves_as_an_array
    queue = UM::Queue.new
    model = []
    random = Random.new(1)
    5_000.times do |number|
      case random.rand(model.empty? ? 2 : 4)
      when 0 then machine.push(queue, number) && model.push(number)
      when 1 then machine.unshift(queue, number) && model.unshift(number)
      when 2 then assert_equal model.pop, machine.pop(queue)
      when 3 then assert_equal model.shift, machine.shift(queue)
      end
      assert_equal model.size, queue.count
    end
  end

  def test_fibers_wait_for_values_first_come_first_served
    queue = UM::Queue.new
    got = []
    fibers = Array.new(3) { |number| machine.spin { got << [number, machine.shift(queue)] } }
    machine.snooze
    assert_equal 3, queue.num_waiting
    3.times { |number| machine.push(queue, number) }
    machine.join(fibers)
    assert_equal [[0, 0], [1, 1], [2, 2]], got
  end

  def test_exceptions_and_nil_are_values_like_others
    queue = UM::Queue.new
    error = TooLate.new
    machine.push(queue, error)
    machine.push(queue, nil)
    assert_same error, machine.shift(queue)
    assert_nil machine.shift(queue)
  end

  def test_a_wait_that_is_cut_off_loses_no_value
    queue = UM::Queue.new
    assert_raises(TooLate) { machine.timeout(0.005, TooLate) { machine.shift(queue) } }
    assert_equal 0, queue.num_waiting
    machine.push(queue, :kept)
    assert_equal :kept, machine.shift(queue)
  end

  def test_a_fiber_that_is_woken_and_then_ended_leaves_the_value_to_the_next
    queue = UM::Queue.new
    first = machine.spin { machine.shift(queue) }
    second = machine.spin { machine.shift(queue) }
    machine.snooze
    machine.push(queue, :value)
    machine.terminate(first)
    machine.join(first)
    # It was woken first, so it has the value, and was to be ended at its next wait.
    assert_equal :value, first.result
    machine.push(queue, :other)
    assert_equal :other, machine.join(second)
  end

  def test_queues_between_threads
    queue = UM::Queue.new
    back = UM::Queue.new
    threads = Array.new(3) do
      Thread.new do
        other = UM.new
        while (number = other.shift(queue))
          other.push(back, number * 10)
        end
      end
    end
    100.times { |number| machine.push(queue, number) }
    assert_equal Array.new(100) { |number| number * 10 }, Array.new(100) { machine.shift(back) }.sort
    3.times { machine.push(queue, nil) }
    threads.each(&:join)
  end

  def test_the_values_of_a_queue_are_kept
    queue = UM::Queue.new
    1000.times { |number| machine.push(queue, "value #{number}") }
    GC.start
    GC.compact
    1000.times { |number| assert_equal "value #{number}", machine.shift(queue) }
  end

  def test_a_fiber_of_a_thread_that_has_ended_takes_nothing_from_others
    queue = UM::Queue.new
    Thread.new do
      other = UM.new
      other.spin { other.shift(queue) }
      other.snooze
    end.join
    GC.start
    waiting = machine.spin { machine.shift(queue) }
    machine.snooze
    machine.push(queue, 1)
    assert_equal 1, machine.join(waiting)
  end

  def test_bad_queues
    %i[push unshift].each { |method| assert_names("queue", TypeError) { machine.public_send(method, [], 1) } }
    %i[pop shift].each { |method| assert_names("queue", TypeError) { machine.public_send(method, nil) } }
    assert_names("queue", TypeError) { machine.shift(UM::Mutex.new) }
  end
end

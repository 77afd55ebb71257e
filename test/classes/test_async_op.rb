# frozen_string_literal: true

require_relative "../test_helper"

# UM::AsyncOp.
class TestMachineAsyncOp < MachineTest
  class TooLate < StandardError; end

  def test_an_async_op_is_awaited
    operation = machine.prep_timeout(0.01)
    assert_equal(-UM::ETIME, operation.await)
    assert_equal [true, -UM::ETIME, false], [operation.done?, operation.result, operation.cancelled?]
    assert_equal(-UM::ETIME, operation.join)
  end

  def test_an_async_op_is_done_without_being_awaited
    operation = machine.prep_timeout(0.005)
    machine.sleep(0.01)
    assert_predicate operation, :done?
  end

  def test_an_async_op_that_is_not_done
    operation = machine.prep_timeout(3600)
    assert_equal :timeout, operation.kind
    assert_equal [false, nil, nil], [operation.done?, operation.result, operation.cancelled?]
    operation.cancel
  end

  def test_an_async_op_that_is_cancelled_raises_in_all_who_await_it
    operation = machine.prep_timeout(10)
    waiting = Array.new(2) { machine.spin { operation.await } }
    machine.snooze
    assert_same operation, operation.cancel
    assert_equal [true, -UM::ECANCELED, true], [operation.done?, operation.result, operation.cancelled?]
    machine.join(waiting).each { |result| assert_instance_of Errno::ECANCELED, result }
    operation.cancel
  end

  def test_an_exception_that_ends_the_await_cancels_the_async_op
    operation = machine.prep_timeout(10)
    assert_raises(TooLate) { machine.timeout(0.005, TooLate) { operation.await } }
    assert_predicate operation, :cancelled?
  end

  def test_an_async_op_that_no_machine_made
    operation = UM::AsyncOp.new
    GC.start
    %i[kind done? result cancelled? cancel await join].each { |method| assert_raises(UM::Error) { operation.public_send(method) } }
    assert_names("interval", TypeError) { machine.prep_timeout(nil) }
    assert_names("interval", ArgumentError) { machine.prep_timeout(-1) }
  end
end

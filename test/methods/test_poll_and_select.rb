# frozen_string_literal: true

require_relative "../test_helper"
require "fileutils"
require "tmpdir"

# poll and select.
class TestMachinePollAndSelect < MachineTest
  include InFolder

  class TooLate < StandardError; end

  # poll.h
  POLLIN = 1
  POLLOUT = 4
  POLLERR = 8
  TOO_LARGE = [1 << 40, 1 << 80].freeze

  # Runs a call that waits, with a deadline; asserts that other fibers have run meanwhile.
  def assert_ends_by_timeout(&)
    turns = 0
    ticker = machine.spin { loop { machine.sleep(0.001) && turns += 1 } }
    assert_raises(TooLate) { machine.timeout(0.02, TooLate, &) }
    assert_operator turns, :>, 0
    machine.terminate(ticker)
    machine.join(ticker)
  end

  def test_poll_tells_what_a_descriptor_is_ready_for
    reader, writer = opened(*UM.pipe)
    fiber = machine.spin { machine.poll(reader, POLLIN) }
    machine.snooze
    refute fiber.done?
    machine.write(writer, "x")
    assert_equal POLLIN, machine.join(fiber)
    assert_equal POLLOUT, machine.poll(writer, POLLOUT)
    machine.close(reader)
    assert_equal POLLOUT | POLLERR, machine.poll(writer, POLLOUT | POLLERR)
  end

  def test_a_poll_or_select_that_waits_can_be_ended_and_leaves_no_operation
    reader, = opened(*UM.pipe)
    other, = opened(*UM.pipe)
    assert_ends_by_timeout { machine.poll(reader, POLLIN) }
    assert_ends_by_timeout { machine.select([reader, other], [], []) }
    eventually { machine.metrics[:ops_pending].zero? }
  end

  def test_select_tells_all_that_are_ready
    (first, into_first), (second, into_second) = Array.new(2) { opened(*UM.pipe) }
    fiber = machine.spin { machine.select([first, second], [], []) }
    machine.snooze
    refute fiber.done?
    machine.write(into_first, "x")
    assert_equal [[first], [], []], machine.join(fiber)
    machine.write(into_second, "x")
    assert_equal [[first, second], [], []], machine.select([first, second], nil, nil)
    assert_equal [[], [into_first, into_second], []], machine.select([], [into_first, into_second], [])
    assert_equal [[first], [into_second], []], machine.select([first], [into_second], [first])
    eventually { machine.metrics[:ops_pending].zero? }
  end

  def test_select_tells_of_urgent_data_and_of_hang_ups
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    socket = server.accept
    fiber = machine.spin { machine.select([], [], [socket.fileno]) }
    machine.snooze
    client.send("!", Socket::MSG_OOB)
    assert_equal [[], [], [socket.fileno]], machine.join(fiber)
    reader, writer = opened(*UM.pipe)
    machine.close(writer)
    assert_equal [[], [], [reader]], machine.select([], [], [reader])
  ensure
    [server, client, socket].compact.each(&:close)
  end

  def test_select_of_nothing_returns_at_once
    assert_equal [[], [], []], machine.select([], [], [])
    assert_equal [[], [], []], machine.select(nil, nil, nil)
  end

  def test_a_select_of_descriptors_that_are_always_ready_lets_others_run
    writer = opened(*UM.pipe).last
    ticks = 0
    ticker = machine.spin { 3.times { machine.sleep(0.001) && ticks += 1 } }
    machine.select([], [writer], []) until ticks == 3
    machine.join(ticker)
  end

  def test_sets_of_a_wrong_type_or_out_of_range
    %w[rfds wfds efds].each_with_index do |name, place|
      sets = ->(set) { [[], [], []].tap { |all| all[place] = set } }
      assert_names(name, TypeError) { machine.select(*sets.call(1)) }
      assert_names(name, TypeError) { machine.select(*sets.call(["1"])) }
      TOO_LARGE.each { |number| assert_names(name, ArgumentError) { machine.select(*sets.call([number])) } }
    end
  end
end

# frozen_string_literal: true

require_relative "test_helper"

# io_wait, io_select and UM#poll: the events that are there, as plain Ruby says.
class TestReadiness < SchedulerTest
  # What hangs up, or fails, or neither; which end is asked.
  STATES = {
    hung_up_reader: -> { IO.pipe.tap { |_, writer| writer.close }.first },
    failed_writer: -> { IO.pipe.tap { |reader,| reader.close }.last },
    idle_reader: -> { ($kept = IO.pipe).first },
    idle_writer: -> { ($kept = IO.pipe).last },
    hung_up_socket: -> { UNIXSocket.pair.tap { |_, other| other.close }.first },
    half_closed_socket: -> { ($kept = UNIXSocket.pair).tap { |_, other| other.shutdown(:WR) }.first },
    unconnected_socket: -> { Socket.new(:INET, :STREAM) },
    regular_file: -> { File.open(__FILE__) },
    null_device: -> { File.open(File::NULL, "r+") }
  }.freeze

  def teardown
    $kept = nil
    super
  end

  def plainly(&) = Thread.new(&).value

  # As assert_equal, of what may be nil.
  def assert_same_answer(plain, answer, message)
    plain.nil? ? assert_nil(answer, message) : assert_equal(plain, answer, message)
  end

  # The time is up at once or never: no answer depends on it.
  STATES.each do |name, make|
    define_method(:"test_wait_says_of_a_#{name}_what_plain_ruby_says") do
      (1..7).each do |events|
        io = make.call
        assert_same_answer plainly { io.wait(events, 0.001) }, in_fiber { io.wait(events, 0.001) }, "events #{events}"
      end
    end

    define_method(:"test_select_says_of_a_#{name}_what_plain_ruby_says") do
      [[true, nil, nil], [nil, true, nil], [nil, nil, true], [true, true, true]].each do |sets|
        io = make.call
        lists = sets.map { |wanted| wanted && [io] }
        assert_same_answer plainly { IO.select(*lists, 0.001) }, in_fiber { IO.select(*lists, 0.001) }, sets.inspect
      end
    end
  end

  # It is polled once: the ring's count of operations stays small, however long the wait.
  def test_a_select_for_urgent_data_of_what_has_hung_up_waits_without_looking_again_and_again
    in_fiber do |scheduler|
      reader = STATES[:hung_up_reader].call
      other, writer = IO.pipe
      before = scheduler.machine.metrics[:total_ops]
      Fiber.schedule { sleep(0.02) && writer << "x" }
      assert_equal [[other], [], []], IO.select([other], nil, [reader])
      assert_operator scheduler.machine.metrics[:total_ops] - before, :<, 20
    end
  end

  # A peer that will send no more, and has not read what there is: room is waited for, and nothing else.
  WAITS_FOR_ROOM = {
    write: ->(io, _) { io.write("x" * 100_000) }, wait: ->(io, _) { io.wait_writable && io.write_nonblock("x") },
    select: ->(io, _) { IO.select(nil, [io]) && io.write_nonblock("x") }, poll: ->(io, machine) { machine.poll(io.fileno, UM::POLLOUT) && io.write_nonblock("x") },
    machine_select: ->(io, machine) { machine.select([], [io.fileno], []) && io.write_nonblock("x") }, send: ->(io, machine) { machine.send(io.fileno, "x") }
  }.freeze

  WAITS_FOR_ROOM.each do |name, wait|
    define_method(:"test_#{name}_waits_for_room_in_a_half_closed_socket") do
      sent = nil
      scheduled do |scheduler|
        socket, peer = UNIXSocket.pair
        peer.shutdown(:WR)
        nil while socket.write_nonblock("x" * 1024, exception: false) != :wait_writable
        before = scheduler.machine.metrics[:total_ops]
        Fiber.schedule { sent = wait.call(socket, scheduler.machine) }
        Fiber.schedule do
          sleep(0.02)
          assert_nil sent
          # It does not ask again and again.
          assert_operator scheduler.machine.metrics[:total_ops] - before, :<, 20
          peer.read_nonblock(65_536, exception: false) && Fiber.scheduler.yield while sent.nil?
        end
      end

      assert_operator sent, :>, 0
    end
  end

  def connection
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    [client, server.accept].tap { server.close }
  end

  # Plain Ruby hands any bits to poll(2), and tells nil from false: nothing came, or something that nobody asked for.
  def test_odd_events_are_waited_for_as_by_plain_ruby
    masks = [0, 8, 16, 24, 32, 64, 256, 1024, 8192, 9, 12, 65_536, 1 << 20, 1 << 30, -1, 2**40]
    answers = [->(&work) { Thread.new(&work).value }, ->(&work) { in_fiber(&work) }].map do |run|
      run.call do
        full, writer = IO.pipe
        writer << "x"
        hung_up, = IO.pipe.tap { |pipe| pipe[1].close }
        half, peer = UNIXSocket.pair
        peer.close_write
        { full:, empty: IO.pipe[0], writer:, hung_up:, half: }.to_h do |name, io|
          waits = masks.product([0, 0.001]).map do |mask, time|
            io.wait(mask, time)
          rescue StandardError => e
            [e.class, e.message]
          end
          [name, waits]
        end
      end
    end
    assert_equal(*answers)
  end

  def test_urgent_data_wakes
    waits = {
      wait_priority: ->(io) { io.wait_priority == io }, wait: ->(io) { io.wait(IO::PRIORITY, nil) == IO::PRIORITY },
      select: ->(io) { IO.select(nil, nil, [io]) == [[], [], [io]] }, both: ->(io) { io.wait(IO::PRIORITY | IO::READABLE, nil) & IO::PRIORITY == IO::PRIORITY }
    }
    waits.each do |name, wait|
      client, socket = connection
      woken = nil
      scheduled do
        Fiber.schedule { woken = wait.call(socket) }
        Fiber.schedule { client.send("!", Socket::MSG_OOB) }
      end
      assert_equal true, woken, name
    end
  end

  def test_urgent_data_wakes_a_machine_and_nothing_is_answered_that_was_not_asked
    client, socket = connection
    machine = UM.new
    fiber = machine.spin { machine.poll(socket.fileno, UM::POLLPRI) }
    machine.snooze
    client.send("!", Socket::MSG_OOB)

    assert_equal UM::POLLPRI, machine.join(fiber)
  end

  # A regular file has no urgent data, and never will: others wake the select, or the time does.
  def test_a_file_waited_for_does_not_keep_a_select_from_others
    in_fiber do
      reader, writer = IO.pipe
      Fiber.schedule { writer << "x" }
      assert_equal [[reader], [], []], IO.select([reader], nil, [File.open(__FILE__)])
    end
  end

  # Whether a native thread of ours is in poll(2), or ppoll(2) of x86 or ARM: an idle one waits for a lock.
  def polls?(thread)
    File.read("#{thread}/comm") == "um-native\n" && File.read("#{thread}/syscall").match?(/\A(7|271|73) /)
  end

  def test_the_close_of_an_io_ends_a_wait_for_room_whose_peer_sends_no_more
    reader, writer = UNIXSocket.pair
    reader.close_write
    writer.write_nonblock("x" * 65_536) while true
  rescue IO::WaitWritable
    ended = nil
    scheduled do
      Fiber.schedule { ended = assert_raises(IOError) { writer.wait_writable } }
      Fiber.schedule do
        # Until the wait goes on, on a thread.
        Fiber.scheduler.yield until Dir["/proc/self/task/*"].any? { |thread| polls?(thread) }
        writer.close
      end
    end
    assert_equal "stream closed in another thread", ended.message
  end
end

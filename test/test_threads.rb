# frozen_string_literal: true

require_relative "test_helper"
require "tmpdir"

# What is left of a thread that has ended: nothing.
class TestThreads < SchedulerTest
  # Runs the block on a machine in a thread that ends although fibers of the machine wait, or are to go on.
  def in_ending_thread(at_once: false)
    Thread.new do
      machine = UM.new
      yield machine
      3.times { machine.sleep(0.001) } unless at_once
      nil
    end.join
  end

  def eventually
    deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + PATIENCE
    until yield
      flunk "not in time" if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline
      GC.start
      sleep 0.001
    end
  end

  # Asserts that nothing is left open of what the block opens.
  def assert_leaves_no_descriptor(at_once: false, &)
    in_ending_thread(at_once:, &)
    GC.start
    before = settled_descriptors
    5.times { in_ending_thread(at_once:, &) }
    eventually { open_descriptors <= before }
  end

  # What a fiber waits for, given a socket that nothing comes from.
  WAITS = {
    read: ->(m, io) { m.read(io.fileno, +"", 100_000) },
    large_read: ->(m, io) { m.read(io.fileno, +"", 10_000_000) },
    receive: ->(m, io) { m.recv_each(io.fileno) { nil } },
    stream: ->(m, io) { m.io(io.fileno) { |stream| stream.read_line(0) } },
    poll: ->(m, io) { m.poll(io.fileno, UM::POLLIN) },
    registered_file: ->(m, io) { m.register_file(io.fileno) && m.read(io.fileno, +"", 10) },
    sleep: ->(m, _) { m.sleep },
    queue: ->(m, _) { m.shift(UM::Queue.new) },
    ticks: ->(m, _) { m.periodically(100) { nil } },
    native_thread: ->(m, io) { m.flock(io.fileno, File::LOCK_EX) }
  }.freeze

  WAITS.each do |name, wait|
    define_method :"test_a_thread_that_ends_with_a_#{name}_leaves_no_descriptor" do
      Tempfile.create("um") do |file|
        file.flock(File::LOCK_EX)
        locked = File.open(file.path)
        socket, other = UNIXSocket.pair
        assert_leaves_no_descriptor { |machine| machine.spin { wait.call(machine, name == :native_thread ? locked : socket) } }
        [locked, socket, other].each(&:close)
      end
    end
  end

  def test_a_thread_that_is_killed_leaves_no_descriptor
    reader, writer = IO.pipe
    before = settled_descriptors
    5.times do
      inside = Thread::Queue.new
      thread = Thread.new do
        machine = UM.new
        machine.spin { machine.read(reader.fileno, +"", 10) }
        machine.spin { inside << true }
        machine.sleep
      end
      inside.pop
      thread.kill.join
    end
    eventually { open_descriptors <= before }
    writer << "kept"
    assert_equal "kept", reader.readpartial(10)
  end

  def test_a_peer_sees_the_end_of_what_an_ended_threads_machine_used
    socket, other = UNIXSocket.pair
    in_ending_thread do |machine|
      machine.register_file(socket.fileno)
      machine.spin { machine.recv_each(socket.fileno) { nil } }
    end
    socket.close
    assert_nil other.read(1)
  end

  def test_a_connection_that_an_ended_thread_has_accepted_is_closed
    server = TCPServer.new("127.0.0.1", 0)
    clients = []
    in_ending_thread do |machine|
      machine.spin do
        machine.accept_each(server.fileno) do |fd|
          machine.close(fd)
          machine.sleep
        end
      end
      machine.snooze
      3.times { clients << TCPSocket.new("127.0.0.1", server.local_address.ip_port) }
    end
    server.close
    clients.each do |client|
      assert_nil client.read(1)
    rescue Errno::ECONNRESET
      # Or so: it was never accepted.
    end
  end

  # The connection comes when nobody can be given it any more.
  def test_a_connection_that_comes_as_a_thread_ends_is_closed
    5.times do
      server = TCPServer.new("127.0.0.1", 0)
      client = nil
      GC.start
      before = settled_descriptors
      in_ending_thread(at_once: true) do |machine|
        machine.spin { machine.accept(server.fileno) }
        machine.snooze
        client = TCPSocket.new("127.0.0.1", server.local_address.ip_port)
      end
      assert_operator open_descriptors, :<=, before + 1
    ensure
      [server, client].each(&:close)
    end
  end

  def test_a_file_that_is_opened_as_a_thread_ends_is_closed
    Dir.mktmpdir do |folder|
      fifo = File.join(folder, "fifo")
      File.mkfifo(fifo)
      assert_leaves_no_descriptor(at_once: true) do |machine|
        machine.spin { machine.open(__FILE__, UM::O_RDONLY) }
        machine.spin { machine.open(fifo, UM::O_RDONLY) }
        machine.snooze
        # Its open is over as soon as there is a writer.
        File.open(fifo, "w").close
      end
    end
  end

  # The fiber has written, and does not go on: it is its turn until the thread ends.
  def test_what_waits_for_a_fiber_is_written_as_a_thread_ends
    [true, false].each do |submitted|
      reader, writer = IO.pipe
      in_ending_thread(at_once: true) do |machine|
        machine.spin { machine.write(writer.fileno, "first ") }
        machine.snooze
        machine.submit if submitted
        machine.write_async(writer.fileno, "second")
      end
      writer.close
      assert_equal "first second", reader.read
    end
  end

  def test_a_buffer_that_an_ended_thread_was_reading_into_is_free
    reader, writer = IO.pipe
    buffer = +"before"
    in_ending_thread { |machine| machine.spin { machine.read(reader.fileno, buffer, 100, 6) } }
    writer << "late"
    buffer << " and after"
    assert_equal "before and after", buffer
    assert_equal "late", reader.readpartial(10)
  end

  def test_the_machine_of_an_ended_thread_is_closed
    machine = fiber = nil
    in_ending_thread do |own|
      machine = own
      fiber = machine.spin { machine.sleep }
    end
    refute_predicate machine, :owned?
    assert_raises(UM::Error) { machine.sleep(0) }
    assert_raises(UM::Error) { machine.spin { nil } }
    # Whoever wakes one of its fibers wakes nobody.
    machine.schedule(fiber, 1)
    queue = UM::Queue.new
    in_ending_thread { |own| own.spin { own.shift(queue) } }
    own = UM.new
    own.push(queue, :kept)
    assert_equal :kept, own.shift(queue)
  end

  def test_many_threads_come_and_go
    before = settled_descriptors
    200.times.each_slice(20) do |slice|
      slice.map { Thread.new { Thread.current.machine.tap { |machine| machine.spin { machine.sleep } && machine.sleep(0) } } }.each(&:join)
    end
    eventually { open_descriptors <= before }
  end
end
